"""Philox: the authors' known answers, and the same rounds in plain Python integers."""

from __future__ import annotations

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec.random import philox, tensor_seed, uniform_bits

WORD = st.integers(0, 2**32 - 1)


def reference(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Salmon et al., Philox4x32-10, on integers without a size."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def ours(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    return [int(word) for word in philox(tuple(torch.tensor([c]) for c in counter), key)]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        (0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (0xFFFFFFFF, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ],
)
def test_known_answers(word: int, answer: list[int]) -> None:
    assert ours((word,) * 4, (word, word)) == answer
    assert reference((word,) * 4, (word, word)) == answer


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
@settings(deadline=None)
def test_rounds(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    assert ours(counter, key) == reference(counter, key)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40).map(lambda i: 4 * i), st.integers(0, 11))
@settings(deadline=None)
def test_stream(seed: int, start: int, count: int) -> None:
    expected = []
    for place in range(start, start + count):
        block = place // 4
        words = reference((block % 2**32, block // 2**32, 0, 0), (seed % 2**32, seed // 2**32))
        expected.append(words[place % 4])
    drawn = uniform_bits(seed, start, count)
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == expected


def test_a_stream_may_be_drawn_in_pieces() -> None:
    whole = uniform_bits(7, 0, 1000)
    pieces = [uniform_bits(7, 0, 400), uniform_bits(7, 400, 4), uniform_bits(7, 404, 596)]
    assert torch.equal(torch.cat(pieces), whole)
    with pytest.raises(ValueError, match="multiple of 4"):
        uniform_bits(7, 3, 1)


def test_uniform() -> None:
    """Each of 32 bits is set in half of 40,000 words, within five standard errors."""
    words = uniform_bits(123, 0, 40_000)
    for place in range(32):
        assert abs(int((words >> place & 1).sum()) - 20_000) < 5 * 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_words_on_a_gpu() -> None:
    assert torch.equal(uniform_bits(5, 0, 10_001, "cuda").cpu(), uniform_bits(5, 0, 10_001))


def test_tensor_seed() -> None:
    assert tensor_seed(0, "a.weight").to_bytes(8, "little") == blake3(b"0:a.weight").digest()[:8]
    names = [(seed, name) for seed in (0, 1, 10) for name in ("a", "b", "0:a", "é")]
    assert len({tensor_seed(*name) for name in names}) == len(names)
