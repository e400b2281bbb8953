"""Kept values at 16 bits, or at 8 and fewer on levels without zero.

A kept entry is not zero, so a level at zero would be wasted: at 2 bits it costs a fifth more error.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kinfold.codec.bits import pack_bits, packed_bytes, unpack_bits
from kinfold.errors import PackError

_PART = 1 << 18
_FRACTIONS = np.linspace(0.1, 1.0, 10)  # of a column's largest entry: candidates for its outermost level


def values_bytes(count: int, columns: int, width: int) -> int:
    """Bytes of `count` values in `columns` columns at `width` bits: 32, 16, or 8 and fewer."""
    if width == 32:
        return 4 * count
    return 1 + 2 * count if width == 16 else 1 + 2 * columns + packed_bytes(count, width)


def encode_values(values: np.ndarray, column: np.ndarray, columns: int, width: int) -> bytes:
    """Code float64 `values`; `column` (int, same length) names the column of each, in [0, columns).

    32 bits: float32. 16 bits: an int8 exponent e, then float16 of values / 2^e, so that the largest lies in
    [0.5, 1) and none is needlessly subnormal. Fewer: one step a column in that same 16-bit form, then sign
    and magnitude q of each value, which decodes to sign (q + 1/2) step.
    """
    if width == 32:
        return values.astype("<f4").tobytes()
    size = np.abs(values)
    exponent = _exponent(size)
    if width == 16:
        return _to_half(values, exponent)
    step = _steps(size, column, columns, width, exponent)
    code = np.empty(values.size, np.uint8)
    for part in _parts(values.size):
        code[part] = _magnitudes(size[part], step[column[part]], width) | (values[part] < 0).astype(np.int64) << (
            width - 1
        )
    return _to_half(step, exponent) + pack_bits(code, width)


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused at the end
def decode_values(data: bytes | memoryview, column: np.ndarray, columns: int, width: int) -> torch.Tensor:
    """The values, float32, in the order they were given.

    Raises:
        PackError: the length does not fit, or a value or step is not finite.
    """
    count = column.size
    if len(data) != values_bytes(count, columns, width):
        raise PackError(f"the values take {len(data)} bytes, {values_bytes(count, columns, width)} were expected")
    if width == 32:
        values = np.frombuffer(data, "<f4")
    elif width == 16:
        values = _from_half(data)
    else:
        split = 1 + 2 * columns
        step = _from_half(data[:split])
        code = unpack_bits(data[split:], width, count).astype(np.uint8)
        values = np.empty(count, np.float32)
        for part in _parts(count):
            magnitude = (code[part] & ((1 << (width - 1)) - 1)).astype(np.float32)
            sized = (magnitude + np.float32(0.5)) * step[column[part]]
            values[part] = np.where(code[part] >> (width - 1), -sized, sized)
    if not np.isfinite(values).all():
        raise PackError("a stored value is NaN or infinity")
    return torch.from_numpy(values.astype(np.float32, copy=not values.flags.writeable))


def _parts(count: int) -> Iterator[slice]:
    """Slices of at most 2^18 values, so that temporaries stay small beside the factors."""
    return (slice(start, start + _PART) for start in range(0, count, _PART))


def _exponent(size: np.ndarray) -> int:
    peak = float(size.max(initial=0.0))
    return int(np.clip(np.frexp(peak)[1], -127, 127)) if peak else 0


def _to_half(values: np.ndarray, exponent: int) -> bytes:
    return exponent.to_bytes(1, "little", signed=True) + np.ldexp(values, -exponent).astype("<f2").tobytes()


def _from_half(data: bytes | memoryview) -> np.ndarray:
    exponent = int.from_bytes(data[:1], "little", signed=True)
    return np.ldexp(np.frombuffer(data[1:], "<f2").astype(np.float32), exponent)


def _magnitudes(size: np.ndarray, step: np.ndarray, width: int) -> np.ndarray:
    quotient = np.divide(size, step, out=np.zeros_like(size), where=step > 0)
    return np.minimum(quotient.astype(np.int64), (1 << (width - 1)) - 1)


def _steps(size: np.ndarray, column: np.ndarray, columns: int, width: int, exponent: int) -> np.ndarray:
    """One step a column with the least squared error among ten, as the decoder will read it (float64)."""

    def stored(step: np.ndarray) -> np.ndarray:
        tiny = 2.0**-24  # a positive step must not vanish
        scaled = np.where(step > 0, np.maximum(np.ldexp(step, -exponent), tiny), 0.0)
        return np.ldexp(scaled.astype(np.float16).astype(np.float64), exponent)

    if width == 1:  # the mean is the least-squares level
        count = np.bincount(column, minlength=columns)
        return stored(2 * np.bincount(column, size, minlength=columns) / np.maximum(count, 1))
    peak = np.zeros(columns)
    np.maximum.at(peak, column, size)
    best, best_error = np.zeros(columns), np.full(columns, np.inf)
    for fraction in _FRACTIONS:
        step = stored(peak * fraction / (1 << (width - 1)))
        error = np.zeros(columns)
        for part in _parts(size.size):
            wide = step[column[part]]
            rebuilt = (_magnitudes(size[part], wide, width) + 0.5) * wide
            error += np.bincount(column[part], (size[part] - rebuilt) ** 2, minlength=columns)
        better = error < best_error
        best[better], best_error[better] = step[better], error[better]
    return best
