"""Packed integers, against Python's own big integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec.bits import pack_bits, packed_bytes, unpack_bits
from kinfold.errors import PackError


def as_integer(values: list[int], width: int) -> bytes:
    """Value i shifted by i times the width, all in one little-endian integer."""
    joined = sum(value << (width * place) for place, value in enumerate(values))
    return joined.to_bytes((len(values) * width + 7) // 8, "little")


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], int]:
    width = draw(st.integers(1, 40))
    return draw(st.lists(st.integers(0, 2**width - 1), max_size=60)), width


def test_golden_bytes() -> None:
    # 001, 010, 011, 100 from the lowest bit: 1000 1101 0001 in one integer
    assert pack_bits(np.array([1, 2, 3, 4]), 3).hex() == "d108"
    assert pack_bits(np.array([0x123, 0xABC]), 12).hex() == "23c1ab"
    assert pack_bits(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1).hex() == "0d01"


@given(runs())
@settings(deadline=None)
def test_same_bytes_as_one_large_integer(run: tuple[list[int], int]) -> None:
    values, width = run
    data = pack_bits(np.array(values, np.int64), width)
    assert data == as_integer(values, width)
    assert len(data) == packed_bytes(len(values), width)
    assert unpack_bits(memoryview(data), width, len(values)).tolist() == values


@pytest.mark.parametrize("width", [1, 3, 11])
def test_many_chunks(width: int) -> None:
    """More values than are expanded to single bits at once, and a count that ends inside a byte."""
    count = (1 << 21) + 5
    values = np.random.default_rng(0).integers(0, 1 << width, count)
    data = pack_bits(values, width)
    assert len(data) == -(-count * width // 8)
    assert np.array_equal(unpack_bits(data, width, count), values)
    around = slice((1 << 20) - 8, (1 << 20) + 8)  # the first value past a chunk starts on a byte
    assert data[((1 << 20) - 8) * width // 8 :][: 2 * width] == as_integer(values[around].tolist(), width)


def test_width_zero_takes_no_bytes() -> None:
    assert pack_bits(np.zeros(9, np.int64), 0) == b""
    assert unpack_bits(b"", 0, 9).tolist() == [0] * 9


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0"])
def test_wrong_length_is_refused(data: bytes) -> None:
    with pytest.raises(PackError, match="need 2 bytes"):
        unpack_bits(data, 3, 4)


def test_padding_must_be_zero() -> None:
    assert unpack_bits(bytes([0b00000101]), 3, 1).tolist() == [5]
    with pytest.raises(PackError, match="padding"):
        unpack_bits(bytes([0b00001101]), 3, 1)
