"""What goes where; that PEFT then answers as the variant does is in test_peft_io.py."""

from __future__ import annotations

from typing import Any

from kinfold.family.peft_plan import Plan, Spot, caught, close
from kinfold.pack.skeleton import Skeleton

KINDS: dict[str, Any] = {"score": "linear", "deep.score": "linear", "deep.norm": "other", "underscore": "linear"}
BONES = Skeleton("Net", KINDS, frozenset(f"{name}.weight" for name in KINDS), {}, "")


def test_modules_that_a_short_target_would_catch_get_zeros() -> None:
    assert caught({"score"}, Plan(), BONES) == [("deep.score", "linear")]
    assert caught({"score"}, Plan(whole={"deep"}), BONES) == []
    assert caught({"score"}, Plan(), None) == []


def test_modules_that_a_kept_name_would_catch_are_kept() -> None:
    """PEFT looks at the end of a name only, not at the dot before it."""
    plan = Plan(whole={"score"})
    close(plan, BONES)
    assert plan.whole == {"score", "deep.score", "underscore"}


def test_a_kept_module_has_no_factors_beside_it() -> None:
    spots = {name: [Spot(module, "weight", "linear")] for name, module in (("a", "x"), ("b", "deep.y"))}
    plan = Plan(low_rank=spots, biases={"c": [Spot("x", "bias", "linear")]}, whole={"deep"})
    plan.keep_whole("a")
    plan.settle()
    assert plan.whole == {"deep", "x"}
    assert not plan.low_rank
    assert not plan.biases
