"""What PyOD and scikit-learn expect of a detector, by scipy and scikit-learn's own tools."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from kinfold.audit.outliers import TCCM
from kinfold.audit.outliers.contract import Detector

KNOWN = np.random.default_rng(0).exponential(size=57)


class Given(Detector):
    """Scores are the first column."""

    def __init__(self, *, contamination: float = 0.1, other: str = "a") -> None:
        self.contamination, self.other = contamination, other

    def fit(self, X: Any, y: Any = None) -> Given:  # noqa: N803
        self.decision_scores_ = np.asarray(X)[:, 0]
        self.threshold_ = float(np.quantile(self.decision_scores_, 1 - self.contamination))
        return self

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        self._require_fitted()
        return np.asarray(X)[:, 0]


@pytest.fixture
def fitted() -> Given:
    return Given().fit(KNOWN[:, None])


ASKED = np.concatenate([np.linspace(-1, 9, 60), KNOWN[:5]])


def test_labels_are_1_above_the_threshold(fitted: Given) -> None:
    np.testing.assert_array_equal(fitted.predict(ASKED[:, None]), (np.quantile(KNOWN, 0.9) < ASKED).astype(int))
    np.testing.assert_array_equal(fitted.labels_, (np.quantile(KNOWN, 0.9) < KNOWN).astype(int))


def test_probabilities_are_linear_or_unified(fitted: Given) -> None:
    linear = np.clip((ASKED - KNOWN.min()) / (KNOWN.max() - KNOWN.min()), 0, 1)
    np.testing.assert_allclose(fitted.predict_proba(ASKED[:, None])[:, 1], linear)
    unified = np.clip(2 * stats.norm.cdf((ASKED - KNOWN.mean()) / KNOWN.std()) - 1, 0, 1)  # erf by the normal's cdf
    found = fitted.predict_proba(ASKED[:, None], method="unify")
    np.testing.assert_allclose(found[:, 1], unified, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1)
    with pytest.raises(ValueError, match="'linear' and 'unify' are allowed"):
        fitted.predict_proba(ASKED[:, None], method="best")


def test_equal_scores_have_probabilities_too() -> None:
    flat = Given().fit(np.ones((9, 1)))
    for method in ("linear", "unify"):
        assert np.isfinite(flat.predict_proba([[1.0], [2.0]], method=method)).all()


@pytest.mark.parametrize(("count", "contamination"), [(57, 0.1), (57, 0.5), (5, 0.1), (2000, 0.03)])
def test_confidence_is_the_binomial_tail_of_perini(count: int, contamination: float) -> None:
    known = np.random.default_rng(1).exponential(size=count)
    fitted = Given(contamination=contamination).fit(known[:, None])
    posterior = np.array([(1 + (known <= s).sum()) / (2 + count) for s in ASKED])
    tail = stats.binom.sf(count - int(count * contamination), count, posterior)
    wanted = np.where(fitted.threshold_ < ASKED, tail, 1 - tail)
    np.testing.assert_allclose(fitted.predict_confidence(ASKED[:, None]), wanted, atol=1e-12)
    for found, told in (fitted.predict(ASKED[:, None], True), fitted.predict_proba(ASKED[:, None], "linear", True)):
        assert len(found) == len(told)
        np.testing.assert_allclose(told, wanted, atol=1e-12)


def test_doubtful_labels_are_rejected(fitted: Given) -> None:
    sure = fitted.predict_confidence(ASKED[:, None])
    for width in (1, 3, 32):
        found = fitted.predict_with_rejection(ASKED[:, None], T=width)
        doubtful = 2 * np.abs(sure - 0.5) <= 1 - 2 * math.exp(-width)
        np.testing.assert_array_equal(found == -2, doubtful)
        np.testing.assert_array_equal(found[~doubtful], fitted.predict(ASKED[:, None])[~doubtful])


def test_parameters_are_those_of_init() -> None:
    detector = Given(other="b")
    assert detector.get_params() == {"contamination": 0.1, "other": "b"}
    assert repr(detector) == "Given(other='b')"
    assert detector.set_params(other="c", contamination=0.2) is detector
    assert detector.get_params() == {"contamination": 0.2, "other": "c"}
    with pytest.raises(ValueError, match="'size' is no parameter of Given; they are contamination, other"):
        detector.set_params(size=3)


def test_scikit_learn_clones_checks_and_pipes_it() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    detector = TCCM(max_steps=3, hidden=8, threshold="in_sample")
    copy = clone(detector)
    assert copy is not detector
    assert copy.get_params() == detector.get_params()
    pipe = Pipeline([("scale", StandardScaler()), ("tccm", copy)]).fit(rows)
    assert pipe.predict(rows).shape == (20,)
    scaled = StandardScaler().fit_transform(rows)
    np.testing.assert_allclose(pipe.decision_function(rows), detector.fit(scaled).decision_function(scaled))
    check_is_fitted(copy)


def test_what_is_not_fitted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.exceptions import NotFittedError

    for ask in ("decision_function", "predict", "explain", "predict_proba", "certified_radius"):
        with pytest.raises(NotFittedError, match="call fit"):
            getattr(TCCM(), ask)(np.zeros((2, 2)))
    with pytest.raises(NotFittedError):
        check_is_fitted(TCCM())
    monkeypatch.setitem(sys.modules, "sklearn.exceptions", None)
    for kind in (ValueError, AttributeError):
        with pytest.raises(kind, match="not fitted"):
            TCCM().decision_function(np.zeros((2, 2)))


@pytest.mark.filterwarnings("ignore:Estimator TCCM does not inherit")
def test_scikit_learns_own_checks_pass_but_two() -> None:
    """Where they fail: one row is an AuditError here, and float32 sums depend on how many rows are scored at once."""
    from sklearn.utils.estimator_checks import check_estimator

    known = {"check_fit2d_1sample": "five rows are needed", "check_methods_subset_invariance": "float32 at 1e-7"}
    done = check_estimator(
        TCCM(max_steps=5, hidden=16, threshold="in_sample"), expected_failed_checks=known, on_skip=None
    )
    found = {one["check_name"] for one in done if one["status"] in ("failed", "xfail")}
    assert found <= set(known)
    assert sum(one["status"] == "passed" for one in done) > 30
