"""Scores of `osd`, against deletions carried out one by one in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deltas import gauss, importance

from kinfold.codec import Importance
from kinfold.codec.damage import Tail, scores, squared_error

N, D, K = 7, 5, 3
A, C = gauss(N, K, seed=1).double(), gauss(D, K, seed=2).double()


def deletions(factor: str) -> list[tuple[tuple[int, int], np.ndarray]]:
    """(entry, change of A C^T when it is deleted) for each entry of one factor."""
    a, c = A.numpy(), C.numpy()
    whole, found = a @ c.T, []
    for entry in np.ndindex((a if factor == "a" else c).shape):
        left, right = a.copy(), c.copy()
        (left if factor == "a" else right)[entry] = 0
        found.append((entry, left @ right.T - whole))
    return found


def test_frob_is_the_measured_change() -> None:
    for z, factor in zip(scores("frob", A, C, None), "ac", strict=True):
        for entry, change in deletions(factor):
            assert float(z[entry]) == pytest.approx(np.linalg.norm(change), rel=1e-12)


def test_fisher_weighs_each_squared_change() -> None:
    held = importance((N, D))
    for z, factor in zip(scores("fisher", A, C, held), "ac", strict=True):
        for entry, change in deletions(factor):
            assert float(z[entry]) == pytest.approx(np.sum(held.fisher.double().numpy() * change**2), rel=1e-12)


def test_fisher_of_ones_is_frob_squared() -> None:
    ones = Importance(gradient=torch.zeros(N, D), fisher=torch.ones(N, D))
    for z, frob in zip(scores("fisher", A, C, ones), scores("frob", A, C, None), strict=True):
        assert torch.allclose(z, frob**2, rtol=1e-12, atol=0)


def test_taylor_is_the_first_order_change_of_the_loss() -> None:
    held = importance((N, D))
    for z, factor in zip(scores("taylor", A, C, held), "ac", strict=True):
        for entry, change in deletions(factor):
            first_order = abs(np.sum(held.gradient.double().numpy() * change))
            assert float(z[entry]) == pytest.approx(first_order, rel=1e-9)


def test_mag_is_the_size() -> None:
    z_a, z_c = scores("mag", A, C, None)
    assert np.array_equal(z_a.numpy(), np.abs(A.numpy()))
    assert np.array_equal(z_c.numpy(), np.abs(C.numpy()))


@pytest.mark.parametrize("score", ["fisher", "taylor"])
def test_gradients_are_needed(score: str) -> None:
    with pytest.raises(ValueError, match=score):
        scores(score, A, C, None)


@pytest.mark.parametrize("rank", [0, 1, K])
def test_squared_error(rank: int) -> None:
    matrix = gauss(N, D, seed=3)
    a, c = A[:, :rank], C[:, :rank]
    expected = np.sum((matrix.double().numpy() - a.numpy() @ c.numpy().T) ** 2)
    assert squared_error(matrix, a, c) == pytest.approx(expected, rel=1e-12)


def test_squared_error_is_never_negative() -> None:
    matrix = (A @ C.T).float()
    assert 0 <= squared_error(matrix, A, C) <= 1e-12


def test_a_tail_is_split_between_the_factors() -> None:
    tail = Tail.of(A[:, :2], C[:, :2], np.array([2 * N + 9, 3, 2 * N, 0, 2 * N - 1]))
    assert tail.kept_a.tolist() == [0, 3, 2 * N - 1]
    assert tail.kept_c.tolist() == [0, 9]
