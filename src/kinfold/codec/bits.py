"""Fixed-width integers packed without gaps, lowest bit first."""

from __future__ import annotations

import numpy as np

from kinfold.errors import PackError

_CHUNK = 1 << 15  # values unpacked to bits at once; a multiple of 8, so that chunks end on bytes


def packed_bytes(count: int, width: int) -> int:
    """Bytes of `count` values of `width` bits."""
    return -(-count * width // 8)


def pack_bits(values: np.ndarray, width: int) -> bytes:
    """Pack non-negative integers below 2^width; value i takes bits [i width, (i + 1) width)."""
    if width == 0:
        return b""
    place = np.arange(width, dtype=np.uint64)
    parts = []
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.uint64)
        parts.append(np.packbits(((chunk[:, None] >> place) & 1).astype(np.uint8), bitorder="little").tobytes())
    return b"".join(parts)


def unpack_bits(data: bytes | memoryview, width: int, count: int) -> np.ndarray:
    """Read `count` integers of `width` bits (uint64).

    Raises:
        PackError: `data` is not exactly `packed_bytes(count, width)` long, or its padding is not zero.
    """
    if len(data) != packed_bytes(count, width):
        raise PackError(f"{count} values of {width} bits need {packed_bytes(count, width)} bytes, got {len(data)}")
    values = np.zeros(count, np.uint64)
    raw = np.frombuffer(data, np.uint8)
    spare = len(data) * 8 - count * width
    if spare and int(raw[-1]) >> (8 - spare):
        raise PackError("the padding after packed values is not zero")
    step = _CHUNK * width // 8
    for number, start in enumerate(range(0, len(data), step) if width else ()):
        first = number * _CHUNK
        some = min(_CHUNK, count - first)
        bits = np.unpackbits(raw[start : start + step], count=some * width, bitorder="little")
        for place in range(width):
            values[first : first + some] |= bits[place::width].astype(np.uint64) << np.uint64(place)
    return values
