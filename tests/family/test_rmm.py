"""Reversible merging of factors against numpy's SVD at every position, and the laws of the paper."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kinfold.family import rmm

Pairs = list[tuple[torch.Tensor, torch.Tensor]]
ROWS, COLUMNS = 9, 7


def family(members: int, rank: int, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(draw(ROWS, rank), draw(COLUMNS, rank)) for _ in range(members)]


def stacked(pairs: Pairs, rank: int) -> np.ndarray:
    """(P, r, n) by numpy."""
    columns = []
    for a, c in pairs:
        z = np.concatenate([a.numpy(), c.numpy()])
        columns.append(np.pad(z, ((0, 0), (0, rank - z.shape[1]))))
    return np.stack(columns, -1)


def dropped(rest: np.ndarray, directions: int) -> float:
    """Sum of the squared singular values from `directions` on, over all positions."""
    return sum(float((np.linalg.svd(at, compute_uv=False)[directions:] ** 2).sum()) for at in rest)


def missed(model: rmm.Rmm, wanted: np.ndarray) -> float:
    found = np.stack([model.stacked(i).numpy() for i in range(wanted.shape[-1])], -1)
    return float(((found - wanted) ** 2).sum())


@pytest.mark.parametrize(("members", "rank"), [(1, 3), (2, 5), (4, 3), (6, 5), (3, 3)])
def test_with_all_directions_factors_and_products_come_back(members: int, rank: int) -> None:
    pairs = family(members, rank)
    model = rmm.fit(rmm.stack(pairs, rank))
    assert model.basis.shape[-1] == rmm.most_directions(members, rank) == min(members - 1, rank)
    for number, (a, c) in enumerate(pairs):
        found_a, found_c = rmm.split(model.stacked(number), ROWS)
        assert torch.allclose(found_a, a, rtol=0, atol=1e-10)
        assert torch.allclose(found_c, c, rtol=0, atol=1e-10)
        assert np.allclose(found_a.numpy() @ found_c.numpy().T, a.numpy() @ c.numpy().T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("members", [2, 5, 8])
def test_the_factor_error_is_what_the_svd_drops(members: int, center: bool) -> None:
    wanted = stacked(family(members, 4), 4)
    model = rmm.fit(torch.from_numpy(wanted), center=center)
    rest = wanted - wanted.mean(-1, keepdims=True) if center else wanted
    errors = []
    for directions in range(model.basis.shape[-1] + 1):
        errors.append(missed(model.cut(directions), wanted))
        assert errors[-1] == pytest.approx(dropped(rest, directions), rel=1e-10, abs=1e-20)
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_centred_directions_never_beat_one_more_uncentred() -> None:
    """The mean and p directions span an affine space, which lies in a linear one of p + 1 dimensions."""
    for seed in range(5):
        wanted = stacked(family(6, 4, seed), 4) + seed  # a common part as well
        centred, plain = (rmm.fit(torch.from_numpy(wanted), center=center) for center in (True, False))
        for directions in range(4):
            assert missed(centred.cut(directions), wanted) >= missed(plain.cut(directions + 1), wanted) * (1 - 1e-12)


@pytest.mark.parametrize("directions", [0, 1, 3])
def test_the_mean_of_the_unfolded_factors_is_the_stored_mean(directions: int) -> None:
    model = rmm.fit(rmm.stack(family(5, 4), 4)).cut(directions)
    found = torch.stack([model.stacked(i) for i in range(5)]).mean(0)
    assert torch.allclose(found, model.mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("members", "rank", "directions"), [(1, 3, 0), (4, 3, 2), (8, 16, 5)])
def test_numbers_stored(members: int, rank: int, directions: int) -> None:
    model = rmm.fit(rmm.stack(family(members, rank), rank)).cut(directions)
    held = sum(part.numel() for part in (model.mean, model.basis, model.coefficients))
    positions = ROWS + COLUMNS
    assert held == positions * (rank + rank * directions + directions * members)
    assert rmm.stored_numbers(positions, rank, directions, members) == held


@pytest.mark.parametrize("center", [True, False])
def test_many_members_give_by_gram_what_numpy_gives_by_svd(center: bool) -> None:
    members, rank = 70, 5
    wanted = stacked(family(members, rank), rank) + 0.5
    model = rmm.fit(torch.from_numpy(wanted), center=center)
    rest = wanted - wanted.mean(-1, keepdims=True) if center else wanted
    for directions in range(rank + 1):
        assert missed(model.cut(directions), wanted) == pytest.approx(dropped(rest, directions), rel=1e-8, abs=1e-16)
    u, s, v = np.linalg.svd(rest, full_matrices=False)
    sign = np.sign(np.take_along_axis(u, np.abs(u).argmax(1)[:, None], 1))
    assert np.allclose(model.basis.numpy(), u * sign, rtol=0, atol=1e-8)
    assert np.allclose(model.coefficients.numpy(), s[..., None] * v * sign.transpose(0, 2, 1), rtol=0, atol=1e-8)


def test_both_ways_agree_where_either_could_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = rmm.stack(family(20, 6), 6)
    by_svd = rmm.fit(stack)
    monkeypatch.setattr(rmm, "_GRAM_MEMBERS", 0)
    by_gram = rmm.fit(stack)
    assert torch.allclose(by_svd.basis, by_gram.basis, rtol=0, atol=1e-8)
    assert torch.allclose(by_svd.coefficients, by_gram.coefficients, rtol=0, atol=1e-8)


def test_equal_members_by_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gram matrix of zeros: nothing is divided by nothing."""
    monkeypatch.setattr(rmm, "_GRAM_MEMBERS", 0)
    model = rmm.fit(rmm.stack(family(1, 3) * 4, 3))
    assert model.coefficients.isfinite().all()
    assert missed(model, stacked(family(1, 3) * 4, 3)) < 1e-25


def test_signs_are_canonical_and_bases_orthonormal() -> None:
    model = rmm.fit(rmm.stack(family(5, 4), 4))
    peaks = model.basis.gather(1, model.basis.abs().argmax(1, keepdim=True))
    assert (peaks > 0).all()
    identity = model.basis.transpose(1, 2) @ model.basis
    assert torch.allclose(identity, torch.eye(4, dtype=torch.float64).expand_as(identity), atol=1e-12)


def test_a_zero_member_and_two_ranks() -> None:
    wide, narrow = family(2, 5), family(1, 2, seed=3)
    pairs = [*wide, *narrow, (torch.zeros(ROWS, 2), torch.zeros(COLUMNS, 2))]
    model = rmm.fit(rmm.stack(pairs, 5))
    assert model.basis.shape[-1] == 3
    for number, (a, c) in enumerate(pairs):
        found_a, found_c = rmm.split(model.stacked(number), ROWS)
        assert np.allclose(found_a.numpy() @ found_c.numpy().T, a.numpy() @ c.numpy().T, rtol=0, atol=1e-9)
        assert np.allclose(found_a.numpy()[:, a.shape[1] :], 0, atol=1e-12)
    assert float(model.stacked(3).abs().max()) < 1e-12


def test_one_member_is_its_own_mean() -> None:
    (pair,) = family(1, 3)
    model = rmm.fit(rmm.stack([pair], 3))
    assert torch.equal(model.stacked(0), torch.cat(pair))
    assert rmm.most_directions(0, 3) == 0
