"""`knots` from factors and from dense deltas, against numpy's SVD of the matrices side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from merge_family import Factors

from kinfold.family.merge import knots as module
from kinfold.family.merge.choice import choose
from kinfold.family.merge.registry import Site
from kinfold.family.merge.ties import ties

WEIGHTS = [1.0, 0.5, 2.0]


def dense(factors: Factors) -> list[torch.Tensor]:
    return [a @ c.T for a, c in factors]


def by_numpy(deltas: list[np.ndarray], weights: list[float], density: float) -> np.ndarray:
    """KnOTS with ties inside, signs of the SVD aside: ties does not see them."""
    u, s, vt = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    kept = s > 1e-5 * s[0]
    parts = np.split(s[kept, None] * vt[kept], len(deltas), 1)
    merged = ties([torch.tensor(part) for part in parts], weights, density=density)
    return u[:, kept] @ merged.numpy()


def test_with_task_arithmetic_inside_it_is_task_arithmetic(factors: Factors) -> None:
    choice = choose("knots", "task_arithmetic", {})
    site = Site(factors=lambda: list(factors))
    found, through = choice.merge(dense(factors), WEIGHTS, site)
    wanted = 0.4 * sum(w * delta for w, delta in zip(WEIGHTS, dense(factors), strict=True))
    assert through
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_directions_are_those_of_the_matrices_side_by_side(factors: Factors) -> None:
    coordinates, u = module.from_factors(factors)
    torch.testing.assert_close(u.T @ u, torch.eye(10, dtype=torch.float64))
    singular = np.linalg.svd(torch.cat(dense(factors), 1).numpy(), compute_uv=False)[:10]
    np.testing.assert_allclose(torch.cat(coordinates, 1).norm(dim=1).numpy(), singular, rtol=1e-10)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_ties_inside_agrees_with_numpy(factors: Factors, density: float) -> None:
    wanted = by_numpy([delta.numpy() for delta in dense(factors)], WEIGHTS, density)
    choice = choose("knots", None, {"density": density, "scope": "tensor"})
    found, _ = choice.merge(dense(factors), WEIGHTS, Site(factors=lambda: list(factors)))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 30), (90, 20), (8, 3, 2, 2)])
def test_dense_deltas_wide_tall_and_kernels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    deltas = [torch.randn(shape, generator=generator) for _ in range(3)]
    flat = [delta.double().numpy().reshape(shape[0], -1) for delta in deltas]
    wanted = by_numpy(flat, WEIGHTS, 0.3).reshape(shape)
    choice = choose("knots", None, {"density": 0.3, "scope": "tensor"})
    for known in ([], [None, None, None]):
        found, through = choice.merge([delta.clone() for delta in deltas], WEIGHTS, Site(factors=lambda: known))  # noqa: B023
        assert through
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)


def test_zeros_stay_zero_and_vectors_pass_by() -> None:
    choice = choose("knots", None, {})
    for shape in ((4, 9), (90, 3)):
        found, through = choice.merge([torch.zeros(shape)] * 2, [1, 1], Site())
        assert through
        assert torch.equal(found, torch.zeros(shape))
    assert choice.merge([torch.ones(5)] * 2, [1, 1], Site())[1] is False
    assert choice.merge([torch.ones(0, 5)] * 2, [1, 1], Site())[1] is False


def test_a_matrix_too_large_for_its_gram_passes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_SIDE", 10)
    deltas = [torch.randn(11, 12, generator=torch.Generator().manual_seed(0))]
    found, through = choose("knots", None, {"density": 1.0}).merge(list(deltas), [1], Site())
    assert not through
    assert torch.equal(found, deltas[0])
