"""Scores that say which requests of a log stand out, all behind one interface: numpy only, larger is more outlying.

A filter is a sum of terms, each standardised by the reference's own scores. No reference row is scored by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kinfold.audit.outliers.medix import Vote
from kinfold.errors import AuditError

NEIGHBOURS = 10
FILTERS: Mapping[str, tuple[str, ...]] = {
    "sum": ("energy", "knn"),
    "energy": ("energy",),
    "knn": ("knn",),
    "l2": ("l2",),
    "msp": ("msp",),
    "sal": ("sal",),
    "medix": ("medix",),
    "none": (),
}
GRADIENT_FILTERS = ("l2", "sal", "medix")
_AT_ONCE = 1 << 22  # distances held at once: 32 MiB


@dataclass(frozen=True)
class Views:
    """What a model says of n rows.

    Attributes:
        features: float64 (n, d), of norm 1.
        energy: float64 (n,), -logsumexp of the logits, or a causal LM's mean negative log-likelihood a token; None
            where there are no logits.
        doubt: float64 (n,), 1 - the largest probability; None as above, and for a causal LM.
        gradients: float64 (n, g), or None.
    """

    features: np.ndarray
    energy: np.ndarray | None = None
    doubt: np.ndarray | None = None
    gradients: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray, logits: np.ndarray | None, gradients: np.ndarray | None = None) -> Views:
        """Views of float64 features (n, d) and logits (n, c), or energies (n,) instead of logits."""
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        unit = features / np.where(lengths > 0, lengths, 1.0)
        if logits is None or logits.ndim == 1:
            return cls(unit, logits, None, gradients)
        top = logits.max(axis=1)
        odds = np.exp(logits - top[:, None])
        others = np.sort(odds, axis=1)[:, :-1].sum(axis=1)  # not 1 - p, which is 0 for confident rows
        return cls(unit, -top - np.log(odds.sum(axis=1)), others / (1 + others), gradients)


class Rule(Protocol):
    """Gives a score of each row; where a rule cannot, it raises AuditError."""

    def of(self, views: Views) -> np.ndarray: ...


@dataclass(frozen=True)
class Known:
    """A score that the views have already: `energy` or `doubt`."""

    key: str

    def of(self, views: Views) -> np.ndarray:
        found = getattr(views, self.key)
        if found is None:
            raise AuditError(
                "this score needs logits of two classes or more, which are not there",
                hint="--filter knn looks at features only",
            )
        return found


@dataclass(frozen=True)
class Neighbours:
    """Mean distance to the 10th neighbour among the reference rows of each set of folds but one.

    A reference row is compared with those of other folds, any other row with each such set in turn.

    Attributes:
        seen: float64 (n, d), of norm 1.
        folds: int64 (n,).
    """

    seen: np.ndarray
    folds: np.ndarray

    def own(self) -> np.ndarray:
        found = np.empty(len(self.seen))
        for fold in np.unique(self.folds):
            here = self.folds == fold
            found[here] = _tenth(self.seen[here], self.seen[~here])
        return found

    def of(self, views: Views) -> np.ndarray:
        sets = [self.seen[self.folds != fold] for fold in np.unique(self.folds)]
        return np.mean([_tenth(views.features, some) for some in sets], axis=0)


def _tenth(rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    place, step = min(NEIGHBOURS, len(seen)) - 1, max(1, _AT_ONCE // len(seen))
    parts = [np.empty(0)]
    for start in range(0, len(rows), step):
        unlike = -(rows[start : start + step] @ seen.T)  # unit vectors are sqrt(2 + 2 unlike) apart
        parts.append(np.partition(unlike, place, axis=1)[:, place])
    return np.sqrt(np.maximum(2 + 2 * np.concatenate(parts), 0.0))


@dataclass(frozen=True)
class OfGradients:
    """A score of gradients, by a rule that was learned from a log's."""

    name: str
    rule: Callable[[np.ndarray], np.ndarray]

    def of(self, views: Views) -> np.ndarray:
        if views.gradients is None:
            raise AuditError(
                f"the score `{self.name}` needs gradients, which are not there",
                hint="choose head linear, which later requests can be put to",
            )
        return self.rule(views.gradients)


@dataclass(frozen=True)
class Term:
    """A score, and what the reference's rows got without being compared with themselves: float64 (n,)."""

    name: str
    rule: Rule
    reference: np.ndarray

    def standardised(self, scores: np.ndarray) -> np.ndarray:
        """Scores less the reference's mean, over its population standard deviation where that is not 0."""
        return (scores - self.reference.mean()) / (self.reference.std() or 1.0)

    def of(self, views: Views) -> np.ndarray:
        """Standardised scores of other rows."""
        return self.standardised(self.rule.of(views))


def fit_terms(
    name: str, ref: Views, wild: Views, folds: np.ndarray, centre: np.ndarray | None = None
) -> tuple[Term, ...]:
    """The terms of a filter, learned from a reference and a log.

    Args:
        name: of the filter; `l2` is the distance of a gradient to the reference's, `sal` its squared projection on the
            log's main direction (arXiv 2402.03502), `medix` the median vote.
        ref: the reference.
        wild: the log.
        folds: int64 (n_ref,), of the reference.
        centre: float64 (g,), the reference's gradient, for `l2` and `medix`.

    Raises:
        AuditError: a term needs logits or gradients that are not there.
    """
    return tuple(_fit(term, ref, wild, folds, centre) for term in FILTERS[name])


def _fit(name: str, ref: Views, wild: Views, folds: np.ndarray, centre: np.ndarray | None) -> Term:
    if name == "knn":
        near = Neighbours(ref.features, folds)
        return Term(name, near, near.own())
    if name in ("energy", "msp"):
        rule: Rule = Known("energy" if name == "energy" else "doubt")
        return Term(name, rule, rule.of(ref))
    if centre is None or ref.gradients is None or wild.gradients is None:
        raise AuditError(f"the filter `{name}` needs gradients of the reference and of the log")
    rule = OfGradients(name, _gradient_rule(name, ref.gradients, wild.gradients, centre))
    return Term(name, rule, rule.of(ref))


def _gradient_rule(
    name: str, ref: np.ndarray, wild: np.ndarray, centre: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    if name == "l2":
        return lambda gradients: np.linalg.norm(gradients - centre, axis=1)
    if name == "medix":
        return Vote.of(wild, centre)[0].drops
    mean = ref.mean(axis=0)
    direction = np.linalg.svd(wild - mean, full_matrices=False)[2][0]
    return lambda gradients: ((gradients - mean) @ direction) ** 2


def total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of standardised terms, float64 (n,)."""
    return np.sum(list(parts), axis=0)


def lower_median(table: np.ndarray) -> np.ndarray:
    """The lower element-wise median of (n, d), as torch.median has it: float64 (d,)."""
    middle = (len(table) - 1) // 2
    return np.partition(table, middle, axis=0)[middle]
