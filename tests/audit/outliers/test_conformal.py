"""Benjamini-Hochberg beside a plain loop, and how many outliers p-values tell of."""

from __future__ import annotations

import numpy as np
import pytest

from kinfold.audit.outliers.conformal import benjamini_hochberg, outlier_share, wanted


def looped(p: np.ndarray, q: float) -> list[bool]:
    limit = -1.0
    for i, value in enumerate(sorted(p), 1):
        if value <= q * i / len(p):
            limit = value
    return [value <= limit for value in p]


@pytest.mark.parametrize("q", [0.05, 0.1, 0.5])
def test_benjamini_hochberg_is_a_loops(q: float) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = np.round(generator.random(30) ** generator.integers(1, 6), 2)
        assert benjamini_hochberg(p, q).tolist() == looped(p, q)


def test_none_stands_out() -> None:
    assert not benjamini_hochberg(np.array([0.5, 0.9, 1.0]), 0.1).any()


def test_the_share_of_p_values_that_are_too_few_above_a_half() -> None:
    uniform = np.arange(1, 101) / 100
    assert outlier_share(uniform) == 0
    mixed = np.concatenate([np.full(100, 0.01), uniform])
    assert outlier_share(mixed) == pytest.approx(0.5)
    assert outlier_share(np.ones(9)) == 0


@pytest.mark.parametrize(("share", "count", "k"), [(0.0, 1000, 20), (0.1, 1000, 100), (0.9, 1000, 500), (0.0, 40, 10)])
def test_rows_for_the_head(share: float, count: int, k: int) -> None:
    assert wanted(share, count) == k
