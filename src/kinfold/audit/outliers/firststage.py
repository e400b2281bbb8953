"""The first stage: how many of a log are outliers, and which ones a head is to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from kinfold.audit.outliers.conformal import outlier_share, wanted
from kinfold.audit.outliers.filters import FILTERS, Term, Views, fit_terms, lower_median, total
from kinfold.audit.outliers.medix import ewm_filter, rows_a_round
from kinfold.audit.outliers.threshold import p_values
from kinfold.errors import AuditOptionError

Filter = Literal["sum", "energy", "knn", "l2", "msp", "sal", "medix", "none"]
Head = Literal["linear", "none"]
_OTHERS_COUNT = ("medix", "sal", "none")  # these do not say how many: energy and neighbours do


@dataclass(kw_only=True, eq=False)
class Settings:
    """Parameters of a `RequestMonitor`."""

    filter: Filter = "sum"
    head: Head = "linear"
    k: int | float | Literal["auto"] = "auto"
    max_rounds: int = 1
    eps: float = 0.0
    gradient_reference: Literal["median", "mean"] = "median"
    false_alarm: float = 0.05
    fdr: float | None = None
    seed: int = 0

    def check(self) -> Self:
        """Look at every parameter.

        Raises:
            AuditOptionError: one is out of its range; it is a ValueError too.
        """
        allowed = {"filter": tuple(FILTERS), "head": ("linear", "none"), "gradient_reference": ("median", "mean")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise AuditOptionError(f"{name} is {getattr(self, name)!r}; {', '.join(map(repr, values))} are allowed")
        for name in ("false_alarm", "fdr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise AuditOptionError(f"{name} is {value}; a number between 0 and 1 is allowed")
        if self.filter == "none" and self.head == "none":
            raise AuditOptionError("filter 'none' and head 'none' leave no score; one of them is needed")
        if self.k != "auto" and (isinstance(self.k, str) or not (0 < self.k < 1 or (self.k >= 1 and self.k % 1 == 0))):
            raise AuditOptionError(f"k is {self.k!r}; 'auto', a whole number from 1, or a share below 1 is allowed")
        if self.max_rounds < 1 or self.eps < 0 or self.seed < 0:
            raise AuditOptionError(
                f"max_rounds is {self.max_rounds}, eps {self.eps}, seed {self.seed}; a whole number from 1, and two "
                "numbers from 0 are allowed"
            )
        return self


@dataclass(frozen=True)
class Picked:
    """What the first stage found.

    Attributes:
        terms: of the filter; none for the filter `none`.
        share: estimated share of outliers in the log.
        outliers: bool (n,), rows of the log for the head to learn from.
    """

    terms: tuple[Term, ...]
    share: float
    outliers: np.ndarray


def pick(settings: Settings, ref: Views, wild: Views, folds: np.ndarray) -> Picked:
    """Score the log by the filter and take its highest rows.

    Raises:
        AuditError: the filter needs what is not there.
        AuditOptionError: `k` is more than the log has.
        DegenerateGradientError: of `medix`.
    """
    centre = None
    if ref.gradients is not None:
        mean = settings.gradient_reference == "mean"
        centre = ref.gradients.mean(axis=0) if mean else lower_median(ref.gradients)
    terms = fit_terms(settings.filter, ref, wild, folds, centre)
    counting = terms
    if settings.filter in _OTHERS_COUNT:
        counting = fit_terms("knn" if ref.energy is None else "sum", ref, wild, folds)
    share = outlier_share(p_values(total(t.standardised(t.reference) for t in counting), _scores(counting, wild)))
    count = len(wild.features)
    k = wanted(share, count) if settings.k == "auto" else rows_a_round(settings.k, count)
    outliers = np.zeros(count, dtype=bool)
    if settings.filter == "none":
        outliers[:] = True
    elif settings.filter == "medix":
        assert wild.gradients is not None  # its term was fitted
        assert centre is not None
        found = ewm_filter(wild.gradients, centre, k=k, max_rounds=settings.max_rounds, eps=settings.eps)
        outliers[found.order[: found.removed]] = True
    else:
        outliers[np.argsort(-_scores(terms, wild), kind="stable")[:k]] = True
    return Picked(terms, share, outliers)


def _scores(terms: tuple[Term, ...], views: Views) -> np.ndarray:
    return total(term.of(views) for term in terms)
