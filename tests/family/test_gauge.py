"""Balanced and rotated factors: other coordinates, the same products; norms and errors against dense numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kinfold.family import gauge

ROWS, COLUMNS, RANK = 11, 8, 4


def draw(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(seed: int, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return draw(generator, ROWS, rank), draw(generator, COLUMNS, rank)


def dense(pair: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    return pair[0].numpy() @ pair[1].numpy().T


def products(stacked: torch.Tensor) -> list[np.ndarray]:
    return [dense((z[:ROWS], z[ROWS:])) for z in stacked.unbind(-1)]


def spread(stacked: torch.Tensor) -> float:
    z = stacked.numpy()
    return float(((z - z.mean(-1, keepdims=True)) ** 2).sum())


def stack(members: int, seed: int = 0) -> torch.Tensor:
    return torch.stack([torch.cat(pair(seed + number)) for number in range(members)], -1)


@pytest.mark.parametrize("rank", [1, 4, 10])  # 10: more columns than C has rows
def test_balanced_is_the_svd_with_its_root_on_both_sides(rank: int) -> None:
    given = pair(3, rank)
    a, c = gauge.balanced(*given)
    assert np.allclose(dense((a, c)), dense(given), rtol=0, atol=1e-12)
    s = np.linalg.svd(dense(given), compute_uv=False)[: min(rank, COLUMNS)]
    for factor in (a, c):
        gram = (factor.T @ factor).numpy()[: len(s), : len(s)]
        assert np.allclose(gram, np.diag(s), rtol=0, atol=1e-10)
    peaks = a.gather(0, a.abs().argmax(0, keepdim=True))
    assert (peaks >= 0).all()


def test_balanced_has_nothing_to_do_without_columns() -> None:
    a, c = gauge.balanced(torch.zeros(5, 0), torch.zeros(3, 0))
    assert (a.shape, c.shape) == ((5, 0), (3, 0))


def test_alignment_leaves_every_product() -> None:
    given = stack(5)
    for before, after in zip(products(given), products(gauge.aligned(given)), strict=True):
        assert np.linalg.norm(after - before) <= 1e-10 * np.linalg.norm(before)


def test_the_objective_never_rises_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        given, found = stack(6, 10 * seed), []
        for rounds in range(1, 25):
            monkeypatch.setattr(gauge, "_ROUNDS", rounds)
            found.append(spread(gauge.aligned(given)))
        assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(found))
        assert found[-1] < spread(given)


def test_planted_rotations_are_found() -> None:
    common = torch.cat(pair(1))
    rotations = [np.linalg.qr(np.random.default_rng(seed).standard_normal((RANK, RANK)))[0] for seed in range(6)]
    given = torch.stack([common @ torch.from_numpy(rotation) for rotation in rotations], -1)
    found = gauge.aligned(given)
    assert spread(given) > 1
    for member in found.unbind(-1):
        assert torch.allclose(member, found[..., 0], rtol=0, atol=1e-8)


def test_a_zero_member_stays_zero_and_turns_nobody() -> None:
    common = torch.cat(pair(1))
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((RANK, RANK)))[0])
    found = gauge.aligned(torch.stack([common, torch.zeros_like(common), common @ rotation], -1))
    assert not found[..., 1].any()
    assert torch.allclose(found[..., 0], found[..., 2], rtol=0, atol=1e-8)
    assert not gauge.aligned(torch.zeros(5, 2, 3, dtype=torch.float64)).any()


def test_errors_and_norms_are_those_of_the_dense_products() -> None:
    one, two = pair(1), pair(2, rank=7)
    assert gauge.squared_product_norm(one) == pytest.approx(np.linalg.norm(dense(one)) ** 2, rel=1e-12)
    wanted = np.linalg.norm(dense(one) - dense(two)) ** 2
    assert gauge.squared_product_error(one, two) == pytest.approx(wanted, rel=1e-12)
    assert gauge.squared_product_error(one, one) == pytest.approx(0, abs=1e-10)


def test_shared_energy_lies_between_nothing_and_everything() -> None:
    pairs = [pair(seed) for seed in range(5)]
    deltas = np.stack([dense(p) for p in pairs])
    wanted = 5 * np.linalg.norm(deltas.mean(0)) ** 2 / sum(np.linalg.norm(delta) ** 2 for delta in deltas)
    assert gauge.shared_energy(pairs) == pytest.approx(wanted, rel=1e-12)
    assert gauge.shared_energy([pairs[0]] * 3) == pytest.approx(1, rel=1e-12)
    apart = torch.linalg.qr(draw(torch.Generator().manual_seed(0), ROWS, 8))[0].split(2, 1)
    orthogonal = [(part, pair(7, rank=2)[1]) for part in apart]
    assert gauge.shared_energy(orthogonal) == pytest.approx(1 / 4, rel=1e-12)
    assert gauge.shared_energy([(torch.zeros(3, 1), torch.zeros(2, 1))]) == 0
