"""Scores against numpy's own solves, closed forms and exact refits."""

from __future__ import annotations

import numpy as np
import pytest

from kinfold.audit.influence.scores import (
    Factored,
    curved_scores,
    damping_term,
    influence_scores,
    self_influence,
    sweep,
)
from kinfold.errors import AuditError

RANDOM = np.random.default_rng(0)


def solved(gradients: np.ndarray, probe: np.ndarray, size: int, damping: float) -> np.ndarray:
    rows, width = gradients.shape
    fisher = gradients.T @ gradients / rows
    term = damping * np.trace(fisher) / min(rows, size)
    return gradients @ np.linalg.solve(fisher + term * np.eye(width), probe.T)


@pytest.mark.parametrize(("rows", "width"), [(30, 8), (8, 30), (12, 12)])
@pytest.mark.parametrize("damping", [0.01, 0.3, 3.0])
def test_both_ways_are_the_solved_system(rows: int, width: int, damping: float) -> None:
    gradients, probe = RANDOM.normal(size=(rows, width)), RANDOM.normal(size=(5, width))
    expected = solved(gradients, probe, 100, damping)
    found = influence_scores(gradients, probe, size=100, damping=damping)
    np.testing.assert_allclose(found, expected, atol=1e-10 * abs(expected).max())
    own = self_influence(gradients, size=100, damping=damping)
    np.testing.assert_allclose(own, np.diag(solved(gradients, gradients, 100, damping)), rtol=1e-10)


def test_self_influence_is_the_closed_form_of_the_kernel() -> None:
    gradients = RANDOM.normal(size=(8, 30))
    kernel = gradients @ gradients.T / 8
    term = 0.3 * np.trace(kernel) / 8
    expected = 8 * (1 - term * np.diag(np.linalg.inv(kernel + term * np.eye(8))))
    np.testing.assert_allclose(self_influence(gradients, size=50, damping=0.3), expected, rtol=1e-10)


def test_repeated_rows_weigh_as_often_as_they_occur() -> None:
    distinct, weights = RANDOM.normal(size=(6, 9)), np.array([1, 3, 1, 2, 1, 1])
    rows = int(weights.sum())
    repeated = np.repeat(distinct, weights, axis=0)
    probe = RANDOM.normal(size=(2, 9))
    part = Factored.of_rows(distinct * np.sqrt(weights)[:, None], rows).damped(rows, 40, 0.3)
    expected = solved(repeated, probe, 40, 0.3)
    np.testing.assert_allclose(np.repeat(distinct @ part.directions(probe), weights, axis=0), expected, atol=1e-10)


def test_the_scale_of_the_loss_does_not_matter() -> None:
    gradients, probe = RANDOM.normal(size=(30, 8)), RANDOM.normal(size=(5, 8))
    once = influence_scores(gradients, probe, size=100, damping=0.3)
    np.testing.assert_allclose(influence_scores(7 * gradients, 7 * probe, size=100, damping=0.3), once, rtol=1e-10)


def test_effective_directions() -> None:
    part = Factored.of_fisher(np.diag([4.0, 1.0, 0.0])).damped(10, 5, 1.0)
    assert part.term == pytest.approx(1.0)
    assert part.effective == pytest.approx(4 / 5 + 1 / 2)


def test_gradients_of_zero_score_zero() -> None:
    zero, probe = np.zeros((4, 3)), RANDOM.normal(size=(2, 3))
    assert influence_scores(zero, probe, size=9, damping=0.3).tolist() == [[0.0, 0.0]] * 4
    assert self_influence(zero, size=9, damping=0.3).tolist() == [0.0] * 4
    assert Factored.of_fisher(np.zeros((3, 3))).damped(4, 9, 0.3).effective == 0.0


def test_scores_are_what_refits_do_on_ridge_regression() -> None:
    """d(probe loss) / d(weight of row i) is -score_i / n, with the exact Hessian as curvature."""
    rows, width, ridge = 20, 4, 0.1
    x, y = RANDOM.normal(size=(rows, width)), RANDOM.normal(size=rows)
    probe_x, probe_y = RANDOM.normal(size=(3, width)), RANDOM.normal(size=3)

    def fit(weights: np.ndarray) -> np.ndarray:
        left = (x * weights[:, None]).T @ x / rows + ridge * np.eye(width)
        return np.linalg.solve(left, (x * weights[:, None]).T @ y / rows)

    theta = fit(np.ones(rows))
    gradients, probe = x * (x @ theta - y)[:, None], probe_x * (probe_x @ theta - probe_y)[:, None]
    scores = curved_scores(gradients, probe, x.T @ x / rows + ridge * np.eye(width))
    step = 1e-4
    for row in range(rows):
        moved = []
        for sign in (1, -1):
            weights = np.ones(rows)
            weights[row] += sign * step
            moved.append(0.5 * (probe_x @ fit(weights) - probe_y) ** 2)
        np.testing.assert_allclose((moved[0] - moved[1]) / (2 * step), -scores[row] / rows, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_must_be_above_zero(damping: float) -> None:
    with pytest.raises(AuditError, match="above 0"):
        damping_term(1.0, 3, 4, damping)


def test_a_sweep_takes_the_best() -> None:
    best, tried = sweep(lambda damping: -((damping - 1.0) ** 2))
    assert best == 1.0
    assert [damping for damping, _ in tried] == [0.03, 0.1, 0.3, 1.0, 3.0]
    assert sweep(lambda damping: float("nan") if damping < 3 else 0.1)[0] == 3.0
    assert sweep(lambda damping: 0.5)[0] == 3.0
    with pytest.raises(AuditError, match="never a number"):
        sweep(lambda damping: float("nan"))
