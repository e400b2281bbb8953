"""Kept values: golden bytes by hand, and the least squares that the steps stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec.values import decode_values, encode_values, values_bytes
from kinfold.errors import PackError


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.int64)


@st.composite
def columns_of_values(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    columns, count = draw(st.integers(1, 5)), draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 10.0 ** draw(st.integers(-30, 15))
    return rng.standard_normal(count) * scale, rng.integers(0, columns, count), columns


def test_golden_bytes() -> None:
    values = np.array([1.5, -0.25, 3.0])
    assert encode_values(values, zeros(3), 1, 32).hex() == "0000c03f" + "000080be" + "00004040"
    # 2^2 puts 3 at 0.75; halves of 0.375, -0.0625, 0.75
    assert encode_values(values, zeros(3), 1, 16).hex() == "02" + "0036" + "00ac" + "003a"
    # mean size 1.5, so the step is 3 = 0.75 times 2^2; signs +, -, +
    assert encode_values(np.array([1.0, -2.0, 1.5]), zeros(3), 1, 1).hex() == "02" + "003a" + "02"
    # 2 bits: of the steps 3/2 and less the largest is best, 0.375 times 2^2. Codes 00, 10 (minus), 01, 11
    assert encode_values(np.array([1.0, -1.0, 3.0, -3.0]), zeros(4), 1, 2).hex() == "02" + "0036" + "d8"


def test_golden_bytes_decode() -> None:
    data = bytes.fromhex("02" + "0038" + "0034" + "d8")  # steps 2 and 1 of two columns
    assert decode_values(data, np.array([0, 1, 0, 1]), 2, 2).tolist() == [1.0, -0.5, 3.0, -1.5]


@given(columns_of_values(), st.sampled_from([32, 16, 8, 4, 3, 2, 1]))
@settings(deadline=None, max_examples=200)
def test_size_and_error(case: tuple[np.ndarray, np.ndarray, int], width: int) -> None:
    values, column, columns = case
    data = encode_values(values, column, columns, width)
    shared = {32: 0, 16: 8}.get(width, 8 + 16 * columns)
    assert len(data) == values_bytes(values.size, columns, width) == -(-(shared + values.size * width) // 8)
    error = np.abs(decode_values(data, column, columns, width).double().numpy() - values)
    peak = np.abs(values).max(initial=0.0)
    if width == 32:
        assert np.all(error <= 2.0**-24 * np.abs(values) + 2.0**-149)
    elif width == 16:  # float16 beside a largest entry of 1/2 to 1
        assert np.all(error <= 2.0**-11 * np.abs(values) + 2.0**-24 * peak)
    else:  # no worse than ten tenths of the peak: half a step away, and the step is a float16
        bound = np.array([np.abs(values[column == j]).max(initial=0.0) for j in range(columns)])[column]
        step = bound / 2 ** (width - 1)
        rounding = 2.0 ** (width - 1) * (step * 2.0**-11 + peak * 2.0**-23)
        assert np.sum(error**2) <= np.sum(((1 if width == 1 else 0.5) * step + rounding) ** 2) * (1 + 1e-6)


@pytest.mark.parametrize("width", [8, 4, 3, 2])
def test_step_is_the_best_of_ten(width: int) -> None:
    """Tried one by one in float64, without the 11-bit rounding of the stored step."""
    values = np.random.default_rng(5).laplace(size=400)
    top = 2 ** (width - 1)
    errors = []
    for tenth in range(1, 11):
        step = np.abs(values).max() * tenth / 10 / top
        level = np.minimum(np.floor(np.abs(values) / step), top - 1) + 0.5
        errors.append(np.sum((np.abs(values) - level * step) ** 2))
    decoded = decode_values(encode_values(values, zeros(400), 1, width), zeros(400), 1, width).double().numpy()
    assert np.sum((decoded - values) ** 2) == pytest.approx(min(errors), rel=5e-3)


def test_one_bit_is_the_mean_size() -> None:
    """Of all single levels the mean of the sizes has the least squared error."""
    values = np.random.default_rng(6).standard_normal(300)
    decoded = decode_values(encode_values(values, zeros(300), 1, 1), zeros(300), 1, 1).numpy()
    assert np.array_equal(np.sign(decoded), np.sign(values))
    assert np.allclose(np.abs(decoded), np.abs(values).mean(), rtol=2.0**-11)


@pytest.mark.parametrize("width", [8, 4, 3, 2, 1])
def test_no_level_at_zero(width: int) -> None:
    values = np.concatenate([np.full(5, 1e-3), [-1e-3, 1.0]])
    decoded = decode_values(encode_values(values, zeros(7), 1, width), zeros(7), 1, width).numpy()
    assert np.array_equal(np.sign(decoded), np.sign(values))


def test_columns_do_not_share_a_step() -> None:
    column = np.arange(40) % 2
    values = np.where(column == 0, 1.0, 1e-3) * np.random.default_rng(7).uniform(0.5, 1, 40)
    decoded = decode_values(encode_values(values, column, 2, 8), column, 2, 8).numpy()
    assert np.all(np.abs(decoded - values) <= np.abs(values) / 100)


@pytest.mark.parametrize("width", [32, 16, 8, 1])
def test_nothing_and_zeros(width: int) -> None:
    assert decode_values(encode_values(np.zeros(0), zeros(0), 3, width), zeros(0), 3, width).tolist() == []
    assert decode_values(encode_values(np.zeros(5), zeros(5), 3, width), zeros(5), 3, width).tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("data", "width"),
    [
        ("0000c07f", 32),  # NaN
        ("000080ff", 32),  # minus infinity
        ("00007c", 16),
        ("7f" + "ff7b", 16),  # 65504 times 2^127
        ("00" + "007e" + "01", 8),
        ("7f" + "ff7b" + "7f", 8),
    ],
)
def test_not_finite_is_refused(data: str, width: int) -> None:
    with pytest.raises(PackError, match="NaN or infinity"):
        decode_values(bytes.fromhex(data), zeros(1), 1, width)


@pytest.mark.parametrize("width", [32, 16, 8, 3])
def test_wrong_length_is_refused(width: int) -> None:
    data = encode_values(np.ones(9), zeros(9), 1, width)
    for damaged in (data[:-1], data + b"\0", b""):
        with pytest.raises(PackError, match="were expected"):
            decode_values(damaged, zeros(9), 1, width)
