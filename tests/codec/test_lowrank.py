"""Leading singular triplets, against numpy's SVD and against spectra built in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deltas import decaying, gauss, with_spectrum

from kinfold.codec.lowrank import (
    EXACT_SIDE,
    Factors,
    as_matrix,
    leading,
    multiply,
    multiply_transposed,
    spectrum,
)


def assert_canonical(factors: Factors) -> None:
    """Orthonormal columns, falling values, the first largest entry of each column of U positive."""
    u, s, v = factors.u.numpy(), factors.s.numpy(), factors.v.numpy()
    assert np.allclose(u.T @ u, np.eye(s.size), atol=1e-9)
    assert np.allclose(v.T @ v, np.eye(s.size), atol=1e-9)
    assert np.all(np.diff(s) <= 0)
    assert np.all(u[np.abs(u).argmax(0), np.arange(s.size)] > 0)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    delta = gauss(*shape).to(dtype)
    u, s, vt = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    rank = min(5, *shape)
    factors = leading(delta, rank)
    assert_canonical(factors)
    assert np.allclose(factors.s.numpy(), s[:rank], rtol=1e-10)
    mine = (factors.u * factors.s) @ factors.v.T
    assert np.allclose(mine.numpy(), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-10)
    assert np.allclose(spectrum(delta).numpy(), s, rtol=1e-7, atol=1e-9 * s[0])


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_small_values_beside_large_ones(shape: tuple[int, int]) -> None:
    """All triplets give the matrix back although a Gram matrix squares the condition."""
    delta = with_spectrum(*shape, 10.0 ** -np.arange(0, 12, 0.5))
    factors = leading(delta, 24)
    assert torch.allclose((factors.u * factors.s) @ factors.v.T, delta, rtol=0, atol=1e-14)


def test_balanced_factors() -> None:
    delta = decaying(20, 30)
    factors = leading(delta, 6)
    a, c = factors.balanced(4)
    u, s, vt = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    assert np.allclose((a @ c.T).numpy(), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-12)
    assert np.allclose(a.norm(dim=0), c.norm(dim=0))
    assert np.allclose(a.norm(dim=0) ** 2, s[:4])


def test_randomised() -> None:
    """Past the size that is solved exactly; values 0.8^j, known from how the matrix is made."""
    sigma = 0.8 ** np.arange(30)
    delta = with_spectrum(EXACT_SIDE + 30, EXACT_SIDE + 6, sigma).float()
    factors = leading(delta, 8, seed=3)
    assert_canonical(factors)
    assert factors.s.shape == (8,)
    assert np.allclose(factors.s.numpy(), sigma[:8], rtol=1e-5)
    left = delta.double() - (factors.u * factors.s) @ factors.v.T
    assert float(left.norm()) ** 2 == pytest.approx(np.sum(sigma[8:] ** 2), rel=1e-4)
    again = leading(delta, 8, seed=3)
    assert torch.equal(again.u, factors.u)
    assert torch.equal(again.v, factors.v)


@pytest.mark.parametrize("delta", [torch.zeros(6, 9), torch.ones(9, 6), torch.eye(7)], ids=["zero", "rank-1", "eye"])
def test_repeated_values(delta: torch.Tensor) -> None:
    factors = leading(delta, 9)
    assert torch.isfinite(factors.u).all()
    assert torch.allclose(((factors.u * factors.s) @ factors.v.T).float(), delta, atol=1e-6)


def test_rank_zero_and_too_large_a_rank() -> None:
    assert leading(gauss(5, 8), 0).u.shape == (5, 0)
    assert leading(gauss(5, 8), 99).v.shape == (8, 5)


def test_products_in_blocks_of_rows() -> None:
    """More rows than are converted at once."""
    delta, right, left = gauss(2500, 7), gauss(7, 3, seed=1).double(), gauss(2500, 3, seed=2).double()
    exact = delta.double().numpy()
    assert np.allclose(multiply(delta, right), exact @ right.numpy(), rtol=1e-12)
    assert np.allclose(multiply_transposed(delta, left), exact.T @ left.numpy(), rtol=1e-10)


def test_kernels_are_flattened() -> None:
    kernel = gauss(8, 4, 3, 3)
    assert torch.equal(as_matrix(kernel), kernel.flatten(1))
