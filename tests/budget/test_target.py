"""Spellings of a budget."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.budget import Budget
from kinfold.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("1000B", 1000),
        ("500kB", 500_000),
        ("4MB", 4_000_000),
        (" 4 MB ", 4_000_000),
        ("4mb", 4_000_000),
        ("2GB", 2_000_000_000),
        ("1KiB", 1024),
        ("1.5MiB", 1_572_864),
        ("2gib", 2_147_483_648),
        ("0.1MB", 100_000),  # a float would give 100000.00000000001 or less
        ("2.7B", 2),
    ],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    budget = Budget.parse(text)
    assert budget.kind == "bytes"
    assert budget.file_bytes(123) == nbytes
    assert budget.text == str(text).strip()


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**15))
@settings(deadline=None)
def test_fractions(top: int, more: int, reference: int) -> None:
    budget = Budget.parse(f"{top} / {top + more}")
    assert budget.kind == "fraction"
    assert budget.value == Fraction(top, top + more)
    assert budget.file_bytes(reference) == reference * top // (top + more)


@pytest.mark.parametrize(("text", "rank"), [("rank:4", 4), ("rank:1/2", Fraction(1, 2)), ("rank:2.5", Fraction(5, 2))])
def test_ranks(text: str, rank: Fraction) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.value) == ("rank", rank)
    assert budget.file_bytes(10**9) is None


def test_rank_in_bits() -> None:
    assert Budget.parse("rank:1").matrix_bits((1024, 1024)) == 65_536
    assert Budget.parse("rank:4").matrix_bits((30, 20)) == 4 * 32 * 50
    # 32 * 50 / 3 = 533.3 bits, of which 66 whole bytes
    assert Budget.parse("rank:1/3").matrix_bits((30, 20)) == 528


@pytest.mark.parametrize(
    "text",
    ["", "big", "4XB", "4 MB 2", "1.2.3", ".", "rank:", "rank:x", "rank:1/0", "1/0", "1/", "/2", "1/2/3", "4MB/2"],
)
def test_no_budget(text: str) -> None:
    with pytest.raises(BudgetError, match="is no budget; give a size") as caught:
        Budget.parse(text)
    assert caught.value.hint == "--budget 1/100"


@pytest.mark.parametrize("text", [0, "0", "0.0MB", "0/5", "-1/2", "2/1", "101/100", "rank:0", "rank:-1"])
def test_out_of_range(text: str | int) -> None:
    with pytest.raises(BudgetError, match="above zero and a fraction at most 1"):
        Budget.parse(text)


def test_the_whole_reference_is_allowed() -> None:
    assert Budget.parse("1/1").file_bytes(777) == 777


def test_negative_number_is_no_budget() -> None:
    with pytest.raises(BudgetError):
        Budget.parse(-5)
