"""`bitdelta`: one sign a weight, against a scalar minimiser and by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from deltas import decaying, gauss, relative_error
from scipy.optimize import minimize_scalar

from kinfold.codec import Payload, create
from kinfold.errors import BudgetError, CodecError, PackError

BITS = 1 << 20


def planes(count: int, delta: torch.Tensor) -> tuple[Payload, torch.Tensor]:
    codec = create("bitdelta", {"planes": count})
    payload = codec.encode(delta, budget_bits=BITS)
    return payload, codec.decode(payload, tuple(delta.shape))


@pytest.mark.parametrize("delta", [gauss(30, 50), decaying(20, 20), gauss(9, 4, scale=100.0) + 30])
def test_scale_is_the_least_squares_one(delta: torch.Tensor) -> None:
    exact = delta.double().numpy()
    sign = np.where(exact >= 0, 1.0, -1.0)
    best = minimize_scalar(lambda scale: np.sum((exact - scale * sign) ** 2), tol=1e-12).x
    _, restored = planes(1, delta)
    assert np.allclose(restored.numpy(), best * sign, rtol=1e-6)


def test_golden_bytes() -> None:
    # mean size 1.5; plus at 0, 2, 3 (zero counts as plus), of five: 01101
    payload, restored = planes(1, torch.tensor([[1.0, -2.0, 0.0, 3.0, -1.5]]))
    assert payload.data.hex() == "0000c03f" + "0d"
    assert payload.params == {"m": 1}
    assert restored.tolist() == [[1.5, -1.5, 1.5, 1.5, -1.5]]


def test_second_plane_codes_what_is_left() -> None:
    # scale 2; left over -1, 0, 1 (of 1, -2, 3), so scale 2/3 and signs -, +, +
    payload, restored = planes(2, torch.tensor([[1.0, -2.0, 3.0]]))
    assert payload.data.hex() == "00000040" + "abaa2a3f" + "05" + "06"
    assert np.allclose(restored.numpy(), [[4 / 3, -4 / 3, 8 / 3]])


def test_more_planes_never_hurt() -> None:
    for delta in (gauss(40, 30), decaying(30, 40)):
        errors = [relative_error(delta, planes(count, delta)[1]) for count in range(1, 9)]
        assert all(after <= before for before, after in pairwise(errors))
        assert errors[-1] < 0.25 * errors[0]


@pytest.mark.parametrize("count", [1, 2, 16])
def test_size(count: int) -> None:
    """One bit a weight and a float32 scale, a plane."""
    codec = create("bitdelta", {"planes": count})
    payload, _ = planes(count, gauss(7, 5))
    assert len(payload.data) == count * (5 + 4)
    assert codec.minimum_bits((7, 5)) == 8 * len(payload.data)
    assert codec.plan((7, 5), torch.float32, BITS).nbytes == len(payload.data)
    with pytest.raises(BudgetError):
        codec.plan((7, 5), torch.float32, 8 * len(payload.data) - 1)


def test_settle_takes_its_one_rate() -> None:
    codec = create("bitdelta")
    shapes = [(8, 8), (3, 3, 2, 2), (5, 1)]
    least = (8 + 4) + (5 + 4) + (1 + 4)
    settled, bits = codec.settle(shapes, [None] * 3, 8 * least + 5)
    assert settled is codec
    assert bits == [96, 72, 40]
    with pytest.raises(BudgetError, match="one rate") as caught:
        codec.settle(shapes, [None] * 3, 8 * least - 1)
    assert caught.value.least_bytes == least


@pytest.mark.parametrize("count", [0, 17, "two"])
def test_planes_are_checked(count: object) -> None:
    with pytest.raises(CodecError, match="planes"):
        create("bitdelta", {"planes": count})


@pytest.mark.parametrize(
    ("data", "params"),
    [
        ("0000c03f0d", {"m": 2}),
        ("0000c03f0d", {"m": True}),
        ("0000c03f0d", {"m": 1.0}),
        ("0000c03f0d", {}),
        ("0000c03f0d00", {"m": 1}),
        ("0000c03f2d", {"m": 1}),  # a sixth sign of five
        ("0000c07f0d", {"m": 1}),  # NaN
        ("000080ff0d", {"m": 1}),  # minus infinity
    ],
)
def test_damage_is_refused(data: str, params: dict[str, object]) -> None:
    with pytest.raises(PackError):
        create("bitdelta").decode(Payload(bytes.fromhex(data), params), (1, 5))
