"""Uniform quantisation with subtractive dither: an unbiased code for a bit a weight and more.

Ziv: On universal quantization (1985); Zamir and Feder: On universal quantization by randomized uniform
lattice quantizers (1992). With u even on (-1/2, 1/2), q = round(x / step + u) decodes to (q - u) step, whose
mean over u is x and whose error is even on (-step / 2, step / 2), whatever x is.
"""

from __future__ import annotations

import numpy as np

from kinfold.codec.entropy import decode_integers, encode_integers, entropy_bits
from kinfold.errors import BudgetError, PackError

CONTEXTS = 8  # classes of |u|: where a rounding is near its edge, other values are likely
MAX_LEVEL = 2000  # of |q|, so that tables stay small
TABLES = 64  # bytes that step and tables take even at a bit a weight; with less there is no room for integers
_HEAD = 4  # bytes of the step
_TRIES = 24


def field(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """u of every entry, float32 (n, d), from random words of the rows (n,) and columns (d,): int64.

    The upper 16 bits of a row's and a column's word are added modulo 2^16. Any two entries of a row or a
    column are independent, which costs n + d random words instead of n d.
    """
    total = ((rows >> 16).astype(np.uint16)[:, None] + (columns >> 16).astype(np.uint16)[None]).astype(np.float32)
    return (total + np.float32(0.5)) * np.float32(2.0**-16) - np.float32(0.5)


def encode(flat: np.ndarray, u: np.ndarray, budget_bytes: int) -> bytes:
    """Code `flat` (float32) with dither `u` (same length) in at most `budget_bytes`: float32 step, integers.

    `budget_bytes` is at least `TABLES`.
    """
    peak = float(np.abs(flat).max(initial=0.0))
    if peak == 0:
        return np.float32(0).tobytes()
    context = _contexts(u)
    low = max(np.log2(peak / MAX_LEVEL), -126.0)  # a step is a normal float32
    high = min(np.log2(peak) + 20.0, 127.0)
    middle, best = low, None
    for _ in range(_TRIES):  # bisect the step by the entropy, which is far quicker than to code
        step = np.float32(2.0**middle)
        q = _quantise(flat, u, step)
        if _bytes(q, context) <= budget_bytes:
            high, best = middle, (step, q)
        else:
            low = middle
        if high - low < 1e-3 and best:
            break
        middle = (low + high) / 2
    if best is None:
        raise BudgetError(f"{budget_bytes} bytes do not hold the tables of {flat.size} dithered values")
    step, q = best
    return step.astype("<f4").tobytes() + encode_integers(q, context, CONTEXTS)


def decode(data: bytes | memoryview, u: np.ndarray) -> np.ndarray:
    """What `encode` settled on, float32 of `u`'s length.

    Raises:
        PackError: the bytes are no such code.
    """
    step = np.frombuffer(data[:_HEAD], "<f4")[0] if len(data) >= _HEAD else np.float32(-1)
    if not 0 <= step < np.inf or (step == 0 and len(data) > _HEAD):
        raise PackError(f"a step of {step} is impossible, or does not fit {len(data)} bytes")
    if step == 0:
        return np.zeros(u.size, np.float32)
    q = decode_integers(data[_HEAD:], _contexts(u), CONTEXTS)
    with np.errstate(over="ignore"):  # a hostile step may overflow; the caller refuses infinity
        return (np.where(u < 0, -q, q).astype(np.float32) - u) * step


def _contexts(u: np.ndarray) -> np.ndarray:
    return (np.abs(u) * np.float32(2 * CONTEXTS)).astype(np.uint8)


def _quantise(flat: np.ndarray, u: np.ndarray, step: np.float32) -> np.ndarray:
    """q where u > 0 and -q elsewhere: mirrored, both halves share their statistics."""
    q = np.rint(flat / step + u).astype(np.int32)
    return np.where(u < 0, -q, q)


def _bytes(q: np.ndarray, context: np.ndarray) -> float:
    levels = int(q.max()) - int(q.min()) + 1
    return _HEAD + 4 + CONTEXTS * levels + 8 + 1.0005 * entropy_bits(q, context, CONTEXTS) / 8
