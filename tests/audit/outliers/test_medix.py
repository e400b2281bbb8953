"""The median vote: torch.median in a loop over rows is the other route."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kinfold.audit.outliers import ewm_filter, ewm_loo_scores
from kinfold.audit.outliers.medix import Vote
from kinfold.errors import AuditError, AuditOptionError, DegenerateGradientError


def looped(table: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, float]:
    """n medians of n - 1 rows each."""
    rows, centre = torch.from_numpy(table), torch.from_numpy(ref)
    distance = (rows.median(dim=0).values - centre).norm().item()
    without = [
        (rows[torch.arange(len(rows)) != i].median(dim=0).values - centre).norm().item() for i in range(len(rows))
    ]
    return distance - np.array(without), distance


def gradients(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, columns)), generator.normal(size=columns)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (200, 16), (201, 16), (500, 128)])
def test_drops_are_those_of_a_loop_over_medians(shape: tuple[int, int]) -> None:
    table, ref = gradients(*shape)
    scores, distance = ewm_loo_scores(table, ref)
    wanted, far = looped(table, ref)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-12)
    assert distance == pytest.approx(far, abs=1e-12)


@pytest.mark.parametrize("rows", range(2, 12))
def test_ties_are_those_of_a_loop_too(rows: int) -> None:
    generator = np.random.default_rng(rows)
    for _ in range(20):
        table, ref = generator.integers(0, 4, size=(rows, 5)).astype(float), generator.normal(size=5)
        vote, tied = Vote.of(table, ref)
        wanted, distance = looped(table, ref)
        np.testing.assert_allclose(vote.drops(table), wanted, rtol=0, atol=1e-12)
        assert vote.distance == pytest.approx(distance, abs=1e-12)
        ordered = np.sort(table, axis=0)
        assert tied == pytest.approx(np.mean(ordered[(rows - 2) // 2] == ordered[(rows - 2) // 2 + 1]))
        if tied <= 0.5:
            np.testing.assert_array_equal(ewm_loo_scores(table, ref)[0], vote.drops(table))


def test_a_reference_at_the_median_leaves_no_distance() -> None:
    table = np.array([[0.0], [1.0], [3.0]])
    scores, distance = ewm_loo_scores(table, np.array([1.0]))
    assert distance == 0
    np.testing.assert_allclose(scores, looped(table, np.array([1.0]))[0])
    still, _ = ewm_loo_scores(np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), np.array([1.0, 0.0]))
    np.testing.assert_array_equal(still, scores)  # a column where all are equal has no vote


def test_layout_and_order_of_rows_change_nothing() -> None:
    table, ref = gradients(101, 7)
    scores, distance = ewm_loo_scores(table, ref)
    order = np.random.default_rng(1).permutation(101)
    for other in (np.asfortranarray(table), table.astype(np.float64, copy=True)):
        np.testing.assert_array_equal(ewm_loo_scores(other, ref)[0], scores)  # the same bits
    shuffled, again = ewm_loo_scores(table[order], ref)
    np.testing.assert_array_equal(shuffled, scores[order])
    assert again == distance


@pytest.mark.parametrize("rows", [40, 41])
def test_drops_shift_with_nothing_and_scale_with_everything(rows: int) -> None:
    table, ref = gradients(rows, 6)
    scores, distance = ewm_loo_scores(table, ref)
    moved, _ = ewm_loo_scores(table + np.arange(6) * 10, ref + np.arange(6) * 10)
    np.testing.assert_allclose(moved, scores, rtol=0, atol=1e-9)
    scaled, far = ewm_loo_scores(table * 3, ref * 3)
    np.testing.assert_allclose(scaled, scores * 3, rtol=1e-9, atol=1e-12)
    assert far == pytest.approx(3 * distance)


def test_one_round_takes_the_highest_drops() -> None:
    table, ref = gradients(50, 8)
    found = ewm_filter(table, ref, k=7)
    drops, distance = looped(table, ref)
    np.testing.assert_array_equal(found.order, np.argsort(-drops, kind="stable"))
    assert found.removed == 7
    left = np.delete(table, found.order[:7], axis=0)
    np.testing.assert_allclose(found.trace, [distance, looped(left, ref)[1]])
    np.testing.assert_allclose(found.scores, drops, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(ewm_filter(table, ref, k=0.14).order, found.order)


def test_rounds_are_those_of_the_paper() -> None:
    """Move k, measure again, stop where the distance moved by less than eps: the removal comes before the test."""
    table, ref = gradients(60, 8)
    alive, removed, trace = list(range(60)), [], []
    for _ in range(4):
        drops, distance = looped(table[alive], ref)
        trace.append(distance)
        gone = [alive[i] for i in np.argsort(-drops, kind="stable")[:6]]
        removed += gone
        alive = [i for i in alive if i not in gone]
    found = ewm_filter(table, ref, k=6, max_rounds=4)
    assert found.order[:24].tolist() == removed
    assert found.removed == 24
    np.testing.assert_allclose(found.trace, [*trace, looped(table[alive], ref)[1]])
    moves = np.abs(np.diff(found.trace))
    eps = float(moves[1]) * 1.001
    stopped = next(i for i, move in enumerate(moves) if move < eps) + 1
    assert ewm_filter(table, ref, k=6, max_rounds=4, eps=eps).removed == 6 * stopped


def test_rounds_end_before_nothing_is_left() -> None:
    table, ref = gradients(10, 3)
    found = ewm_filter(table, ref, k=4, max_rounds=9)
    assert found.removed == 8
    assert sorted(found.order) == list(range(10))
    assert len(found.trace) == 3
    assert len(ewm_filter(table[:2], ref, k=1).trace) == 1  # one row has a median, but no second


def test_an_activation_behind_the_module_is_refused() -> None:
    table, ref = gradients(80, 12)
    table[np.random.default_rng(3).random(table.shape) < 0.6] = 0  # most units are off for most rows
    with pytest.raises(DegenerateGradientError, match=r"coincide in \d+% of 12 columns") as caught:
        ewm_loo_scores(table, ref)
    assert "--at" in caught.value.hint
    with pytest.raises(DegenerateGradientError, match="100%"):
        ewm_filter(np.ones((9, 4)), np.zeros(4), k=2)


@pytest.mark.parametrize(
    ("table", "ref", "words"),
    [
        (np.zeros((1, 3)), np.zeros(3), "n >= 2"),
        (np.zeros(3), np.zeros(3), r"shape \(3,\)"),
        (np.zeros((4, 3)), np.zeros(2), r"shape \(2,\)"),
        (np.array([[1.0], [np.nan], [0.0]]), np.zeros(1), "row 1 are not finite"),
        (np.array([[1.0], [2.0]]), np.array([np.inf]), "reference of the gradients is not finite"),
    ],
)
def test_arrays_that_do_not_fit(table: np.ndarray, ref: np.ndarray, words: str) -> None:
    with pytest.raises(AuditError, match=words):
        ewm_loo_scores(table, ref)


@pytest.mark.parametrize(("k", "rounds"), [(0, 1), (-1, 1), (50, 1), (2.5, 1), (0.0, 1), (5, 0)])
def test_options_out_of_range(k: float, rounds: int) -> None:
    table, ref = gradients(50, 3)
    with pytest.raises(AuditOptionError, match="allowed"):
        ewm_filter(table, ref, k=k, max_rounds=rounds)


def test_every_small_table_of_zeros_and_ones() -> None:
    """All 2-column tables of three rows over three values."""
    ref = np.array([0.3, -0.2])
    for values in itertools.product((0.0, 1.0, 2.0), repeat=6):
        table = np.array(values).reshape(3, 2)
        np.testing.assert_allclose(Vote.of(table, ref)[0].drops(table), looped(table, ref)[0], rtol=0, atol=1e-12)
