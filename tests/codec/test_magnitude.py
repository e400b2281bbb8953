"""`magnitude`: the entries a sort would keep, in a tensor and over a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from deltas import decaying, gauss
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec import Codec, Payload, create
from kinfold.errors import BudgetError, PackError


def kept(codec: Codec, payload: Payload, shape: tuple[int, ...]) -> np.ndarray:
    return np.flatnonzero(codec.decode(payload, shape).numpy())


def sparse_bytes(cells: int, count: int, width: int) -> int:
    """A mask or Elias-Fano, then an exponent and the values, or an exponent, a step and the values."""
    values = 1 + 2 * count if width == 16 else 3 + math.ceil(count * width / 8)
    if count in (0, cells):
        return values
    low = math.floor(math.log2(cells // count))
    elias_fano = math.ceil(count * low / 8) + math.ceil((count + (cells - 1) // 2**low + 1) / 8)
    return values + min(math.ceil(cells / 8), elias_fano)


@pytest.mark.parametrize("width", [16, 8, 4, 1])
@pytest.mark.parametrize("budget", [200, 3000, 12_000])
def test_keeps_the_largest(width: int, budget: int) -> None:
    """As many of the largest as fit, and one more would not."""
    delta = gauss(25, 40)
    codec = create("magnitude", {"value_bits": width, "scope": "tensor"})
    payload = codec.encode(delta, budget_bits=budget)
    count = payload.params["s"]
    largest = np.argsort(-np.abs(delta.reshape(-1).numpy()), kind="stable")[:count]
    assert kept(codec, payload, (25, 40)).tolist() == sorted(largest.tolist())
    assert len(payload.data) == sparse_bytes(1000, count, width)
    assert count == 1000 or 8 * sparse_bytes(1000, count + 1, width) > budget


def test_golden_bytes() -> None:
    # 4 and -1 of eight, in the 7 bytes allowed: a mask of places 2 and 5; 4 is half of 2^3; halves of 0.5, -0.125
    delta = torch.tensor([[0.0, 0.1, 4.0, 0.2], [0.0, -1.0, 0.3, 0.0]])
    codec = create("magnitude", {"value_bits": 16, "scope": "tensor"})
    payload = codec.encode(delta, budget_bits=48)
    assert payload.data.hex() == "24" + "03" + "0038" + "00b0"
    assert payload.params == {"s": 2, "w": 16}
    assert codec.decode(payload, (2, 4)).tolist() == [[0, 0, 4, 0], [0, -1, 0, 0]]


def test_equal_sizes_are_kept_from_the_front() -> None:
    codec = create("magnitude", {"value_bits": 1, "scope": "tensor"})
    payload = codec.encode(torch.ones(30, 10), budget_bits=300)
    assert kept(codec, payload, (30, 10)).tolist() == list(range(payload.params["s"]))


def test_auto_takes_the_width_with_the_least_error() -> None:
    delta = gauss(40, 30)
    for budget in (600, 2500, 6000, 9000):
        errors = {}
        for width in (16, 8, 4, 1, "auto"):
            codec = create("magnitude", {"value_bits": width})
            restored = codec.decode(codec.encode(delta, budget_bits=budget), (40, 30))
            errors[width] = float(np.linalg.norm(restored.double().numpy() - delta.double().numpy()))
        assert errors["auto"] == min(errors.values())


def model() -> list[torch.Tensor]:
    return [gauss(60, 50), gauss(30, 40, seed=1, scale=0.03), decaying(20, 90), gauss(16, 4, 3, 3, seed=2)]


@pytest.mark.parametrize("width", [16, 8, 4])
def test_one_threshold_for_the_model(width: int) -> None:
    """What is dropped anywhere is no larger than what is kept anywhere, within a histogram's bin (1/128)."""
    deltas = model()
    codec = create("magnitude", {"value_bits": width})
    surveys = [codec.survey(delta, 0, None) for delta in deltas]
    settled, bits = codec.settle([tuple(delta.shape) for delta in deltas], surveys, 12_000)
    least_kept, most_dropped, counts = math.inf, 0.0, []
    for delta, share in zip(deltas, bits, strict=True):
        payload = settled.encode(delta, budget_bits=share)
        size = np.abs(delta.reshape(-1).numpy())
        places = kept(settled, payload, tuple(delta.shape))
        counts.append(places.size / size.size)
        least_kept = min(least_kept, size[places].min(initial=math.inf))
        most_dropped = max(most_dropped, np.delete(size, places).max())
    assert most_dropped <= least_kept * (1 + 1 / 64)
    assert max(counts) > 2 * min(counts)  # the tensors differ, so their shares do


def test_equal_sizes_still_fill_the_budget() -> None:
    """All entries in one bin of the histogram: the rest of the budget is spent within it."""
    codec = create("magnitude", {"value_bits": 4})
    deltas = [torch.ones(60, 50), -torch.ones(30, 40)]
    _, bits = codec.settle([(60, 50), (30, 40)], [codec.survey(delta, 0, None) for delta in deltas], 8_000)
    assert 0.97 * 8_000 <= sum(bits) <= 8_000


def test_scope_tensor_gives_equal_shares() -> None:
    codec = create("magnitude", {"value_bits": 8, "scope": "tensor"})
    assert not codec.surveys
    settled, bits = codec.settle([(60, 50), (30, 50)], [None, None], 12_000)
    assert settled is codec
    assert bits == [8000, 4000]


def test_settle_chooses_one_width() -> None:
    """At two thirds of a bit a weight only signs fit; at seven bits most entries at four bits and more."""
    deltas = model()
    shapes = [tuple(delta.shape) for delta in deltas]
    codec, cells = create("magnitude"), sum(delta.numel() for delta in deltas)
    surveys = [codec.survey(delta, 0, None) for delta in deltas]
    assert codec.settle(shapes, surveys, cells * 2 // 3)[0].config.value_bits == 1
    assert codec.settle(shapes, surveys, cells * 7)[0].config.value_bits in (4, 8)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    st.integers(0, 40_000),
    st.sampled_from(["auto", 16, 8, 4, 1]),
)
@settings(deadline=None, max_examples=40)
def test_settle_never_exceeds_the_total(shapes: list[tuple[int, int]], total: int, width: int | str) -> None:
    codec = create("magnitude", {"value_bits": width})
    deltas = [gauss(*shape, seed=place, scale=4.0**place) for place, shape in enumerate(shapes)]
    surveys = [codec.survey(delta, 0, None) for delta in deltas]
    if total < 128:
        with pytest.raises(BudgetError, match="16 bytes"):
            codec.settle(shapes, surveys, total)
        return
    settled, bits = codec.settle(shapes, surveys, total)
    assert sum(bits) <= total
    for delta, share in zip(deltas, bits, strict=True):
        assert 8 * len(settled.encode(delta, budget_bits=share).data) <= share


def test_survey_is_a_histogram_of_sizes() -> None:
    """One bin for each sign-free upper half of a float32: 1.0 is 0x3f80, 1.5 is 0x3fc0."""
    survey = create("magnitude").survey(torch.tensor([[1.0, -1.0, 1.5, 0.0, 1.5, 1.5]]), 0, None)
    assert {int(place): int(survey[place]) for place in np.flatnonzero(survey)} == {0: 1, 0x3F80: 2, 0x3FC0: 3}


@pytest.mark.parametrize(
    ("data", "params"),
    [
        ("2403003800b0", {"s": 9, "w": 16}),
        ("2403003800b0", {"s": -2, "w": 16}),
        ("2403003800b0", {"s": 2.0, "w": 16}),
        ("2403003800b0", {"s": 2, "w": 16.0}),
        ("2403003800b0", {"s": 2, "w": 32}),
        ("2403003800b0", {"s": 3, "w": 16}),
        ("2503003800b0", {"s": 2, "w": 16}),  # three bits in the mask
        ("24030038007c", {"s": 2, "w": 16}),  # infinity
        ("2403003800b0", {"s": 0, "w": 16}),
    ],
)
def test_damage_is_refused(data: str, params: dict[str, object]) -> None:
    with pytest.raises(PackError):
        create("magnitude").decode(Payload(bytes.fromhex(data), params), (2, 4))
