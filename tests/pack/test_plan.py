"""Budgets: the whole file stays within them and uses them; one too small says what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kinfold
from kinfold.errors import BudgetError
from models import beside, perturbed, pico, reference_bytes, save

CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "fold": ("fold", {}),
    "osd": ("osd", {}),
    "osd paper": ("osd", {"layout": "paper"}),
    "truncsvd": ("truncsvd", {}),
    "dare": ("dare", {}),
    "magnitude": ("magnitude", {}),
}


# not truncsvd at 1/150: one rank of the smallest matrix is 5 % of that budget
FILLED = [(n, b) for n in CODECS for b in ("1/16", "1/40", "50kB", "1/150") if (n, b) != ("truncsvd", "1/150")]


@pytest.mark.parametrize(("name", "budget"), FILLED)
def test_the_whole_file_fits_and_fills_its_budget(
    tmp_path: Path, middling: tuple[Path, Path], name: str, budget: str
) -> None:
    codec, options = CODECS[name]
    allowed = 50_000 if budget == "50kB" else reference_bytes(*middling) // int(budget.removeprefix("1/"))
    out = tmp_path / "v.kin.safetensors"
    report = kinfold.pack(*middling, out, codec=codec, options=options, budget=budget)
    size = out.stat().st_size
    assert size <= allowed
    assert size >= 0.97 * allowed
    assert report.file_bytes == size
    assert beside(out) == ["v.kin.safetensors"]


@pytest.mark.parametrize("codec", ["fold", "osd", "magnitude"])
def test_budgets_that_rise_byte_by_byte_are_kept(tmp_path: Path, pair: Any, codec: str) -> None:
    """Neighbouring budgets: rounding to bytes, varints and digits must never spill over."""
    out = tmp_path / "v.kin.safetensors"
    for allowed in range(12_000, 12_040, 5):
        kinfold.pack(*pair, out, codec=codec, budget=allowed, overwrite=True)
        assert 0.97 * allowed <= out.stat().st_size <= allowed


@pytest.mark.parametrize("codec", ["osd", "truncsvd"])
def test_a_budget_in_ranks_is_32_bits_a_side(tmp_path: Path, codec: str) -> None:
    base = pico(shapes={"a": (200, 120), "b": (120, 300)})
    there, here = save(tmp_path / "base", base), save(tmp_path / "variant", perturbed(base))
    out = tmp_path / "v"
    kinfold.pack(there, here, out, codec=codec, budget="rank:3")
    for row in kinfold.inspect(out).tensors:
        allowed = 32 * 3 * sum(row.shape) / 8
        assert row.bytes <= allowed
        assert row.bytes >= (0.97 if codec == "osd" else 0.8) * allowed  # truncsvd has whole ranks only


@pytest.mark.parametrize("given", ["", "0", "-1", "4XB", "1/0", "2/1", "rank:", "rank:0", "nonsense", "1e3", "0/5"])
def test_a_malformed_budget_says_what_is_allowed(tmp_path: Path, pair: Any, given: str) -> None:
    with pytest.raises(BudgetError) as caught:
        kinfold.pack(*pair, tmp_path / "v", budget=given)
    assert f"`{given}`" in str(caught.value)
    assert "budget" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ranks_are_no_budget_for_codecs_without(tmp_path: Path, pair: Any) -> None:
    with pytest.raises(BudgetError, match="for osd and truncsvd, not for `dare`"):
        kinfold.pack(*pair, tmp_path / "v", codec="dare", budget="rank:2")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("given", [40, "1/400"])
def test_a_budget_too_small_names_the_least_and_the_least_works(
    tmp_path: Path, pair: Any, name: str, given: str | int
) -> None:
    codec, options = CODECS[name]
    out = tmp_path / "v.kin.safetensors"
    with pytest.raises(BudgetError) as caught:
        kinfold.pack(*pair, out, codec=codec, options=options, budget=given)
    error = caught.value
    least = error.least_bytes
    assert f"the smallest possible is {least} bytes" in str(error)
    assert "1/0" not in error.hint
    assert list(tmp_path.iterdir()) == []
    hinted = error.hint.removeprefix("--budget ").split()[0]
    kinfold.pack(*pair, out, codec=codec, options=options, budget=hinted)
    assert least <= int(hinted.removesuffix("kB")) * 1000 < least + 1000
    kinfold.pack(*pair, out, codec=codec, options=options, budget=least + 300, overwrite=True)
    assert out.stat().st_size <= least + 300


def test_the_named_least_is_the_least(tmp_path: Path, pair: Any) -> None:
    out = tmp_path / "v.kin.safetensors"
    with pytest.raises(BudgetError) as caught:
        kinfold.pack(*pair, out, budget=40)
    for budget in range(caught.value.least_bytes - 120, caught.value.least_bytes + 120, 24):
        try:
            kinfold.pack(*pair, out, budget=budget, overwrite=True)
        except BudgetError:
            assert budget < caught.value.least_bytes
            assert ".partial" not in " ".join(beside(out))
        else:
            assert out.stat().st_size <= budget


NOTHING = {"nothing differs": [], "only biases differ": ["layer.0.bias", "layer.1.bias"]}


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("budget", ["1/100", 300])
def test_no_matrix_to_shrink_and_a_budget_too_small(tmp_path: Path, what: str, budget: str | int) -> None:
    """Once an endless loop: with no matrix to take from, a second plan comes out as large as the first."""
    base = pico()
    changed = perturbed(base)
    there = save(tmp_path / "base", base)
    here = save(tmp_path / "variant", base | {name: changed[name] for name in NOTHING[what]})
    out = tmp_path / "v.kin.safetensors"
    with pytest.raises(BudgetError, match="the smallest possible is") as caught:
        kinfold.pack(there, here, out, budget=budget)
    assert "1/0" not in caught.value.hint
    assert beside(out) == ["base", "variant"]
    kinfold.pack(there, here, out, budget=caught.value.least_bytes)
    assert out.stat().st_size <= caught.value.least_bytes
