"""Payloads that nobody wrote: each is refused with PackError, or restores to a tensor of the right shape."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest
from deltas import SETTINGS, gauss, importance, make

from kinfold.codec import Codec, Payload
from kinfold.errors import PackError

SHAPE = (12, 9)
HUGE = (10**12, 2**70, -(2**70), 1e300, float("inf"), float("nan"))
HOSTILE: list[Any] = [
    *(None, True, False, "8", "", {}, [], [1], [1, 1], [1.0, 2.0], [-1, 1], [10**9, 10**9], [2**70, 0]),
    *(-1, 0, 1, 2, 3, 4, 8, 16, 32, 64, 0.5, 1.0, 8.0, 16.0, *HUGE),
]


def payload_of(codec: Codec) -> Payload:
    return codec.encode(
        gauss(*SHAPE), budget_bits=max(codec.minimum_bits(SHAPE), 1500), importance=importance(SHAPE), seed=3
    )


def outcome(codec: Codec, payload: Payload) -> str:
    try:
        restored = codec.decode(payload, SHAPE)
    except PackError:
        return "refused"
    assert restored.shape == SHAPE
    return "read"


every = pytest.mark.parametrize("setting", SETTINGS)


@every
def test_damaged_bytes(setting: str) -> None:
    codec, rng = make(setting), random.Random(0)
    good = payload_of(codec)
    assert outcome(codec, good) == "read"
    for length in {0, 1, len(good.data) // 2, len(good.data) - 1}:
        assert outcome(codec, Payload(good.data[:length], good.params, 3)) == "refused"
    assert outcome(codec, Payload(good.data + b"\0", good.params, 3)) == "refused"
    for _ in range(100):
        flipped = bytearray(good.data)
        for _ in range(rng.randint(1, 4)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        outcome(codec, Payload(bytes(flipped), good.params, 3))
        outcome(codec, Payload(rng.randbytes(len(flipped)), good.params, 3))


@every
def test_hostile_parameters(setting: str) -> None:
    codec = make(setting)
    good = payload_of(codec)
    for key in {*good.params, "f", "s"}:
        for value in HOSTILE:
            outcome(codec, Payload(good.data, good.params | {key: value}, 3))
    for key in good.params:
        outcome(codec, Payload(good.data, {k: v for k, v in good.params.items() if k != key}, 3))
    assert outcome(codec, Payload(good.data, {}, 3)) == "refused"


@every
def test_parameters_alone_allocate_nothing(setting: str) -> None:
    """Four bytes that claim every entry of a matrix of 12 MB are refused before it is allocated."""
    codec, shape = make(setting), (2000, 1500)
    whole = {"k": 1500, "f": 1500, "s": 3_000_000, "m": 16, "w": payload_of(codec).params.get("w")}
    tail = whole | {"f": 0, "s": [3_000_000, 2_250_000]}
    tracemalloc.start()
    try:
        for params in (whole, tail):
            with pytest.raises(PackError):
                codec.decode(Payload(bytes(4), params, 3), shape)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
