"""Odd rows of a table, odd variants of a family, and requests that are not a variant's business."""

from __future__ import annotations

from kinfold.audit.outliers.medix import ewm_filter, ewm_loo_scores
from kinfold.audit.outliers.monitor import RequestMonitor
from kinfold.audit.outliers.requests import requests
from kinfold.audit.outliers.tccm import TCCM
from kinfold.audit.outliers.variants import variants
from kinfold.errors import MissingExtraError

__all__ = ["TCCM", "RequestMonitor", "as_pyod", "ewm_filter", "ewm_loo_scores", "requests", "variants"]


def as_pyod() -> type[TCCM]:
    """TCCM as a subclass of PyOD's `BaseDetector` too, for tools that ask for one.

    Raises:
        MissingExtraError: pyod is not installed.
    """
    try:
        from kinfold.audit.outliers.pyod_detector import PyodTCCM
    except ModuleNotFoundError as missing:
        raise MissingExtraError(missing.name or "pyod", "pyod") from missing
    return PyodTCCM
