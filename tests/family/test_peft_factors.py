"""Factors and what they lose, against numpy's SVD."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kinfold.family.peft_factors import factors_of


def member(**deltas: Any) -> Any:
    """Tensors are dense deltas, tuples are factors."""
    pairs = {name: delta for name, delta in deltas.items() if isinstance(delta, tuple)}
    return SimpleNamespace(factors=pairs.get, delta=deltas.__getitem__)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(30, 20), (12, 5, 2, 3)])
def test_a_dense_delta_gets_its_leading_triplets(shape: tuple[int, ...]) -> None:
    delta = drawn(*shape)
    (found,) = factors_of(member(a=delta), ["a"], 4, or_whole=True)
    matrix = delta.reshape(shape[0], -1).double().numpy()
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    assert found.pair is not None
    a, c = (factor.double().numpy() for factor in found.pair)
    np.testing.assert_allclose(a @ c.T, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)
    assert found.energy == pytest.approx((s**2).sum(), rel=1e-9)
    assert found.lost == pytest.approx((s[4:] ** 2).sum(), rel=1e-5)


def test_factors_stay_or_are_cut() -> None:
    a, c = drawn(30, 6).double(), drawn(20, 6).double()
    given = member(a=(a, c))
    (kept,) = factors_of(given, ["a"], None, or_whole=True)
    assert kept.pair is not None
    assert torch.equal(kept.pair[0], a.float())
    assert torch.equal(kept.pair[1], c.float())
    assert kept.lost == 0
    (cut,) = factors_of(given, ["a"], 2, or_whole=True)
    s = np.linalg.svd((a @ c.T).numpy(), compute_uv=False)
    assert cut.lost == pytest.approx((s[2:] ** 2).sum(), rel=1e-9)
    assert cut.energy == pytest.approx((s**2).sum(), rel=1e-9)


def test_no_more_columns_than_the_delta_has_rank() -> None:
    (found,) = factors_of(member(a=drawn(40, 2) @ drawn(2, 40)), ["a"], 8, or_whole=True)
    assert found.pair is not None
    assert found.pair[0].shape == (40, 2)


def test_what_is_no_larger_whole_gets_no_factors() -> None:
    head = drawn(3, 40)
    assert [f.pair for f in factors_of(member(a=head), ["a"], 8, or_whole=True)] == [None]
    (found,) = factors_of(member(a=head), ["a"], 8, or_whole=False)
    assert found.pair is not None
    assert found.pair[0].shape == (3, 3)


def test_a_delta_of_zero_gets_none() -> None:
    zeros = member(a=torch.zeros(40, 40), b=(torch.zeros(40, 0).double(), torch.zeros(40, 0).double()))
    found = [*factors_of(zeros, ["a", "b"], 8, or_whole=True)]
    assert [(f.name, f.pair, f.energy, f.lost) for f in found] == [("a", None, 0, 0), ("b", None, 0, 0)]


def test_order_is_kept() -> None:
    deltas = {f"{n}": drawn(30, 30 + n) for n in range(9)}
    assert [found.name for found in factors_of(member(**deltas), list(deltas), 2, or_whole=True)] == list(deltas)
