"""Where the kept entries are: a bitmask or Elias-Fano, whichever is smaller; both sizes known beforehand."""

from __future__ import annotations

import numpy as np

from kinfold.codec.bits import pack_bits, packed_bytes, unpack_bits
from kinfold.errors import PackError


def elias_fano_bits(cells: int, kept: int) -> int:
    """Size of Elias-Fano for `kept` of `cells` positions: `s l + s + ((N - 1) >> l) + 1` bits."""
    if kept == 0:
        return 0
    low = _low_width(cells, kept)
    return kept * low + kept + ((cells - 1) >> low) + 1


def positions_bytes(cells: int, kept: int) -> int:
    """Bytes that `encode_positions` takes; nothing where all or none are kept."""
    if kept in (0, cells):
        return 0
    return min(packed_bytes(cells, 1), _elias_fano_bytes(cells, kept))


def _low_width(cells: int, kept: int) -> int:
    return (cells // kept).bit_length() - 1


def _elias_fano_bytes(cells: int, kept: int) -> int:
    low = kept * _low_width(cells, kept)
    return packed_bytes(low, 1) + packed_bytes(elias_fano_bits(cells, kept) - low, 1)


def encode_positions(positions: np.ndarray, cells: int) -> bytes:
    """Code strictly rising flat positions below `cells`."""
    kept = positions.size
    if kept in (0, cells):
        return b""
    if packed_bytes(cells, 1) <= _elias_fano_bytes(cells, kept):
        mask = np.zeros(cells, np.uint8)
        mask[positions] = 1
        return np.packbits(mask, bitorder="little").tobytes()
    low = _low_width(cells, kept)
    positions = positions.astype(np.uint64)
    upper = np.zeros(elias_fano_bits(cells, kept) - kept * low, np.uint8)
    # unary upper halves: entry i sets bit (its upper half + i), so the gaps between ones count up
    upper[(positions >> np.uint64(low)) + np.arange(kept, dtype=np.uint64)] = 1
    lows = positions & np.uint64((1 << low) - 1)
    return pack_bits(lows, low) + np.packbits(upper, bitorder="little").tobytes()


def decode_positions(data: bytes | memoryview, cells: int, kept: int) -> np.ndarray:
    """The positions that were coded, int64, strictly rising.

    Raises:
        PackError: more are kept than there are cells, the length is wrong, or positions are out of order
            or out of range.
    """
    if not 0 <= kept <= cells:
        raise PackError(f"{kept} entries cannot be kept of {cells}")
    if len(data) != positions_bytes(cells, kept):
        raise PackError(f"the positions take {len(data)} bytes, {positions_bytes(cells, kept)} were expected")
    if kept == 0:
        return np.zeros(0, np.int64)
    if kept == cells:
        return np.arange(cells, dtype=np.int64)
    if packed_bytes(cells, 1) <= _elias_fano_bytes(cells, kept):
        positions = np.flatnonzero(unpack_bits(data, 1, cells))
        if positions.size != kept:
            raise PackError(f"the mask keeps {positions.size} entries, the manifest says {kept}")
        return positions
    low = _low_width(cells, kept)
    split = packed_bytes(kept * low, 1)
    lows = unpack_bits(data[:split], low, kept).astype(np.int64)
    upper = np.flatnonzero(unpack_bits(data[split:], 1, elias_fano_bits(cells, kept) - kept * low))
    if upper.size != kept:
        raise PackError(f"the positions hold {upper.size} entries, the manifest says {kept}")
    positions = ((upper - np.arange(kept)) << low) | lows
    check_rising(positions, cells)
    return positions


def check_rising(positions: np.ndarray, cells: int) -> None:
    """Raise PackError unless positions rise strictly and lie below `cells`."""
    if positions.size and (np.any(np.diff(positions) <= 0) or positions[-1] >= cells):
        raise PackError("positions are out of order or out of range")
