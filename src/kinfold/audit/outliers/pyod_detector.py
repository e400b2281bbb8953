# ruff: noqa: N803  (scikit-learn's and PyOD's argument is called X)
"""TCCM as one of PyOD's detectors; importing this module needs pyod."""

from __future__ import annotations

from typing import Any, Self

from pyod.models.base import BaseDetector  # pyright: ignore[reportMissingImports]

from kinfold.audit.outliers.tccm import TCCM


class PyodTCCM(TCCM, BaseDetector):
    """TCCM with what PyOD's base class adds: rejection statistics, scores by name, ranks.

    PyOD's own deep base class is passed by: it drops the last short batch, divides by a spread that may be 0, and seeds
    the global generator.
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        self._set_n_classes(y)
        super().fit(X)
        self._mu, self._sigma = self.decision_scores_.mean(), self.decision_scores_.std()
        return self
