"""`dare`: the seeded mask by sorting its keys, and an estimate without bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deltas import gauss, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec import Payload, create
from kinfold.codec.dare import kept_mask
from kinfold.codec.random import uniform_bits
from kinfold.errors import BudgetError, CodecError, PackError


@given(st.integers(1, 500), st.floats(0, 1.2), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_mask_is_the_lowest_keys(cells: int, share: float, seed: int) -> None:
    count = round(share * cells)
    mask, drawn = kept_mask(cells, count, seed)
    lowest = np.argsort(uniform_bits(seed, 0, cells).numpy(), kind="stable")[:count]
    assert np.flatnonzero(mask).tolist() == sorted(lowest.tolist())
    assert drawn == mask.sum() == min(count, cells)


def test_mask_of_many_chunks() -> None:
    """More keys than are drawn at once come from one stream."""
    cells = (1 << 20) + 1003
    mask, drawn = kept_mask(cells, 5000, 3)
    keys = uniform_bits(3, 0, cells).numpy()
    assert drawn == 5000
    assert np.array_equal(mask, keys < np.sort(keys)[5000])


def test_equal_keys_keep_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.tensor([5, 1, 5, 5, 2, 9])
    monkeypatch.setattr("kinfold.codec.dare.uniform_bits", lambda seed, start, count: keys[start : start + count])
    mask, drawn = kept_mask(6, 3, 0)
    assert mask.tolist() == [False, True, False, False, True, False]
    assert drawn == 2


def test_mean_over_seeds_is_the_delta() -> None:
    """Each entry within five standard errors: a kept entry is D / p with probability p."""
    delta, seeds = gauss(12, 10), 200
    codec = create("dare", {"value_bits": 16})
    bits = 8 * (4 + 2 * 30)  # a float32, and 30 values of 120
    total = np.zeros((12, 10))
    for seed in range(seeds):
        payload = codec.encode(delta, budget_bits=bits, seed=seed)
        restored = codec.decode(payload, (12, 10)).double().numpy()
        assert payload.params["s"] == 30
        assert np.count_nonzero(restored) == 30
        total += restored
    p = 30 / 120
    exact = delta.double().numpy()
    standard_error = np.abs(exact) * np.sqrt((1 - p) / p / seeds)
    assert np.all(np.abs(total / seeds - exact) <= 5 * standard_error)


@pytest.mark.parametrize(("width", "tolerance"), [(16, 2.0**-11), (8, 3 / 127), (4, 3 / 7)])
def test_kept_values(width: int, tolerance: float) -> None:
    """Half a step of those that spread over three standard deviations, and clipped beyond them."""
    delta = gauss(30, 40)
    codec = create("dare", {"value_bits": width})
    payload = codec.encode(delta, budget_bits=8 * (4 + 300 * width // 8), seed=11)
    kept, drawn = kept_mask(1200, 300, 11)
    assert drawn == payload.params["s"] == 300
    restored = codec.decode(payload, (30, 40)).reshape(-1).double().numpy() * 300 / 1200
    flat = delta.reshape(-1).double().numpy()
    sigma = np.sqrt(np.mean(flat**2))
    assert not restored[~kept].any()
    expected = flat[kept] if width == 16 else np.clip(flat[kept], -3 * sigma, 3 * sigma)
    unit = np.abs(flat).max() if width == 16 else sigma
    assert np.all(np.abs(restored[kept] - expected) <= 0.5 * tolerance * unit * 1.001)


def test_one_bit_is_sign_times_mean_size() -> None:
    delta = gauss(30, 40)
    codec = create("dare", {"value_bits": 1})
    payload = codec.encode(delta, budget_bits=8 * (4 + 50), seed=2)
    kept, _ = kept_mask(1200, 400, 2)
    restored = codec.decode(payload, (30, 40)).reshape(-1).double().numpy()
    flat = delta.reshape(-1).double().numpy()
    assert np.allclose(restored[kept], 3 * np.abs(flat).mean() * np.sign(flat[kept]), rtol=1e-6)


def test_everything_kept_is_the_delta() -> None:
    delta = gauss(9, 11)
    codec = create("dare", {"value_bits": 16})
    payload = codec.encode(delta, budget_bits=1 << 20, seed=1)
    assert payload.params["s"] == 99
    assert relative_error(delta, codec.decode(payload, (9, 11))) < 1e-3


@pytest.mark.parametrize(("keep", "count"), [(0.1, 120), (1.0, 1200), (1e-9, 1)])
def test_keep(keep: float, count: int) -> None:
    """As published: the share is given, and a larger budget is left unused."""
    codec = create("dare", {"value_bits": 16, "keep": keep})
    assert codec.minimum_bits((30, 40)) == 8 * (4 + 2 * count)
    payload = codec.encode(gauss(30, 40), budget_bits=1 << 20, seed=5)
    assert payload.params["s"] == count
    assert len(payload.data) == codec.plan((30, 40), torch.float32, 1 << 20).nbytes == 4 + 2 * count
    assert codec.shares([(30, 40), (10, 10)], 1 << 20)[0] == 8 * (4 + 2 * count)
    with pytest.raises(BudgetError, match="keep=") as caught:
        codec.shares([(30, 40)], 8 * (4 + 2 * count) - 1)
    assert caught.value.least_bytes == 4 + 2 * count


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, "half"])
def test_keep_is_checked(keep: object) -> None:
    with pytest.raises(CodecError, match="keep"):
        create("dare", {"keep": keep})


def test_another_seed_is_another_mask() -> None:
    codec, delta = create("dare", {"value_bits": 1}), gauss(20, 20)
    first, second = (codec.encode(delta, budget_bits=200, seed=seed) for seed in (1, 2))
    assert not torch.equal(codec.decode(first, (20, 20)) != 0, codec.decode(second, (20, 20)) != 0)
    # the seed is not stored: the reader derives it from the tensor's name
    moved = Payload(first.data, first.params, seed=2)
    assert torch.equal(codec.decode(moved, (20, 20)) != 0, codec.decode(second, (20, 20)) != 0)


@pytest.mark.parametrize(
    ("data", "params"),
    [
        ("0000803f" + "003c", {"s": 5, "w": 16}),
        ("0000803f" + "003c", {"s": -1, "w": 16}),
        ("0000803f" + "003c", {"s": 1.0, "w": 16}),
        ("0000803f" + "003c", {"s": 1, "w": 16.0}),
        ("0000803f" + "003c", {"s": 1, "w": 2}),
        ("0000803f" + "003c", {"s": 2, "w": 16}),
        ("0000803f" + "007e", {"s": 1, "w": 16}),  # NaN
        ("0000807f" + "003c", {"s": 1, "w": 16}),  # infinity
        ("0000807f" + "0000", {"s": 1, "w": 16}),  # infinity times zero
        ("ffff7f7f" + "003c", {"s": 1, "w": 16}),  # finite, but not four times as much
        ("0000803f" + "02", {"s": 1, "w": 1}),  # a second sign of one
    ],
)
def test_damage_is_refused(data: str, params: dict[str, object]) -> None:
    with pytest.raises(PackError):
        create("dare").decode(Payload(bytes.fromhex(data), params), (2, 2))
