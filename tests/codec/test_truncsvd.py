"""`truncsvd` against numpy's SVD, and its two ways to spread ranks over a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deltas import decaying, gauss, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec import Payload, create
from kinfold.codec.truncsvd import TruncSvd
from kinfold.errors import BudgetError, CodecError, PackError

N, D = 40, 60
RANK_32 = 32 * (N + D)  # bits of a rank at 32 bits


def pair_bytes(n: int, d: int, rank: int, width: int) -> int:
    """Values, an exponent a factor, and at 8 bits and fewer 16 bits a column of each."""
    if rank == 0 or width == 32:
        return 4 * rank * (n + d)
    shared = 1 if width == 16 else 1 + 2 * rank
    return sum(shared - (-side * rank * width // 8) for side in (n, d))


def svd(delta: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(delta.double().numpy(), full_matrices=False)


@pytest.mark.parametrize("rank", [0, 1, 7, 39, 40])
def test_error_is_the_dropped_energy(rank: int) -> None:
    """Eckart and Young. The payload's own factors are multiplied in float64: rounding them to float32 moves
    the squared error only at second order, because the residual is orthogonal to both. What `decode`
    returns is a float32 product, whose rounding does not have that property, so it is held to 1e-6."""
    delta = decaying(N, D)
    codec = create("truncsvd", {"value_bits": 32})
    payload = codec.encode(delta, budget_bits=rank * RANK_32 + 31)
    assert payload.params == {"k": rank, "w": 32}
    numbers = np.frombuffer(payload.data, "<f4").astype(np.float64)
    a, c = numbers[: N * rank].reshape(N, rank), numbers[N * rank :].reshape(D, rank)
    u, s, vt = svd(delta)
    dropped, exact = np.sum(s[rank:] ** 2), delta.double().numpy()
    floor = 1e-13 * np.sum(s**2)
    assert np.sum((exact - a @ c.T) ** 2) == pytest.approx(dropped, rel=1e-9, abs=floor)
    restored = codec.decode(payload, (N, D)).double().numpy()
    assert np.sum((exact - restored) ** 2) == pytest.approx(dropped, rel=1e-6, abs=floor)
    # the pair that mergekit-extract-lora stores: U sqrt(S) and sqrt(S) V^T
    pair = (u[:, :rank] * np.sqrt(s[:rank])) @ (np.sqrt(s[:rank])[:, None] * vt[:rank])
    assert np.allclose(restored, pair, atol=1e-6 * s[0])


@pytest.mark.parametrize(("width", "tolerance"), [(16, 1e-3), (8, 2e-2), (4, 0.25)])
def test_narrow_values(width: int, tolerance: float) -> None:
    """Close to the best pair of that rank; bits are w r (n + d), plus what a factor and a column carry."""
    delta, rank = decaying(N, D), 9
    carried = 16 if width == 16 else 16 + 32 * rank
    bits = width * rank * (N + D) + carried
    codec = create("truncsvd", {"value_bits": width})
    payload = codec.encode(delta, budget_bits=bits + 8)
    assert payload.params == {"k": rank, "w": width}
    assert 8 * len(payload.data) == bits
    u, s, vt = svd(delta)
    best = torch.from_numpy((u[:, :rank] * s[:rank]) @ vt[:rank])
    assert relative_error(best, codec.decode(payload, (N, D))) <= tolerance


@given(st.sampled_from([32, 16, 8, 4]), st.integers(1, 50), st.integers(1, 50), st.integers(0, 10**5))
@settings(deadline=None)
def test_plan_takes_the_largest_rank_that_fits(width: int, n: int, d: int, budget: int) -> None:
    codec = create("truncsvd", {"value_bits": width})
    sizes = [pair_bytes(n, d, rank, width) for rank in range(min(n, d) + 1)]
    assert codec.plan((n, d), torch.float32, budget).nbytes == max(size for size in sizes if 8 * size <= budget)


def ranks(bits: list[int], shapes: list[tuple[int, int]]) -> list[int]:
    """Of 16-bit pairs: 2 (n + d) bytes a rank and two exponents."""
    return [(b // 8 - 2) // (2 * sum(shape)) if b else 0 for b, shape in zip(bits, shapes, strict=True)]


def test_energy_keeps_the_largest_values_of_the_model() -> None:
    """Of equal shapes the ranks follow from one sort over all spectra."""
    deltas = [decaying(N, D, seed) * scale for seed, scale in enumerate((1.0, 0.3, 0.5, 2.0))]
    codec, shapes = TruncSvd(), [(N, D)] * 4
    surveys = [codec.survey(delta, 1 << 20, None) for delta in deltas]
    everything = np.sort(np.concatenate([svd(delta)[1] for delta in deltas]))[::-1]
    count = 30
    expected = [int(np.sum(svd(delta)[1] >= everything[count - 1])) for delta in deltas]
    assert len(set(expected)) == 4
    settled, bits = codec.settle(shapes, surveys, 16 * (N + D) * count + 4 * 16)
    assert ranks(bits, shapes) == expected
    payloads = [settled.encode(delta, budget_bits=b) for delta, b in zip(deltas, bits, strict=True)]
    assert [payload.params["k"] for payload in payloads] == expected
    assert [8 * len(payload.data) for payload in payloads] == bits


@pytest.mark.parametrize(
    ("small", "room", "expected"),
    [
        ([0.5, 0.4], 0, [0, 2]),  # 0.25 / 336 and 0.16 / 320 are more a bit than 1 / 3216
        ([0.25, 0.2], 0, [1, 0]),  # 0.0625 / 336 is less, though 0.25 / 336 would not be
        ([0.5, 0.4], 656, [1, 2]),
    ],
)
def test_energy_is_squared_values_a_bit(small: list[float], room: int, expected: list[int]) -> None:
    shapes = [(100, 100), (10, 10)]
    _, bits = TruncSvd().settle(shapes, [np.array([1.0, 0.1]), np.array(small)], 3216 + room)
    assert ranks(bits, shapes) == expected


def test_uniform_gives_every_matrix_the_same_rank() -> None:
    codec = create("truncsvd", {"allocation": "uniform"})
    shapes = [(N, D), (20, 30), (64, 16)]
    deltas = [decaying(*shape) * 10**seed for seed, shape in enumerate(shapes)]
    surveys = [codec.survey(delta, 1 << 20, None) for delta in deltas]
    _, bits = codec.settle(shapes, surveys, 8 * 2200)
    found = ranks(bits, shapes)
    assert max(found) - min(found) <= 1
    assert min(found) >= 4


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    st.one_of(st.integers(0, 2000), st.integers(0, 200_000)),
    st.sampled_from(["energy", "uniform"]),
    st.sampled_from([32, 16, 8, 4]),
)
@settings(deadline=None, max_examples=80)
def test_settle_never_exceeds_the_total(shapes: list[tuple[int, int]], total: int, allocation: str, width: int) -> None:
    codec = create("truncsvd", {"allocation": allocation, "value_bits": width})
    rng = np.random.default_rng(total)
    surveys = [np.sort(rng.exponential(size=min(shape)))[::-1] for shape in shapes]
    least = min(pair_bytes(n, d, 1, width) for n, d in shapes)
    if total < 8 * least:
        with pytest.raises(BudgetError, match=f"at least {least} bytes for one rank"):
            codec.settle(shapes, surveys, total)
        return
    _, bits = codec.settle(shapes, surveys, total)
    assert sum(bits) <= total
    assert all(8 * codec.plan(s, torch.float32, b).nbytes == b for s, b in zip(shapes, bits, strict=True))


def test_survey_of_a_large_matrix_is_its_leading_values() -> None:
    sigma = 0.5 ** np.arange(12)
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((side, 12)))[0] for side in (1100, 1030))
    survey = TruncSvd().survey(torch.from_numpy((u * sigma) @ v.T).float(), 16 * 2130, None)
    assert np.allclose(survey[:8], sigma[:8], rtol=1e-4)


def test_kernels() -> None:
    delta = gauss(8, 4, 3, 3)
    codec = create("truncsvd", {"value_bits": 32})
    restored = codec.decode(codec.encode(delta, budget_bits=1 << 20), (8, 4, 3, 3))
    assert relative_error(delta, restored) < 1e-6


@pytest.mark.parametrize("k", [-1, 41, 1.0, True, None, "1"])
def test_impossible_ranks_are_refused(k: object) -> None:
    with pytest.raises(PackError, match="impossible"):
        TruncSvd().decode(Payload(bytes(202), {"k": k, "w": 16}), (N, D))


def test_survey_refuses_nan() -> None:
    with pytest.raises(CodecError, match="NaN"):
        TruncSvd().survey(torch.full((3, 3), torch.nan), 1000, None)
