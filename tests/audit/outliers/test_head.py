"""The linear head is scikit-learn's; cross-fitting keeps every row from the head that scores it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from kinfold.audit.outliers.filters import Views
from kinfold.audit.outliers.head import Rows, Score, Unkept, cross_fitted, fit_linear, linear_trainer, seeded_folds
from kinfold.errors import AuditError


def features(count: int, columns: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, columns)) + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("ordinary", "outlying", "columns"), [(200, 20, 8), (60, 60, 96), (300, 10, 3)])
def test_it_is_scikit_learns(ordinary: int, outlying: int, columns: int) -> None:
    inside, outside = features(ordinary, columns, 0), features(outlying, columns, 1, 0.3)
    ours = fit_linear(inside, outside)
    theirs = LogisticRegression(C=10, class_weight="balanced", tol=1e-10, max_iter=10000).fit(
        np.concatenate([inside, outside]), np.arange(ordinary + outlying) >= ordinary
    )
    fresh = features(50, columns, 2)
    np.testing.assert_allclose(ours.scores(fresh), theirs.decision_function(fresh), atol=1e-4)
    np.testing.assert_array_equal(ours.of(Views.of(fresh, None)), ours.scores(Views.of(fresh, None).features))
    again = fit_linear(inside, outside)
    assert (again.weight == ours.weight).all()
    assert again.bias == ours.bias


def test_no_row_is_scored_by_a_head_that_saw_it() -> None:
    generator = np.random.default_rng(0)
    folds, wild_folds = seeded_folds(23, 5, generator), seeded_folds(31, 5, generator)
    outliers = generator.random(31) < 0.5
    scored: list[tuple[set[int], set[int]]] = []

    def train(known: Rows, picked: Rows) -> Score:
        assert outliers[picked].all()

        def score(some: Rows, others: Rows) -> tuple[np.ndarray, np.ndarray]:
            assert not set(known) & set(some)
            assert not set(picked) & set(others)
            assert set(known) | set(some) == set(range(23))
            assert set(np.flatnonzero(outliers)) - set(others) == set(picked)
            scored.append((set(some), set(others)))
            return some * 1.0, others * 2.0

        return score

    own, found = cross_fitted(train, folds, wild_folds, outliers)
    np.testing.assert_array_equal(own, np.arange(23))
    np.testing.assert_array_equal(found, 2 * np.arange(31))
    assert len(scored) == 5


def test_the_trainer_trains_on_what_it_is_told() -> None:
    reference, wild = features(40, 4, 0), features(30, 4, 1, 0.5)
    score = linear_trainer(reference, wild)(np.arange(10, 40), np.arange(5))
    own, found = score(np.arange(10), np.arange(5, 30))
    wanted = fit_linear(reference[10:], wild[:5])
    np.testing.assert_array_equal(own, wanted.scores(reference[:10]))
    np.testing.assert_array_equal(found, wanted.scores(wild[5:]))


def test_folds_are_of_one_size() -> None:
    found = seeded_folds(53, 5, np.random.default_rng(0))
    assert sorted(np.bincount(found)) == [10, 10, 11, 11, 11]
    np.testing.assert_array_equal(found, seeded_folds(53, 5, np.random.default_rng(0)))


def test_a_head_that_is_not_kept_says_so() -> None:
    with pytest.raises(AuditError, match="is not kept"):
        Unkept().of(Views.of(np.ones((2, 3)), None))
