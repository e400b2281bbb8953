"""Tables of numbers as detectors take them: checked, and standardised by what the training rows show."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

LARGEST = 1e150  # squares of float64 beyond this overflow
_FARTHEST = 1e18  # standard deviations; a float32 must hold what the nets make of it


class Fitted(Protocol):
    """A model of normal rows; larger scores are more abnormal."""

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """float64 (n,) of rows (n, d)."""
        ...

    def attributions(self, rows: np.ndarray, *, signed: bool = False) -> np.ndarray:
        """float64 (n, d): each column's part in the score, in standard deviations."""
        ...


def checked(table: Any, *, columns: int | None = None, name: str = "TCCM") -> np.ndarray:
    """A table as float64 (n, d), in scikit-learn's words where it is none.

    Args:
        table: anything numpy can read as numbers.
        columns: how many a fitted model expects.
        name: of the detector.

    Raises:
        ValueError: sparse, not numeric, complex, not 2-D, no rows or columns, another number of columns, or a value
            that is NaN, infinite or above 1e150 in size; its row and column are named.
        TypeError: an entry that is neither text nor number.
    """
    if hasattr(table, "tocsr") or hasattr(table, "tocoo"):
        raise ValueError(f"{name} takes a dense table, got a sparse one; use X.toarray()")
    given = np.asarray(table)
    if given.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{given!r:.200}")
    try:
        rows = np.asarray(given, dtype=np.float64)
    except TypeError as cause:  # an object that is neither text nor number
        raise TypeError(f"{name} takes a table of numbers: {cause}") from cause
    except ValueError as cause:
        raise ValueError(f"{name} takes a table of numbers: {cause}") from cause
    if rows.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {rows.ndim}D array of shape {rows.shape} instead. Reshape your data with "
            "X.reshape(-1, 1) if it has a single feature, or X.reshape(1, -1) if it is a single sample"
        )
    for side, what in enumerate(("sample(s)", "feature(s)")):
        if not rows.shape[side]:
            raise ValueError(
                f"Found array with 0 {what} (shape={rows.shape}) while a minimum of 1 is required by {name}."
            )
    if columns is not None and rows.shape[1] != columns:
        raise ValueError(f"X has {rows.shape[1]} features, but {name} is expecting {columns} features as input")
    wrong = ~(np.abs(rows) <= LARGEST)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        what = "NaN" if np.isnan(rows[row, column]) else "infinity or a value too large for dtype('float64')"
        raise ValueError(f"Input X contains {what}: row {row}, column {column}")
    return rows


def spread(rows: np.ndarray, floor: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of each column, float64 (d,); 1 for a constant column.

    Args:
        rows: float64 (n, d).
        floor: the least standard deviation of a column that varies.
    """
    mean = rows.mean(axis=0)
    centred = rows - mean
    scale = np.sqrt(np.mean(centred * centred, axis=0))
    # the mean of equal values can miss them by a rounding error, which is no spread
    constant = scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, np.maximum(scale, floor))


def standardised(rows: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(rows - mean) / scale, float64, cut at 1e18 standard deviations."""
    return np.clip((rows - mean) / scale, -_FARTHEST, _FARTHEST)
