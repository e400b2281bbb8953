"""The median vote of Medix (arXiv 2510.06505): whose absence brings the element-wise median closer to a reference.

numpy only. Each column votes by the side of its median that a row lies on, weighted by the gap of the two order
statistics in the middle; how far off a row is has no say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kinfold.errors import AuditError, AuditOptionError, DegenerateGradientError

PAPER_SHARE, PAPER_EPS, PAPER_ROUNDS = 0.1, 5e-4, 9


@dataclass(frozen=True)
class FilterResult:
    """What `ewm_filter` found.

    Attributes:
        order: int64 (n,), rows from the most outlying to the least: removed ones in their order, then the rest.
        scores: float64 (n,), each row's drop when it was last looked at; drops of two rounds are not comparable.
        removed: how many of `order` were removed.
        trace: distance D before the first round and after each one.
    """

    order: np.ndarray
    scores: np.ndarray
    removed: int
    trace: tuple[float, ...]


@dataclass(frozen=True)
class Vote:
    """The rule that one round scores by; it can be asked of rows that were not in the table too.

    Attributes:
        low: float64 (d,), the lower of the two middle order statistics of each column.
        weight: float64 (d,), by how much D^2 grows if the column's median is the upper one rather than the lower one.
        distance: D, the distance of the median to the reference.
        present: D^2 - sum of (low - reference)^2.
    """

    low: np.ndarray
    weight: np.ndarray
    distance: float
    present: float

    @classmethod
    def of(cls, table: np.ndarray, ref: np.ndarray) -> tuple[Vote, float]:
        """The vote of rows (n, d), n >= 2, and the share of columns whose middle statistics coincide."""
        count, columns = table.shape
        below = (count - 2) // 2  # both leave-one-out medians are at `below` or one above it
        low, high = np.empty(columns), np.empty(columns)
        for j in range(columns):  # a copy of one column is all the memory this takes
            low[j], high[j] = np.partition(table[:, j], [below, below + 1])[[below, below + 1]]
        weight = (high - low) * ((high - ref) + (low - ref))
        middle = low if count % 2 == 0 else high  # the lower median, as torch.median has it
        distance = float(np.linalg.norm(middle - ref))
        present = 0.0 if count % 2 == 0 else math.fsum(weight)
        return cls(low, weight, distance, present), float(np.mean(high == low)) if columns else 1.0

    def drops(self, table: np.ndarray) -> np.ndarray:
        """D - ||median without row i - reference|| of rows (m, d), float64 (m,); larger is more outlying.

        Without a row at or below `low` a column's median is the upper one, without any other row it is `low`. Rows
        that tie with `low` need no ranks: where they could lie on either side the weight is 0.
        """
        moved = np.zeros(len(table))
        for j, (edge, weight) in enumerate(zip(self.low, self.weight, strict=True)):
            if weight != 0:
                moved += np.where(table[:, j] <= edge, weight, 0.0)
        fall = self.present - moved  # D^2 - Di^2, of which D - Di is about a thousandth part of either
        without = np.sqrt(np.maximum(self.distance**2 - fall, 0.0))
        both = self.distance + without
        return np.divide(fall, both, out=np.zeros_like(fall), where=both > 0)


def ewm_loo_scores(G: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, float]:  # noqa: N803
    """All n leave-one-out drops of D = ||median(G) - ref|| in O(n d), with the lower element-wise median.

    Args:
        G: (n, d), a gradient a row, n >= 2.
        ref: (d,).

    Returns:
        Drops float64 (n,), larger for the more outlying, and D.

    Raises:
        AuditError: not such arrays, or a value that is not finite.
        DegenerateGradientError: the middle values coincide in more than half of the columns.
    """
    table, reference = _checked(G, ref)
    vote = _sound_vote(table, reference)
    return vote.drops(table), vote.distance


def ewm_filter(
    G: np.ndarray,  # noqa: N803
    ref: np.ndarray,
    *,
    k: int | float,
    max_rounds: int = 1,
    eps: float = 0.0,
) -> FilterResult:
    """Move the k rows of largest drop to the outliers, and again until D changes by less than `eps` (section 4).

    Args:
        G: (n, d), a gradient a row.
        ref: (d,).
        k: rows a round; below 1, a share of the n rows.
        max_rounds: at most this many; 1 is the better choice on our data.
        eps: tested after the removal, as the authors do.

    Raises:
        AuditError, DegenerateGradientError: as `ewm_loo_scores`.
        AuditOptionError: `k` or `max_rounds` is out of range.
    """
    table, reference = _checked(G, ref)
    step = rows_a_round(k, len(table))
    if max_rounds < 1:
        raise AuditOptionError(f"max_rounds is {max_rounds}; a whole number of 1 or more is allowed")
    alive, removed = np.arange(len(table)), np.empty(0, dtype=np.int64)
    vote, scores, trace = _sound_vote(table, reference), np.empty(len(table)), []
    for _ in range(max_rounds):
        trace.append(vote.distance)
        scores[alive] = vote.drops(table[alive])
        highest = np.argsort(-scores[alive], kind="stable")[:step]
        removed = np.concatenate([removed, alive[highest]])
        alive = np.delete(alive, highest)
        if len(alive) < max(step + 1, 2):  # what would be left has no median of its own
            break
        vote = Vote.of(table[alive], reference)[0]
        if abs(trace[-1] - vote.distance) < eps:
            break
    if len(alive) > 1:
        trace.append(Vote.of(table[alive], reference)[0].distance)
    rest = alive[np.argsort(-scores[alive], kind="stable")]
    return FilterResult(np.concatenate([removed, rest]), scores, len(removed), tuple(trace))


def rows_a_round(k: int | float, count: int) -> int:
    """`k` as a number of rows.

    Raises:
        AuditOptionError: below 0, 0, or as many as there are rows.
    """
    step = max(round(k * count), 1) if 0 < k < 1 else int(k)
    if not 1 <= step < count or (k >= 1 and step != k):
        raise AuditOptionError(
            f"k is {k}; a whole number from 1 to {count - 1}, or a share between 0 and 1, is allowed"
        )
    return step


def _sound_vote(table: np.ndarray, reference: np.ndarray) -> Vote:
    vote, tied = Vote.of(table, reference)
    if tied > 0.5:
        raise DegenerateGradientError(
            f"the middle values coincide in {tied:.0%} of {table.shape[1]} columns of the gradients, so a median of "
            "them tells no rows apart",
            hint="choose another --at: a module whose output has not yet gone through an activation",
        )
    return vote


def _checked(table: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, reference = np.asarray(table, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    if found.ndim != 2 or len(found) < 2 or reference.shape != found.shape[1:]:
        raise AuditError(
            f"gradients of shape {found.shape} and a reference of shape {reference.shape} were given; (n, d) with "
            "n >= 2 and (d,) are allowed"
        )
    if not np.isfinite(reference).all():
        raise AuditError("the reference of the gradients is not finite")
    bad = next((i for i in range(len(found)) if not np.isfinite(found[i]).all()), None)
    if bad is not None:
        raise AuditError(f"gradients of row {bad} are not finite")
    return found, reference
