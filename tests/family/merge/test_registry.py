"""Methods, their options, and where they are found."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

from kinfold.errors import MergeError
from kinfold.family.merge import registry
from kinfold.family.merge.choice import choose
from kinfold.family.merge.registry import BUILTIN, find, gram_method, merge_method, names, per_member, space_method


def test_all_methods_are_found_where_they_are_listed() -> None:
    wanted = "linear task_arithmetic ties dare_linear dare_ties della slerp knots core_space"
    assert set(names()) >= set(wanted.split())
    assert [find(name).name for name in BUILTIN] == list(BUILTIN)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(
        MergeError, match=r"no merge method is called `tie`; there are centered_clip, .*, ties, trimmed_mean"
    ) as error:
        find("tie")
    assert error.value.hint == "--method ties"
    with pytest.raises(MergeError, match="qqqq") as error:
        find("qqqq")
    assert error.value.hint == ""


def test_the_signature_is_the_schema() -> None:
    assert find("ties").options({}) == {"density": 0.2, "scale": 1.0, "scope": "model", "normalize": True}
    assert find("ties").options({"density": "0.5", "scope": "tensor"})["density"] == 0.5
    assert find("ties").options({"density": [0.5, 1]})["density"] == [0.5, 1.0]
    assert find("linear").described() == "none"


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("ties", {"densty": 0.2}, r"densty=0.2: there is no such option; its options are density \(0.2\), scale"),
        ("ties", {"density": 0}, "density=0: Input should be greater than 0"),
        ("ties", {"density": 1.5}, "density=1.5: Input should be less than or equal to 1"),
        ("ties", {"scale": float("nan")}, "scale=nan: Input should be a finite number"),
        ("ties", {"scope": "layer"}, "scope='layer': Input should be 'model' or 'tensor'"),
        ("slerp", {"t": -0.1}, "t=-0.1"),
        ("core_space", {"rank": 0}, "rank=0"),
        ("linear", {"site": 1}, "site=1: there is no such option"),
    ],
)
def test_a_bad_option_is_told_with_the_list(method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MergeError, match=said):
        choose(method, None, options)


def test_options_of_a_space_go_to_it_and_to_its_rule() -> None:
    choice = choose("core_space", None, {"rank": 4, "density": 0.5})
    assert choice.options == {"rank": 4}
    assert choice.inner is not None
    assert (choice.inner.method.name, choice.inner.options["density"]) == ("ties", 0.5)
    dare = choose("dare_ties", None, {"density": 0.3, "scale": 2})
    assert dare.options == {"density": 0.3}
    assert dare.all_options == {"density": 0.3, "scale": 2.0, "scope": "tensor", "normalize": True}
    assert choose("dare_linear", None, {}).rule.options["scale"] == 0.4


@pytest.mark.parametrize(
    ("method", "inner", "options", "said"),
    [
        ("ties", "linear", {}, "`ties` has no inner method"),
        ("knots", "slerp", {}, "inner='slerp' is none that `knots` can use: it takes ties, task_arithmetic"),
        ("dare_linear", "ties", {}, "it takes task_arithmetic"),
        ("knots", "task_arithmetic", {"density": 0.1}, r"options are none, those of its inner `task_arithmetic` scale"),
        ("core_space", None, {"densty": 1}, r"options are rank \(16\), those of its inner `ties` density \(0.2\)"),
        ("dare_ties", None, {"scope": "model"}, "does not take scope='model'"),
    ],
)
def test_what_fits_no_space_is_refused(method: str, inner: str | None, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MergeError, match=said):
        choose(method, inner, options)


@pytest.mark.usefixtures("own_methods")
def test_a_name_is_taken_once() -> None:
    def one(deltas: Any, weights: Any) -> Any:
        return deltas[0]

    def other(deltas: Any, weights: Any) -> Any:
        return deltas[-1]

    merge_method("mine")(one)
    merge_method("mine")(one)  # as a cell of a notebook that runs again
    with pytest.raises(MergeError, match="already a merge method called `mine`"):
        merge_method("mine")(other)
    with pytest.raises(MergeError, match="already a merge method called `ties`"):
        merge_method("ties")(one)


@pytest.mark.usefixtures("own_methods")
def test_an_option_needs_a_type_and_a_default() -> None:
    @merge_method("untyped")
    def untyped(deltas: Any, weights: Any, *, level=1):
        return deltas[0]

    @merge_method("undecided")
    def undecided(deltas: Any, weights: Any, *, level: int) -> Any:
        return deltas[0]

    for name in ("untyped", "undecided"):
        with pytest.raises(MergeError, match=f"option `level` of the method `{name}` needs a type and a default"):
            find(name).options({})


@pytest.mark.usefixtures("own_methods")
def test_methods_of_other_packages_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("acme_merges")

    def load(name: str) -> Any:
        return lambda deltas, weights: torch.stack(list(deltas)).amax(0)

    module.largest, module.nothing = load("largest"), load("nothing")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acme_merges", module)
    points = {name: EntryPoint(name, f"acme_merges:{name}", "kinfold.merges") for name in ("largest", "nothing")}

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "kinfold.merges"
        return [point for key, point in points.items() if name in (None, key)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert {"largest", "nothing"} <= set(names())
    original = EntryPoint.load
    monkeypatch.setattr(
        EntryPoint, "load", lambda self: self.name == "largest" and merge_method("largest")(original(self))
    )
    assert find("largest").function([torch.zeros(2), torch.ones(2)], [1, 1]).tolist() == [1, 1]
    with pytest.raises(MergeError, match="`acme_merges:nothing` registers no merge method called `nothing`"):
        find("nothing")


def test_one_value_or_one_a_member() -> None:
    assert per_member(0.5, 2, "density") == [0.5, 0.5]
    assert per_member([0.5, 1], 2, "density") == [0.5, 1]
    with pytest.raises(MergeError, match="`density` has 2 values for 3 members"):
        per_member([0.5, 1], 3, "density")


@pytest.mark.usefixtures("own_methods")
def test_every_kind_has_its_decorator() -> None:
    gram_method("g")(lambda gram, shares: shares)
    space_method("s", inners={"ties": {}})(lambda deltas: (deltas, lambda merged: merged))
    assert [find(name).kind for name in ("g", "s", "ties")] == ["gram", "space", "rule"]
