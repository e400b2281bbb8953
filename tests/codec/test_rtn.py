"""`rtn`: golden bytes, and half a step in each group of 64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deltas import gauss, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec import Payload, create
from kinfold.errors import BudgetError, PackError

BITS = 1 << 20


def round_trip(delta: torch.Tensor, width: int) -> tuple[Payload, np.ndarray]:
    codec = create("rtn", {"value_bits": width})
    payload = codec.encode(delta, budget_bits=BITS)
    return payload, codec.decode(payload, tuple(delta.shape)).double().numpy()


def test_golden_bytes() -> None:
    # 14 = 7 steps of 2; 3 / 2 and 1 / 2 go to the even level; codes 14, 9, 7, 0
    payload, restored = round_trip(torch.tensor([14.0, 3.0, 1.0, -14.0]), 4)
    assert payload.data.hex() == "00000040" + "003c" + "9e07"
    assert restored.tolist() == [14.0, 4.0, 0.0, -14.0]
    # 8 bits: 254 = 127 steps of 2; codes 254, 127, 126
    payload, restored = round_trip(torch.tensor([254.0, 0.0, -2.0]), 8)
    assert payload.data.hex() == "00000040" + "003c" + "fe7f7e"
    assert restored.tolist() == [254.0, 0.0, -2.0]


@given(st.integers(1, 400), st.sampled_from([8, 4]), st.integers(-20, 20), st.integers(0, 99))
@settings(deadline=None, max_examples=80)
def test_half_a_step_in_each_group(count: int, width: int, power: int, seed: int) -> None:
    delta = gauss(count, seed=seed, scale=10.0**power)
    payload, restored = round_trip(delta, width)
    assert len(payload.data) == 4 + 2 * -(-count // 64) + -(-count * width // 8)
    exact, top = delta.double().numpy(), 2 ** (width - 1) - 1
    for start in range(0, count, 64):
        group = slice(start, start + 64)
        peak = np.abs(exact[group]).max()
        # the step is a float16, of which the tensor's largest step is one
        assert np.all(np.abs(restored[group] - exact[group]) <= (0.5 / top + 2.0**-11) * peak * (1 + 1e-5))


def test_groups_do_not_share_a_step() -> None:
    delta = torch.cat([gauss(64, scale=1.0), gauss(64, seed=1, scale=0.01)])
    _, restored = round_trip(delta, 8)
    assert relative_error(delta[64:], torch.from_numpy(restored[64:])) < 0.01


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (65,), (3, 4, 5)])
def test_any_shape(shape: tuple[int, ...], width: int) -> None:
    delta = gauss(*shape, scale=1.0) if shape else torch.tensor(2.5)
    _, restored = round_trip(delta, width)
    assert restored.shape == shape
    assert np.allclose(restored, delta.numpy(), atol=0.3 if width == 4 else 0.02)


@pytest.mark.parametrize("width", [8, 4])
def test_zeros_stay_zero(width: int) -> None:
    _, restored = round_trip(torch.zeros(70), width)
    assert not restored.any()


def test_plan_and_budget() -> None:
    codec = create("rtn")
    assert codec.plan((130,), torch.float32, BITS).nbytes == 4 + 6 + 130
    assert codec.minimum_bits((130,)) == 8 * 140
    for refused in (codec.plan, lambda shape, _, bits: codec.encode(gauss(*shape), budget_bits=bits)):
        with pytest.raises(BudgetError, match="1120 bits"):
            refused((130,), torch.float32, 8 * 140 - 1)


@pytest.mark.parametrize(
    ("data", "params"),
    [
        ("00000040003c9e07", {"w": 8}),
        ("00000040003c9e07", {"w": 4.0}),
        ("00000040003c9e07", {}),
        ("00000040003c9e", {"w": 4}),
        ("00000040003c9e0700", {"w": 4}),
        ("0000c07f003c9e07", {"w": 4}),
        ("00000040007c9e07", {"w": 4}),
        ("ffff7f7fff7b9e07", {"w": 4}),  # finite each, but not their product
    ],
)
def test_damage_is_refused(data: str, params: dict[str, object]) -> None:
    with pytest.raises(PackError):
        create("rtn").decode(Payload(bytes.fromhex(data), params), (4,))
