"""Positions: golden bytes, the size formula, and a plain Elias-Fano reader beside ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec.positions import (
    check_rising,
    decode_positions,
    elias_fano_bits,
    encode_positions,
    positions_bytes,
)
from kinfold.errors import PackError


def low_width(cells: int, kept: int) -> int:
    return math.floor(math.log2(cells // kept))


def formula(cells: int, kept: int) -> int:
    if kept == 0:
        return 0
    low = low_width(cells, kept)
    return kept * low + kept + (cells - 1) // 2**low + 1


def read_elias_fano(data: bytes, cells: int, kept: int) -> list[int]:
    """Bit by bit, as a textbook does it: count zeros before each one."""
    low = low_width(cells, kept)
    split = -(-kept * low // 8)
    lows = int.from_bytes(data[:split], "little")
    upper = int.from_bytes(data[split:], "little")
    found, zeros, place = [], 0, 0
    while len(found) < kept:
        if upper >> place & 1:
            found.append(zeros << low | (lows >> (len(found) * low)) % 2**low)
        else:
            zeros += 1
        place += 1
    return found


@st.composite
def kept_cells(draw: st.DrawFn) -> tuple[int, list[int]]:
    cells = draw(st.integers(1, 3000))
    count = draw(st.integers(0, cells))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return cells, np.sort(rng.choice(cells, count, replace=False)).tolist()


def test_golden_bitmask() -> None:
    # 5 of 9 cells: Elias-Fano would take 5 + 9 bits, the mask 9
    assert encode_positions(np.array([0, 2, 3, 7, 8]), 9).hex() == "8d01"


def test_golden_elias_fano() -> None:
    # 3 of 100 cells: 5 low bits each. 4 = 0|00100, 37 = 1|00101, 99 = 3|00011.
    # lows 00011 00101 00100 = 0x0ca4; upper halves 0, 1, 3 set bits 0, 2, 5 = 0x25
    data = encode_positions(np.array([4, 37, 99]), 100)
    assert data.hex() == "a40c25"
    assert decode_positions(data, 100, 3).tolist() == [4, 37, 99]


@given(kept_cells())
@settings(deadline=None, max_examples=300)
def test_round_trip_and_size(case: tuple[int, list[int]]) -> None:
    cells, kept = case
    data = encode_positions(np.array(kept, np.int64), cells)
    assert len(data) == positions_bytes(cells, len(kept))
    assert elias_fano_bits(cells, len(kept)) == formula(cells, len(kept))
    assert decode_positions(data, cells, len(kept)).tolist() == kept
    if data and len(data) < -(-cells // 8):  # smaller than a mask, so it must be Elias-Fano
        assert read_elias_fano(data, cells, len(kept)) == kept
        assert 0 <= 8 * len(data) - formula(cells, len(kept)) < 16  # two sections, each padded to a byte


@pytest.mark.parametrize("cells", [1, 2, 7, 64, 100, 161, 1000])
def test_size_grows_with_the_count(cells: int) -> None:
    bits = [elias_fano_bits(cells, kept) for kept in range(cells + 1)]
    assert bits == [formula(cells, kept) for kept in range(cells + 1)]
    assert bits == sorted(bits)


@pytest.mark.parametrize("cells", [1, 2, 8, 1000])
def test_none_or_all_take_no_bytes(cells: int) -> None:
    for kept in (np.zeros(0, np.int64), np.arange(cells)):
        assert encode_positions(kept, cells) == b""
        assert decode_positions(b"", cells, kept.size).tolist() == kept.tolist()


def test_never_above_a_mask_nor_far_above_entropy() -> None:
    cells = 1 << 20
    for kept in (cells // 1000, cells // 100, cells // 20, cells // 4, cells // 2):
        share = kept / cells
        entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        size = 8 * positions_bytes(cells, kept)
        assert size <= cells
        assert entropy * cells <= size <= entropy * cells + 0.85 * kept + 32


@given(st.integers(1, 400), st.data())
@settings(deadline=None)
def test_hostile_bytes_are_refused_or_valid(cells: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, cells))
    size = positions_bytes(cells, kept) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    raw = data.draw(st.binary(min_size=max(size, 0), max_size=max(size, 0)))
    try:
        found = decode_positions(raw, cells, kept).tolist()
    except PackError:
        return
    assert found == sorted(set(found))
    assert len(found) == kept
    assert all(0 <= place < cells for place in found)


def test_more_kept_than_cells() -> None:
    with pytest.raises(PackError, match="11 entries cannot be kept of 10"):
        decode_positions(b"", 10, 11)


def test_out_of_range_and_out_of_order() -> None:
    # as the golden bytes, but the low half of 99 is 01100: 108 of 100 cells
    with pytest.raises(PackError, match="out of range"):
        decode_positions(bytes.fromhex("a43025"), 100, 3)
    # two ones in a row share upper half 0, and the low halves fall: 5, then 4
    with pytest.raises(PackError, match="out of order"):
        decode_positions(bytes([0b10000101, 0b00001100, 0b00100011]), 100, 3)
    for places in ([3, 3], [4, 2], [0, 9]):
        with pytest.raises(PackError):
            check_rising(np.array(places), 9)
    check_rising(np.array([0, 8]), 9)


def test_wrong_number_of_ones() -> None:
    with pytest.raises(PackError, match="keeps 4 entries, the manifest says 5"):
        decode_positions(bytes.fromhex("8d00"), 9, 5)
    with pytest.raises(PackError, match="hold 2 entries, the manifest says 3"):
        decode_positions(bytes.fromhex("a40c05"), 100, 3)
