"""Held-out scores, and what they say of a new one; scipy is the other route."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kinfold.audit.outliers import threshold
from kinfold.audit.outliers.peers import ZNorm

ROWS = np.random.default_rng(0).normal(size=(40, 3))


def fit(tables):  # type: ignore[no-untyped-def]
    return (ZNorm.fit(table) for table in tables)


@pytest.mark.parametrize(("count", "folds"), [(5, 5), (32, 32), (33, 10), (40, 10), (95, 10)])
def test_each_row_is_held_out_once(count: int, folds: int) -> None:
    parts = threshold.splits(count, seed=1)
    assert len(parts) == folds
    assert np.sort(np.concatenate(parts)).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("count", [6, 33, 37])
def test_a_row_is_scored_by_a_model_of_the_others(count: int) -> None:
    rows = ROWS[:count]
    found = threshold.held_out_scores(rows, fit, seed=3)
    for part in threshold.splits(count, seed=3):
        rest = np.delete(rows, part, 0)
        wanted = np.linalg.norm((rows[part] - rest.mean(0)) / rest.std(0), axis=1)
        np.testing.assert_allclose(found[part], wanted)


def test_a_quantile_of_held_out_scores_is_one_of_them() -> None:
    scores = np.arange(1.0, 12.0)
    assert threshold.quantile(scores, 0.25, "cross_fit") == 9.0  # position 7.5 of 0..10, the higher one
    assert threshold.quantile(scores, 0.25, "in_sample") == np.percentile(scores, 75) == 8.5


def test_p_values_count_what_is_at_least_as_large() -> None:
    ordinary = np.array([3.0, 1.0, 2.0, 2.0])
    asked = np.array([0.5, 1.0, 2.0, 2.5, 3.0, 9.0])
    wanted = [(1 + sum(one >= s for one in ordinary)) / 5 for s in asked]
    assert threshold.p_values(ordinary, asked).tolist() == wanted


@pytest.mark.parametrize("count", [5, 19, 20, 32, 39, 64])
@pytest.mark.parametrize("false_alarm", [0.05, 0.1, 0.2])
def test_above_the_threshold_is_where_the_p_value_is_small(count: int, false_alarm: float) -> None:
    ordinary = np.random.default_rng(count).permutation(count).astype(float)
    limit = threshold.p_threshold(ordinary, false_alarm)
    asked = np.arange(-1, count + 1) + 0.5
    small = threshold.p_values(ordinary, asked) <= false_alarm + 1e-12
    if threshold.certifiable(count, false_alarm):
        assert small.any()
        np.testing.assert_array_equal(asked > limit, small)
    else:
        assert not small.any()
        assert limit == ordinary.max()


def test_nineteen_are_needed_for_one_in_twenty() -> None:
    assert [threshold.certifiable(n, 0.05) for n in (18, 19)] == [False, True]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 31, 200])
def test_the_tail_of_students_t_is_scipys(freedom: int) -> None:
    for t in (-30.0, -2.0, 0.0, 0.3, 1.0, 2.5, 8.0, 40.0):
        assert threshold.t_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9, abs=1e-14)


def test_one_of_a_family_is_tested_against_the_others() -> None:
    logs = np.random.default_rng(1).normal(size=9)
    p, limits = threshold.against_the_others(np.exp(logs), 0.05)
    for i in range(9):
        others = np.delete(logs, i)
        step = others.std(ddof=1) * np.sqrt(1 + 1 / 8)
        assert p[i] == pytest.approx(stats.t.sf((logs[i] - others.mean()) / step, 7), rel=1e-9)
        assert np.log(limits[i]) == pytest.approx(others.mean() + stats.t.isf(0.05 / 9, 7) * step, rel=1e-9)


def test_an_ordinary_family_is_mostly_left_alone() -> None:
    generator = np.random.default_rng(2)
    named = 0
    for _ in range(400):
        scores = np.exp(generator.normal(size=12))
        named += bool((scores > threshold.against_the_others(scores, 0.05)[1]).any())
    assert named <= 0.09 * 400  # 0.05, and four standard errors


def test_equal_scores_and_zeros_are_no_trouble() -> None:
    p, limits = threshold.against_the_others(np.array([0.0, 0, 0, 0, 0, 1.0]), 0.05)
    assert p[5] < 1e-6
    assert limits[5] < 1.0
    assert (p[:5] > 0.5).all()
