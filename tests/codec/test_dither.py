"""Subtractive dither: the field in closed form, an estimate without bias, errors within half a step."""

from __future__ import annotations

import numpy as np
import pytest

from kinfold.codec.dither import MAX_LEVEL, TABLES, decode, encode, field
from kinfold.codec.random import uniform_bits
from kinfold.errors import PackError


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """A dither row of `count` entries."""
    words = uniform_bits(seed, 0, count + 1).numpy()
    return field(words[:1], words[1:]).reshape(-1)


def normal(count: int, scale: float = 0.01, seed: int = 0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


def step_of(data: bytes) -> float:
    return float(np.frombuffer(data[:4], "<f4")[0])


def test_field_by_its_formula() -> None:
    words = uniform_bits(9, 0, 37).numpy()
    rows, columns = words[:12], words[12:]
    found = field(rows, columns)
    assert found.dtype == np.float32
    for i, row in enumerate(rows.tolist()):
        for j, column in enumerate(columns.tolist()):
            assert found[i, j] == ((row // 65536 + column // 65536) % 65536 + 0.5) / 65536 - 0.5


def test_every_level_of_a_column_is_as_likely() -> None:
    """Over all words of a row, each of the 2^16 levels comes once, whatever the column's word is."""
    rows = np.arange(1 << 16, dtype=np.int64) << 16
    for column in (0, 12345 << 16, (1 << 32) - 1):
        u = np.sort(field(rows, np.array([column]))[:, 0].astype(np.float64))
        assert np.array_equal(u, (np.arange(1 << 16) + 0.5) / (1 << 16) - 0.5)


def test_two_entries_of_a_row_are_independent() -> None:
    """Over all words of the row and of the second column, each pair of levels comes once (16 levels of each)."""
    words = np.arange(16, dtype=np.int64) << 28
    for first in words:
        u = field(words, np.concatenate([[first], words]))
        assert len({(u[i, 0], u[i, j + 1]) for i in range(16) for j in range(16)}) == 256
        u = field(np.concatenate([[first], words]), words)
        assert len({(u[0, j], u[i + 1, j]) for i in range(16) for j in range(16)}) == 256


def test_the_field_of_a_seed_is_even() -> None:
    """Chi squared over 64 bins of 90,000 entries; and no entry is 0 or as large as a half."""
    words = uniform_bits(3, 0, 600).numpy()
    u = field(words[:300], words[300:])
    assert np.abs(u).min() > 0
    assert np.abs(u).max() < 0.5
    counts = np.histogram(u, 64, (-0.5, 0.5))[0]
    assert ((counts - u.size / 64) ** 2 / (u.size / 64)).sum() < 63 + 5 * (2 * 63) ** 0.5 * 3  # rows share words


def test_the_mean_over_dither_is_the_value() -> None:
    """Every level of u once, so the mean of the decoded is the value, but for the grid of 2^-16."""
    u = field(np.arange(1 << 16, dtype=np.int64) << 16, np.array([0])).reshape(-1)
    for value in (0.3, -1.7):
        flat = np.full(u.size, value, np.float32)
        data = encode(flat, u, 3000)
        restored = decode(data, u).astype(np.float64)
        assert restored.mean() == pytest.approx(value, abs=2.0**-15 * step_of(data))
        assert restored.var() == pytest.approx(step_of(data) ** 2 / 12, rel=1e-3)


@pytest.mark.parametrize("nbytes", [900, 2500, 10_000])
def test_errors_are_even_within_half_a_step(nbytes: int) -> None:
    flat, u = normal(8000), drawn(8000)
    data = encode(flat, u, nbytes)
    step = step_of(data)
    error = (decode(data, u).astype(np.float64) - flat) / step
    assert np.abs(error).max() <= 0.5 + 1e-3
    assert error.mean() == pytest.approx(0, abs=5 / (12 * 8000) ** 0.5)
    assert error.var() == pytest.approx(1 / 12, rel=0.05)


DISTRIBUTIONS = {
    "normal": normal(30_000),
    "laplace": np.random.default_rng(0).laplace(0, 1e-3, 30_000).astype(np.float32),
    "student": np.random.default_rng(0).standard_t(3, 30_000).astype(np.float32),
    "tiny": normal(30_000, 1e-30),
    "shifted": normal(30_000) + np.float32(0.05),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("rate", [0.6, 1.0, 2.5, 5.0])
def test_the_budget_is_used_and_never_exceeded(name: str, rate: float) -> None:
    flat, u = DISTRIBUTIONS[name], drawn(30_000)
    nbytes = int(rate * flat.size / 8)
    data = encode(flat, u, nbytes)
    assert 0.97 * nbytes <= len(data) <= nbytes


@pytest.mark.parametrize("count", [1, 2, 60, 300, 1500])
def test_few_values_never_exceed_it(count: int) -> None:
    for seed in range(2):
        flat, u = normal(count, seed=seed), drawn(count, seed)
        for nbytes in (TABLES, TABLES + 1, TABLES + count // 8, 2 * TABLES + count, 40 * TABLES + 4 * count):
            data = encode(flat, u, nbytes)
            assert 4 < len(data) <= nbytes
            assert np.abs(decode(data, u) - flat).max() <= 0.5001 * step_of(data)


def test_the_finest_step() -> None:
    """Any budget: no level above MAX_LEVEL, so tables stay small."""
    flat, u = normal(2000), drawn(2000)
    data = encode(flat, u, 1 << 20)
    assert step_of(data) == pytest.approx(np.abs(flat).max() / MAX_LEVEL, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-38, 1e37])
def test_sizes_at_the_ends_of_float32(scale: float) -> None:
    flat = np.clip(np.random.default_rng(0).standard_normal(500) * scale, -3e38, 3e38).astype(np.float32)
    u = drawn(500)
    for nbytes in (100, 4000):
        data = encode(flat, u, nbytes)
        assert len(data) <= nbytes
        assert np.abs(decode(data, u).astype(np.float64) - flat).max() <= 0.5001 * step_of(data)


def test_zeros() -> None:
    data = encode(np.zeros(50, np.float32), drawn(50), 100)
    assert data == bytes(4)
    assert not decode(data, drawn(50)).any()


@pytest.mark.parametrize("step", [float("nan"), float("inf"), -1.0])
def test_a_step_that_is_none(step: float) -> None:
    data = np.float32(step).tobytes() + encode(normal(50), drawn(50), 200)[4:]
    with pytest.raises(PackError, match="step"):
        decode(data, drawn(50))


@pytest.mark.parametrize("data", [b"", b"\0", bytes(3), bytes(5)])
def test_too_few_bytes_or_too_many(data: bytes) -> None:
    with pytest.raises(PackError, match="step"):
        decode(data, drawn(50))
