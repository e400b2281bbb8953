"""TCCM as PyOD's detector; what needs pyod runs where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from kinfold.audit.outliers import TCCM, as_pyod
from kinfold.errors import MissingExtraError

ROWS = np.random.default_rng(0).normal(size=(40, 3))
FRESH = np.random.default_rng(1).normal(size=(30, 3)) * 2


def test_without_pyod_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyod", "pyod.models", "pyod.models.base"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "kinfold.audit.outliers.pyod_detector", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        as_pyod()
    assert caught.value.hint == "pip install 'kinfold[pyod]'"


@pytest.fixture(scope="module")
def detector() -> TCCM:
    pytest.importorskip("pyod")
    return as_pyod()(max_steps=20, hidden=16).fit(ROWS)


def test_it_is_a_detector_of_pyod(detector: TCCM) -> None:
    from pyod.models.base import BaseDetector  # pyright: ignore[reportMissingImports]
    from sklearn.base import clone

    assert isinstance(detector, BaseDetector)
    for name in ("decision_scores_", "labels_", "threshold_", "_mu", "_sigma"):
        assert getattr(detector, name) is not None
    np.testing.assert_array_equal(detector.fit(ROWS).labels_, detector.decision_scores_ > detector.threshold_)
    assert clone(detector).get_params() == detector.get_params()
    plain = TCCM(max_steps=20, hidden=16).fit(ROWS)
    np.testing.assert_array_equal(detector.decision_function(FRESH), plain.decision_function(FRESH))


@pytest.mark.filterwarnings("ignore")
def test_labels_probabilities_and_confidences_are_those_of_pyods_own_code(detector: TCCM) -> None:
    from pyod.models.base import BaseDetector  # pyright: ignore[reportMissingImports]

    for method in ("linear", "unify"):
        theirs = BaseDetector.predict_proba(detector, FRESH, method=method, return_confidence=True)
        for ours, wanted in zip(detector.predict_proba(FRESH, method, True), theirs, strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-9)
    np.testing.assert_array_equal(detector.predict(FRESH), BaseDetector.predict(detector, FRESH))
    for width in (1, 4, 10):
        theirs = BaseDetector.predict_with_rejection(detector, FRESH, T=width)
        np.testing.assert_array_equal(detector.predict_with_rejection(FRESH, T=width), theirs)


@pytest.mark.filterwarnings("ignore")
def test_what_pyod_adds_works(detector: TCCM, tmp_path: Path) -> None:
    import joblib
    from pyod.models.knn import KNN  # pyright: ignore[reportMissingImports]

    added = detector.__class__(max_steps=5, hidden=16)
    assert added.fit_predict(ROWS).shape == (40,)  # type: ignore[attr-defined]
    ranks = detector._predict_rank(FRESH)  # type: ignore[attr-defined]
    wanted = KNN._predict_rank(detector, FRESH)
    np.testing.assert_array_equal(ranks, wanted)
    rate, bound, cost = detector.compute_rejection_stats(T=8)  # type: ignore[attr-defined]
    assert 0 <= rate <= bound
    assert cost > 0
    joblib.dump(detector, tmp_path / "m.joblib")  # PyOD's way of keeping a model
    back = joblib.load(tmp_path / "m.joblib")
    np.testing.assert_array_equal(back.decision_function(FRESH), detector.decision_function(FRESH))
