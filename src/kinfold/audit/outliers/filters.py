"""Scores that say which requests of a log stand out, all behind one interface: numpy only, larger is more outlying.

A filter is a sum of terms, each standardised by the reference's own scores. No reference row is scored by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kinfold.audit.outliers.medix import Vote
from kinfold.errors import AuditError

NEIGHBOURS = 10
TERMS: Mapping[str, tuple[str, ...]] = {
    "sum": ("energy", "knn"),
    "energy": ("energy",),
    "knn": ("knn",),
    "l2": ("l2",),
    "msp": ("msp",),
    "sal": ("sal",),
    "medix": ("medix",),
    "none": (),
}
GRADIENT_TERMS = ("l2", "sal", "medix")
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


@dataclass(frozen=True)
class Neighbours:
    """Mean distance to the 10th neighbour among the reference rows of each set of folds but one.

    A reference row is compared with those of other folds, any other row with each such set in turn.
    """

    seen: np.ndarray
    folds: np.ndarray

    def own(self) -> np.ndarray:
        found = np.empty(len(self.seen))
        for fold in np.unique(self.folds):
            here = self.folds == fold
            found[here] = _tenth(self.seen[here], self.seen[~here])
        return found

    def of(self, features: np.ndarray) -> np.ndarray:
        sets = [self.seen[self.folds != fold] for fold in np.unique(self.folds)]
        return np.mean([_tenth(features, some) for some in sets], axis=0)


def _tenth(rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    place, step = min(NEIGHBOURS, len(seen)) - 1, max(1, _AT_ONCE // len(seen))
    parts = []
    for start in range(0, len(rows), step):
        likeness = rows[start : start + step] @ seen.T  # of unit vectors, apart by sqrt(2 - 2 likeness)
        parts.append(np.partition(-likeness, place, axis=1)[:, place])
    return np.sqrt(np.maximum(2 + 2 * np.concatenate(parts), 0.0))


@dataclass(frozen=True)
class Term:
    """A score of any rows, and its mean and standard deviation over the reference.

    Attributes:
        name: of the term.
        reference: float64 (n,), the reference rows' own scores, before they are standardised.
        score: gives that of other rows.
    """

    name: str
    reference: np.ndarray
    score: Callable[[Views], np.ndarray]

    def standardised(self, raw: np.ndarray) -> np.ndarray:
        return standard(raw, self.reference)


def standard(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Scores less the reference's mean, over its population standard deviation where that is not 0."""
    return (scores - reference.mean()) / (reference.std() or 1.0)


def fit_terms(
    names: Sequence[str], ref: Views, wild: Views, folds: np.ndarray, gradient_reference: np.ndarray | None = None
) -> list[Term]:
    """Terms by name, learned from a reference and a log.

    Args:
        names: of `energy`, `knn`, `msp`, `l2` (distance of the gradient to the reference's), `sal` (squared projection
            on the log's main direction of them, arXiv 2402.03502) and `medix`.
        ref: the reference.
        wild: the log.
        folds: int64 (n_ref,), of the reference.
        gradient_reference: float64 (g,), for the last three.

    Raises:
        AuditError: a term needs logits or gradients that are not there.
    """
    return [_fit(name, ref, wild, folds, gradient_reference) for name in names]


def _fit(name: str, ref: Views, wild: Views, folds: np.ndarray, centre: np.ndarray | None) -> Term:
    if name == "knn":
        near = Neighbours(ref.features, folds)
        return Term(name, near.own(), lambda views: near.of(views.features))
    if name in GRADIENT_TERMS:
        if centre is None or ref.gradients is None or wild.gradients is None:
            raise AuditError(f"the filter `{name}` needs gradients of the reference and of the log")
        return _gradient_term(name, ref.gradients, wild.gradients, centre)
    key = {"energy": "energy", "msp": "doubt"}[name]
    given = getattr(ref, key)
    if given is None or getattr(wild, key) is None:
        raise AuditError(
            f"the score `{name}` needs logits of two classes or more, which this model does not give",
            hint="--filter knn looks at features only",
        )
    return Term(name, given, lambda views: getattr(views, key))


def _gradient_term(name: str, ref: np.ndarray, wild: np.ndarray, centre: np.ndarray) -> Term:
    if name == "l2":

        def rule(gradients: np.ndarray) -> np.ndarray:
            return np.linalg.norm(gradients - centre, axis=1)

    elif name == "sal":
        mean = ref.mean(axis=0)
        direction = np.linalg.svd(wild - mean, full_matrices=False)[2][0]

        def rule(gradients: np.ndarray) -> np.ndarray:
            return ((gradients - mean) @ direction) ** 2

    else:
        rule = Vote.of(wild, centre)[0].drops

    def score(views: Views) -> np.ndarray:
        if views.gradients is None:
            raise AuditError(f"the score `{name}` needs gradients, which are not known of later requests")
        return rule(views.gradients)

    return Term(name, rule(ref), score)


def combined(terms: Sequence[Term], views: Views | None = None) -> np.ndarray:
    """The sum of standardised terms, of `views` or of the reference itself, float64 (n,)."""
    return np.sum([t.standardised(t.reference if views is None else t.score(views)) for t in terms], axis=0)


def lower_median(table: np.ndarray) -> np.ndarray:
    """The lower element-wise median of (n, d), as torch.median has it: float64 (d,)."""
    middle = (len(table) - 1) // 2
    return np.partition(table, middle, axis=0)[middle]
