# ruff: noqa: N803  (scikit-learn's and PyOD's argument is called X)
"""What PyOD and scikit-learn expect of a fitted detector, given its scores; neither library is needed."""

from __future__ import annotations

import inspect
import math
from typing import Any, Self

import numpy as np

_REACH = 10  # standard deviations beyond which a binomial tail is 0 or 1 in float64


class Detector:
    """Labels, probabilities and confidences from `decision_function`, `decision_scores_` and `threshold_`.

    A subclass sets in `fit` what `predict` reads: `decision_scores_` float64 (n,), `threshold_`, `n_features_in_`.
    """

    contamination: float
    decision_scores_: np.ndarray
    threshold_: float

    def fit(self, X: Any, y: Any = None) -> Self:
        raise NotImplementedError

    def decision_function(self, X: Any) -> np.ndarray:
        raise NotImplementedError

    def predict(self, X: Any, return_confidence: bool = False) -> Any:
        """1 for outliers, 0 for the rest: int64 (n,); with their confidences where asked for.

        Raises:
            ValueError: X is no table of numbers, or has other columns than the training rows.
            NotFittedError: before `fit`.
        """
        labels = (self.decision_function(X) > self.threshold_).astype(np.int64)
        return (labels, self.predict_confidence(X)) if return_confidence else labels

    def predict_proba(self, X: Any, method: str = "linear", return_confidence: bool = False) -> Any:
        """Probabilities of being ordinary and of being an outlier, float64 (n, 2).

        Args:
            X: (n, d).
            method: `linear`: where the score lies between the least and the largest known one; `unify`: the error
                function of its distance to their mean, in standard deviations (Kriegel et al. 2011).
            return_confidence: return confidences too.

        Raises:
            ValueError: another method, or as `predict`.
        """
        scores, known = self.decision_function(X), self.decision_scores_
        if method == "linear":
            span = float(known.max() - known.min())
            outlying = (scores - known.min()) / (span if span > 0 else 1.0)
        elif method == "unify":
            step = float(known.std()) * math.sqrt(2)
            outlying = np.array([math.erf((score - known.mean()) / step) if step > 0 else 0.0 for score in scores])
        else:
            raise ValueError(f"method is {method!r}; 'linear' and 'unify' are allowed")
        outlying = np.clip(outlying, 0, 1)
        both = np.stack([1 - outlying, outlying], axis=1)
        return (both, self.predict_confidence(X)) if return_confidence else both

    def predict_confidence(self, X: Any) -> np.ndarray:
        """The chance that a model of other rows of the same kind gives the same label (Perini et al. 2020), (n,)."""
        scores = self.decision_function(X)
        known = np.sort(self.decision_scores_)
        below = np.searchsorted(known, scores, side="right")
        distinct, where = np.unique(below, return_inverse=True)
        outlying = _upper_tail(len(known), (1 + distinct) / (2 + len(known)), self.contamination)[where]
        return np.where(scores > self.threshold_, outlying, 1 - outlying)

    def predict_with_rejection(self, X: Any, T: float = 32) -> np.ndarray:
        """Labels as `predict`, and -2 where twice the confidence's distance to 1/2 is at most 1 - 2 exp(-T).

        Perini and Davis, Unsupervised anomaly detection with rejection (2023).
        """
        labels, confidence = self.predict(X, return_confidence=True)
        return np.where(2 * np.abs(confidence - 0.5) <= 1 - 2 * math.exp(-T), -2, labels)

    @property
    def labels_(self) -> np.ndarray:
        """1 where a training row's score is above the threshold, else 0: int64 (n,)."""
        return (self.decision_scores_ > self.threshold_).astype(np.int64)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What `__init__` was given."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Change what the next `fit` uses.

        Raises:
            ValueError: a name that `__init__` does not take.
        """
        allowed = self._parameters()
        for name, value in params.items():
            if name not in allowed:
                raise ValueError(f"{name!r} is no parameter of {type(self).__name__}; they are {', '.join(allowed)}")
            setattr(self, name, value)
        return self

    @classmethod
    def _parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if v is not defaults[k].default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        # not scikit-learn's outlier detectors: their sign and their labels are the opposite of PyOD's
        return Tags(estimator_type=None, target_tags=TargetTags(required=False), input_tags=InputTags())

    def __sklearn_is_fitted__(self) -> bool:
        return "threshold_" in vars(self)

    def _require_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise not_fitted()(f"This {type(self).__name__} is not fitted yet; call fit with ordinary rows first")


def _upper_tail(count: int, p: np.ndarray, contamination: float) -> np.ndarray:
    """P(B > count - int(count * contamination)) of binomial B(count, p), for each p strictly between 0 and 1."""
    limit = count - int(count * contamination)
    found = np.where(count * p > limit, 1.0, 0.0)
    near = np.abs(count * p - limit) <= _REACH * np.sqrt(count * p * (1 - p)) + _REACH
    j = np.arange(limit + 1, count + 1)
    logs = np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in j])
    for i in np.flatnonzero(near):
        found[i] = min(float(np.exp(logs + j * np.log(p[i]) + (count - j) * np.log1p(-p[i])).sum()), 1.0)
    return found


class NotFittedError(ValueError, AttributeError):
    """Stands for scikit-learn's `NotFittedError` where that is not installed."""


def not_fitted() -> type[Exception]:
    try:
        import sklearn.exceptions
    except ImportError:
        return NotFittedError
    return sklearn.exceptions.NotFittedError
