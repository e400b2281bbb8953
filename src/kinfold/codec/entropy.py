"""Integers as bits, close to their entropy: an asymmetric numeral system with one table a context.

Duda: Asymmetric numeral systems (2013); the coder is that of the `constriction` package.
"""

from __future__ import annotations

import constriction
import numpy as np

from kinfold.errors import PackError

_PEAK = 31 << 15  # a table's largest weight
_MAX_LEVELS = 1 << 12
_END = 1  # the coder's first state; a reader that does not come back to it was given too few words or too many


def encode_integers(values: np.ndarray, context: np.ndarray, contexts: int) -> bytes:
    """Code `values` (int32, small) whose statistics depend on `context` (same length, below `contexts`).

    Layout: int16 lowest value, uint16 number of levels L, then L weights for each context, then 32-bit
    words of the coder, which starts from the single word 1. A weight is one byte b: (16 + b % 16)
    2^(b // 16), or 0 for b = 0. Nothing at all for no values.
    """
    if values.size == 0:
        return b""
    low = int(values.min())
    levels = int(values.max()) - low + 1
    if levels > _MAX_LEVELS:
        raise ValueError(f"{levels} levels; at most {_MAX_LEVELS} are coded")
    counts = np.bincount(context.astype(np.int64) * levels + (values - low), minlength=contexts * levels)
    tables = _tables(counts.reshape(contexts, levels))
    coder = constriction.stream.stack.AnsCoder(np.array([_END], np.uint32))  # type: ignore[attr-defined]
    for number in reversed(range(contexts)):  # a stack: what is pushed last is read first
        symbols = (values[context == number] - low).astype(np.int32)
        if symbols.size and np.count_nonzero(tables[number]) > 1:
            coder.encode_reverse(_compact(symbols, tables[number]), _model(tables[number]))
    head = np.array([low], "<i2").tobytes() + np.array([levels], "<u2").tobytes()
    return head + tables.astype(np.uint8).tobytes() + coder.get_compressed().astype("<u4").tobytes()


def decode_integers(data: bytes | memoryview, context: np.ndarray, contexts: int) -> np.ndarray:
    """What `encode_integers` coded, int32 of `context`'s length.

    Raises:
        PackError: the bytes are no such code.
    """
    if context.size == 0:
        if len(data):
            raise PackError("bytes are left after no values")
        return np.zeros(0, np.int32)
    if len(data) < 4:
        raise PackError("a code of integers is cut short")
    low, levels = int(np.frombuffer(data[:2], "<i2")[0]), int(np.frombuffer(data[2:4], "<u2")[0])
    end = 4 + contexts * levels
    if not 1 <= levels <= _MAX_LEVELS or len(data) < end or (len(data) - end) % 4:
        raise PackError(f"a code of integers of {levels} levels does not fit {len(data)} bytes")
    tables = np.frombuffer(data[4:end], np.uint8).reshape(contexts, levels)
    words = np.frombuffer(data[end:], "<u4").astype(np.uint32)
    if words.size == 0 or words[-1] == 0:
        raise PackError("the coder's words are missing or end in zero")
    coder = constriction.stream.stack.AnsCoder(words)  # type: ignore[attr-defined]
    values = np.empty(context.size, np.int32)
    for number in range(contexts):
        here = context == number
        count, alive = int(here.sum()), np.flatnonzero(tables[number])
        if count == 0:
            continue
        if alive.size == 0:
            raise PackError("a context in use has an empty table")
        symbols = coder.decode(_model(tables[number]), count) if alive.size > 1 else np.zeros(count, np.int32)
        values[here] = alive[symbols] + low
    if coder.get_compressed().tolist() != [_END]:
        raise PackError("the coder's words do not end with the last integer")
    return values


def entropy_bits(values: np.ndarray, context: np.ndarray, contexts: int) -> float:
    """The empirical entropy of `values` given `context`, bits in all."""
    if values.size == 0:
        return 0.0
    low = int(values.min())
    levels = int(values.max()) - low + 1
    counts = np.bincount(context.astype(np.int64) * levels + (values - low), minlength=contexts * levels)
    counts = counts.reshape(contexts, levels).astype(np.float64)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return float(-(counts * np.log2(share, out=np.zeros_like(share), where=share > 0)).sum())


def _tables(counts: np.ndarray) -> np.ndarray:
    """Counts as weights of one byte, within 3 % of their share; 0 only where a level does not occur."""
    peak = np.maximum(counts.max(1, keepdims=True), 1)
    weight = np.maximum(counts * (_PEAK / peak), 17.0)
    exponent = np.clip(np.frexp(weight)[1] - 5, 0, 15)
    mantissa = np.clip(np.rint(weight / 2.0**exponent), 16, 31).astype(np.int64)
    return np.where(counts > 0, exponent * 16 + mantissa - 16, 0)


def _compact(symbols: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Symbols numbered among the levels that occur."""
    return (np.cumsum(table > 0) - 1)[symbols].astype(np.int32)


def _model(table: np.ndarray) -> constriction.stream.model.Categorical:  # type: ignore[name-defined]
    codes = table[table > 0].astype(np.int64)
    alive = ((16 + codes % 16) << (codes // 16)).astype(np.float64)
    return constriction.stream.model.Categorical(alive / alive.sum(), perfect=False)  # type: ignore[attr-defined]
