"""Joint diagonalisation against the same alternation on dense matrices in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kinfold.family import jd

ROWS, COLUMNS = 14, 11
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def family(members: int, rank: int, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(ROWS, rank, generator=generator, dtype=torch.float64),
            torch.randn(COLUMNS, rank, generator=generator, dtype=torch.float64),
        )
        for _ in range(members)
    ]


def dense(pairs: Pairs) -> list[np.ndarray]:
    return [a.numpy() @ c.numpy().T for a, c in pairs]


def error(model: jd.Jd, deltas: list[np.ndarray]) -> float:
    u, v = model.u.numpy(), model.v.numpy()
    return sum(
        float(((delta - u @ core.numpy() @ v.T) ** 2).sum()) for delta, core in zip(deltas, model.cores, strict=True)
    )


def by_numpy(deltas: list[np.ndarray], rank: int, rounds: int) -> float:
    """Energy that alternating top singular vectors of the dense deltas capture."""
    v = np.linalg.svd(np.concatenate([delta.T for delta in deltas], 1))[0][:, :rank]
    for _ in range(rounds):
        u = np.linalg.svd(np.concatenate([delta @ v for delta in deltas], 1))[0][:, :rank]
        v = np.linalg.svd(np.concatenate([delta.T @ u for delta in deltas], 1))[0][:, :rank]
    return sum(float(((u.T @ delta @ v) ** 2).sum()) for delta in deltas)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("members", [1, 4, 7])  # 7 of rank 3: more columns than rows
def test_it_captures_what_the_dense_loop_does(members: int, rank: int) -> None:
    pairs = family(members, 3)
    deltas = dense(pairs)
    model = jd.fit(pairs, rank, close=0.0)
    captured = sum(float((delta**2).sum()) for delta in deltas) - error(model, deltas)
    assert captured == pytest.approx(by_numpy(deltas, rank, 50), rel=1e-9)
    identity = np.eye(model.u.shape[1])
    assert np.allclose((model.u.T @ model.u).numpy(), identity, atol=1e-12)
    assert np.allclose((model.v.T @ model.v).numpy(), identity, atol=1e-12)


def test_the_error_never_rises_by_round_or_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = family(5, 3)
    deltas = dense(pairs)
    by_rank = [error(jd.fit(pairs, rank), deltas) for rank in range(1, 12)]
    assert all(after <= before for before, after in itertools.pairwise(by_rank))
    by_round = []
    for rounds in range(1, 12):
        monkeypatch.setattr(jd, "_ROUNDS", rounds)
        by_round.append(error(jd.fit(pairs, 4, close=0.0), deltas))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(by_round))
    assert by_round[-1] < by_round[0]


def test_stopping_early_costs_about_what_was_allowed() -> None:
    pairs = family(5, 3)
    deltas = dense(pairs)
    whole = sum(float((delta**2).sum()) for delta in deltas)
    rough, fine = (whole - error(jd.fit(pairs, 4, close=close), deltas) for close in (1e-2, 1e-7))
    assert 0.9 * fine < rough <= fine * (1 + 1e-12)


def test_as_many_columns_as_all_factors_together_are_exact() -> None:
    pairs = family(3, 2)
    model = jd.fit(pairs, 6)
    assert model.u.shape == (ROWS, 6)
    for delta, core in zip(dense(pairs), model.cores, strict=True):
        assert np.allclose(model.u.numpy() @ core.numpy() @ model.v.numpy().T, delta, rtol=0, atol=1e-9)


def test_more_columns_than_there_can_be_are_not_made() -> None:
    assert jd.fit(family(2, 2), 100).u.shape == (ROWS, 4)
    wide = jd.fit(family(7, 3), 100)
    assert (wide.u.shape, wide.v.shape) == ((ROWS, 11), (COLUMNS, 11))


def test_zero_members_and_single_precision() -> None:
    zero = [(torch.zeros(ROWS, 2), torch.zeros(COLUMNS, 2))] * 2
    model = jd.fit(zero, 2)
    assert error(model, dense(zero)) == 0
    assert model.u.isfinite().all()
    single = [(a.float(), c.float()) for a, c in family(3, 2)]
    assert jd.fit(single, 3).u.dtype == torch.float64
