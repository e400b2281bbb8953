"""What counts as a table, and how columns are standardised; scikit-learn is the other route."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.preprocessing import StandardScaler

from kinfold.audit.outliers.rows import checked, spread, standardised


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1.0, 2.0], "Expected 2D array, got 1D array"),
        (np.zeros((2, 2, 2)), "got 3D array"),
        (np.zeros((0, 3)), r"0 sample\(s\) \(shape=\(0, 3\)\)"),
        (np.zeros((3, 0)), r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1 is required"),
        (csr_matrix(np.eye(3)), "sparse"),
        ([["a", "b"]], "numbers"),
        ([[1j]], "Complex data not supported"),
        ([[1.0, 2.0], [3.0, np.nan]], "NaN: row 1, column 1"),
        ([[1.0, -np.inf]], "infinity or a value too large .*: row 0, column 1"),
        ([[1e200]], "too large"),
    ],
)
def test_what_is_no_table_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checked(given)


def test_an_object_is_no_number() -> None:
    with pytest.raises(TypeError, match="real number"):
        checked(np.array([[{}]], dtype=object))


def test_another_number_of_columns_is_told_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="X has 2 features, but TCCM is expecting 3 features"):
        checked([[1, 2]], columns=3)


def test_lists_and_integers_are_tables() -> None:
    rows = checked([[1, 2], [3, 4]])
    assert rows.dtype == np.float64
    assert rows.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_spread_is_scikit_learns() -> None:
    rows = np.random.default_rng(0).normal(3, [1, 5, 0, 1e-4], (50, 4)) + np.array([0, 0, 0.1, 1e3])
    theirs = StandardScaler().fit(rows)
    mean, scale = spread(rows)
    np.testing.assert_allclose(mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(scale, theirs.scale_, rtol=1e-6)
    assert scale[2] == 1
    np.testing.assert_allclose(standardised(rows, mean, scale), theirs.transform(rows), rtol=1e-6, atol=1e-9)


def test_a_floor_is_for_columns_that_vary() -> None:
    rows = np.array([[0.0, 7.0, 0.0], [0.02, 7.0, 10.0]])
    assert spread(rows, 0.05)[1].tolist() == [0.05, 1.0, 5.0]


def test_a_value_that_float32_cannot_hold_is_cut() -> None:
    assert standardised(np.array([[1e100, -1e100]]), np.zeros(2), np.ones(2)).tolist() == [[1e18, -1e18]]
