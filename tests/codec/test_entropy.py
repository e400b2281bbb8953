"""The integer coder: round trips on every alphabet, sizes against the entropy, bytes that nobody wrote."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kinfold.codec.entropy import decode_integers, encode_integers, entropy_bits
from kinfold.errors import PackError

CONTEXTS = 8


def laplace(count: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values and contexts; the scale grows with the context."""
    rng = np.random.default_rng(seed)
    context = rng.integers(0, CONTEXTS, count)
    return np.rint(rng.laplace(0, scale * (1 + context / 4))).astype(np.int32), context.astype(np.uint8)


def empirical(values: np.ndarray, context: np.ndarray) -> float:
    """Entropy in bits, context by context, by counting."""
    total = 0.0
    for number in np.unique(context):
        counts = np.unique(values[context == number], return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total


ALPHABETS = {
    "one value": (np.array([7]), np.array([3])),
    "constant": (np.full(1000, -3), np.arange(1000) % CONTEXTS),
    "constant but once": (np.where(np.arange(5000) == 4321, 1, 0), np.arange(5000) % CONTEXTS),
    "two values": (np.arange(999) % 2, np.zeros(999)),
    "one context in use": (np.arange(500) % 11 - 5, np.full(500, 6)),
    "a constant a context": (np.arange(800) % CONTEXTS * 10, np.arange(800) % CONTEXTS),
    "negative": (-2000 + np.arange(300) % 7, np.arange(300) % 5),
    "4096 levels": (np.arange(8192) % 4096 - 2048, np.arange(8192) % CONTEXTS),
    "far apart": (np.where(np.arange(100) % 3, -2048, 2047), np.arange(100) % CONTEXTS),
    "laplace": laplace(20_000, 2.0),
    "narrow": laplace(20_000, 0.2),
    "wide": laplace(20_000, 90.0),
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_round_trip(name: str) -> None:
    values, context = (np.asarray(part) for part in ALPHABETS[name])
    values, context = values.astype(np.int32), context.astype(np.uint8)
    data = encode_integers(values, context, CONTEXTS)
    back = decode_integers(data, context, CONTEXTS)
    assert back.dtype == np.int32
    assert np.array_equal(back, values)
    assert encode_integers(values, context, CONTEXTS) == data


def test_no_values_are_no_bytes() -> None:
    nothing = np.zeros(0, np.int32)
    assert encode_integers(nothing, nothing, CONTEXTS) == b""
    assert decode_integers(b"", nothing, CONTEXTS).size == 0
    with pytest.raises(PackError, match="left after no values"):
        decode_integers(b"\0", nothing, CONTEXTS)


def test_a_constant_is_its_header() -> None:
    values = np.full(10_000, 5, np.int32)
    assert len(encode_integers(values, np.arange(10_000) % CONTEXTS, CONTEXTS)) == 4 + CONTEXTS + 4


def test_more_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="4097 levels; at most 4096"):
        encode_integers(np.array([0, 4096], np.int32), np.zeros(2, np.uint8), CONTEXTS)


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 5.0, 60.0])
def test_size_is_the_entropy(scale: float) -> None:
    """Within 1 %, beyond a header of 4 bytes, a byte a level and context, and the coder's 8 bytes."""
    values, context = laplace(100_000, scale)
    data = encode_integers(values, context, CONTEXTS)
    levels = int(values.max() - values.min()) + 1
    bits = empirical(values, context)
    assert entropy_bits(values, context, CONTEXTS) == pytest.approx(bits, rel=1e-9)
    body = len(data) - 4 - CONTEXTS * levels
    assert bits / 8 - 8 <= body <= 1.01 * bits / 8 + 8
    assert data[:4] == np.array([values.min()], "<i2").tobytes() + np.array([levels], "<u2").tobytes()


def test_tables_are_shares_within_a_thirtieth() -> None:
    """Each byte b stands for (16 + b % 16) 2^(b // 16), in proportion to its count."""
    values, context = laplace(100_000, 3.0)
    data = encode_integers(values, context, CONTEXTS)
    low, levels = int(values.min()), int(values.max() - values.min()) + 1
    tables = np.frombuffer(data[4 : 4 + CONTEXTS * levels], np.uint8).reshape(CONTEXTS, levels).astype(np.int64)
    weights = np.where(tables > 0, (16 + tables % 16) << (tables // 16), 0)
    for number in range(CONTEXTS):
        counts = np.bincount(values[context == number] - low, minlength=levels)
        assert np.array_equal(weights[number] > 0, counts > 0)
        shares, expected = weights[number] / weights[number].max(), counts / counts.max()
        assert np.all(np.abs(shares - expected) <= expected / 15)


def outcome(data: bytes, context: np.ndarray) -> str:
    try:
        back = decode_integers(data, context, CONTEXTS)
    except PackError:
        return "refused"
    assert back.dtype == np.int32
    assert back.shape == context.shape
    return "read"


def test_bytes_that_nobody_wrote() -> None:
    values, context = laplace(600, 2.0)
    good, rng = encode_integers(values, context, CONTEXTS), random.Random(0)
    levels = int(values.max() - values.min()) + 1
    words = 4 + CONTEXTS * levels
    assert outcome(good, context) == "read"
    for length in (0, 1, 3, 4, words - 1, words, words + 4, len(good) - 8, len(good) - 4, len(good) - 1):
        assert outcome(good[:length], context) == "refused"
    for more in (b"\0", b"\1\0\0\0", b"\0\0\0\0", bytes(40)):
        assert outcome(good + more, context) == "refused"
    assert outcome(good, context[:-1]) == "refused"  # a value is left over
    for _ in range(300):
        flipped = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        outcome(bytes(flipped), context)
        outcome(rng.randbytes(rng.randrange(200)), context)
        outcome(good[:4] + rng.randbytes(len(good) - 4), context)


@pytest.mark.parametrize("levels", [0, 4097, 65535])
def test_impossible_numbers_of_levels(levels: int) -> None:
    head = np.array([0], "<i2").tobytes() + np.array([levels], "<u2").tobytes()
    assert outcome(head + bytes([1]) * CONTEXTS * levels, np.zeros(4, np.uint8)) == "refused"


def test_an_empty_table_in_use() -> None:
    head = np.array([0], "<i2").tobytes() + np.array([2], "<u2").tobytes()
    tables = bytes([0, 0] + [16, 16] * (CONTEXTS - 1))
    with pytest.raises(PackError, match="empty table"):
        decode_integers(head + tables + bytes([1, 0, 0, 0]), np.zeros(4, np.uint8), CONTEXTS)


@pytest.mark.parametrize("words", [b"", bytes(4), bytes([1, 0, 0, 0, 0, 0, 0, 0]), bytes([2, 0, 0, 0])])
def test_words_that_do_not_end_where_the_coder_starts(words: bytes) -> None:
    values, context = np.full(20, 5, np.int32), np.zeros(20, np.uint8)
    good = encode_integers(values, context, CONTEXTS)
    assert good[-4:] == bytes([1, 0, 0, 0])
    with pytest.raises(PackError, match="words"):
        decode_integers(good[:-4] + words, context, CONTEXTS)


def test_the_coder_by_its_own_arithmetic() -> None:
    """Two values as likely as each other, with 64 bits of state, words of 32 and a precision of 24."""
    symbols = [0, 1, 1, 0, 1, 0, 0, 1] * 9
    state, words, half = 1, [], 1 << 23
    for symbol in reversed(symbols):
        if state >> 40 >= half:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // half << 24) + symbol * half + state % half
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    head = np.array([-4], "<i2").tobytes() + np.array([2], "<u2").tobytes()
    coded = head + bytes([255, 255]) + bytes(2 * (CONTEXTS - 1)) + np.array(words, "<u4").tobytes()
    values, context = np.array(symbols, np.int32) - 4, np.zeros(72, np.uint8)
    assert encode_integers(values, context, CONTEXTS) == coded
    assert np.array_equal(decode_integers(coded, context, CONTEXTS), values)
