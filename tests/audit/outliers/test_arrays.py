"""What a monitor takes, and copies in a log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kinfold.audit.outliers import arrays
from kinfold.errors import AuditError

NAN = np.array([[0.0, 1.0], [0.0, np.nan]])


@pytest.mark.parametrize(
    ("features", "logits", "gradients", "words"),
    [
        (np.ones(3), None, None, r"features of the log are of shape \(3,\)"),
        (np.ones((0, 3)), None, None, r"of shape \(0, 3\)"),
        (NAN, None, None, "features of the log are not finite in row 1"),
        (np.ones((2, 2)), NAN, None, "logits of the log are not finite in row 1"),
        (np.ones((2, 2)), np.ones((3, 2)), None, r"\(2, columns\) is allowed"),
        (np.ones((2, 2)), np.ones((2, 1)), None, "the model has 1 output"),
        (np.ones((2, 2)), None, NAN, "gradients of the log are not finite in row 1"),
        (np.ones((2, 2)), None, np.ones(2), "gradients of the log are of shape"),
    ],
)
def test_arrays_that_are_refused(features: Any, logits: Any, gradients: Any, words: str) -> None:
    with pytest.raises(AuditError, match=words):
        arrays.views("log", features, logits, gradients)


def test_both_must_be_of_one_model() -> None:
    one = arrays.views("log", np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 4)))
    arrays.require_alike(one, one)
    for other, words in (
        (arrays.views("log", np.ones((2, 3)), None, None), "2 features, the log 3"),
        (arrays.views("log", np.ones((2, 2)), None, np.ones((2, 4))), "logits"),
        (arrays.views("log", np.ones((2, 2)), np.ones((2, 3)), None), "gradients"),
        (arrays.views("log", np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 5))), "gradients"),
    ):
        with pytest.raises(AuditError, match=words):
            arrays.require_alike(one, other)


def test_copies_are_one_row() -> None:
    features = np.array([[3.0, 4.0], [1.0, 0.0], [3.0, 4.0], [1.0, -0.0], [3.0, 4.0]])
    energies = np.array([1.0, 2.0, 1.0, 2.0, 5.0])
    log = arrays.views("log", features, energies, features)
    first, place = arrays.distinct(log)
    assert first.tolist() == [0, 1, 4]
    assert place.tolist() == [0, 1, 0, 1, 2]
    some = arrays.rows(log, first)
    assert some.energy is not None
    assert some.gradients is not None
    np.testing.assert_array_equal(some.energy, [1, 2, 5])
    np.testing.assert_array_equal(some.gradients, features[first])
    bare = arrays.views("log", features, None, None)
    assert arrays.distinct(bare)[0].tolist() == [0, 1]
    assert arrays.rows(bare, np.array([1])).energy is None
