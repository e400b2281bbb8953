"""`core_space` from factors and from full deltas."""

from __future__ import annotations

import torch
from merge_family import Factors

from kinfold.family.merge.choice import choose
from kinfold.family.merge.core_space import core_space
from kinfold.family.merge.registry import Site

WEIGHTS = [1.0, 0.5, 2.0]


def dense(factors: Factors) -> list[torch.Tensor]:
    return [a @ c.T for a, c in factors]


def test_with_task_arithmetic_inside_it_is_task_arithmetic(factors: Factors) -> None:
    site = Site(factors=lambda: list(factors))
    found, _ = choose("core_space", "task_arithmetic", {}).merge(dense(factors), WEIGHTS, site)
    wanted = 0.4 * sum(w * delta for w, delta in zip(WEIGHTS, dense(factors), strict=True))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_cores_are_small_and_lose_nothing(factors: Factors) -> None:
    result = core_space(dense(factors), site=Site(factors=lambda: list(factors)))
    assert result is not None
    cores, back = result
    assert {tuple(core.shape) for core in cores} == {(10, 10)}
    for core, delta in zip(cores, dense(factors), strict=True):
        torch.testing.assert_close(back(core), delta, rtol=1e-10, atol=1e-10)


def test_full_deltas_go_in_by_their_leading_triplets(factors: Factors) -> None:
    deltas = dense(factors)
    whole = core_space(deltas, site=Site(), rank=5)
    assert whole is not None
    torch.testing.assert_close(whole[1](whole[0][1]), deltas[1], rtol=1e-8, atol=1e-8)
    less = core_space(deltas, site=Site(factors=lambda: [None, factors[1], None]), rank=1)
    assert less is not None
    u, s, vt = torch.linalg.svd(deltas[0])
    torch.testing.assert_close(less[1](less[0][0]), s[0] * u[:, :1] @ vt[:1])
    torch.testing.assert_close(less[1](less[0][1]), deltas[1], rtol=1e-8, atol=1e-8)  # factors are never cut


def test_kernels_zeros_and_vectors() -> None:
    kernels = [torch.randn(6, 2, 3, 1, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found, through = choose("core_space", "task_arithmetic", {"scale": 1.0}).merge(list(kernels), [1, 1], Site())
    assert through
    torch.testing.assert_close(found.float(), kernels[0] + kernels[1])
    nothing, _ = choose("core_space", None, {}).merge([torch.zeros(4, 5)] * 2, [1, 1], Site())
    assert torch.equal(nothing.float(), torch.zeros(4, 5))
    assert choose("core_space", None, {}).merge([torch.ones(4)] * 2, [1, 1], Site())[1] is False
