"""Where ordinary ends: scores of rows that a model has not seen, and what they say of a new one.

A model reproduces the few rows it was trained on, so their own scores say nothing of what a fresh row gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from kinfold.audit.outliers.rows import Fitted

LEAVE_ONE_OUT = 32  # rows up to which each is held out alone
FOLDS = 10
_LARGEST_LOG = 700.0  # exp of more overflows

FitAll = Callable[[Iterable[np.ndarray]], Iterable[Fitted]]  # tables of one shape -> a model of each


def splits(count: int, seed: int = 0) -> list[np.ndarray]:
    """Indices held out together: each alone up to 32 rows, else 10 folds of a seeded permutation, in falling size."""
    if count <= LEAVE_ONE_OUT:
        return [np.array([i]) for i in range(count)]
    return [np.sort(fold) for fold in np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)]


def held_out(rows: np.ndarray, fit: FitAll, seed: int = 0) -> Iterator[tuple[np.ndarray, Fitted]]:
    """For each fold its indices and a model of the other rows; standardisation is inside the model.

    Args:
        rows: float64 (n, d).
        fit: makes a model of each of several tables of one shape.
        seed: of the folds.
    """
    parts = splits(len(rows), seed)
    for size in sorted({len(part) for part in parts}):
        alike = [part for part in parts if len(part) == size]
        yield from zip(alike, fit(np.delete(rows, part, axis=0) for part in alike), strict=True)


def held_out_scores(rows: np.ndarray, fit: FitAll, seed: int = 0) -> np.ndarray:
    """The score of each row under a model that has not seen it, float64 (n,)."""
    found = np.empty(len(rows))
    for part, model in held_out(rows, fit, seed):
        found[part] = model.scores(rows[part])
    return found


def quantile(scores: np.ndarray, contamination: float, threshold: str) -> float:
    """The score above which rows are outliers: the 100 (1 - contamination) percentile.

    Of scores on the training rows it is interpolated as PyOD does, of held-out scores it is one of them.
    """
    method = "higher" if threshold == "cross_fit" else "linear"
    return float(np.percentile(scores, 100 * (1 - contamination), method=method))


def p_values(ordinary: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + #{ordinary >= S}) / (1 + n) for each score S: at most this share of ordinary rows score so high."""
    at_least = len(ordinary) - np.searchsorted(np.sort(ordinary), scores, side="left")
    return (1 + at_least) / (1 + len(ordinary))


def certifiable(count: int, false_alarm: float) -> bool:
    """Whether so many held-out scores can give a p-value of `false_alarm` or less."""
    return 1 / (count + 1) <= false_alarm + 1e-12


def p_threshold(ordinary: np.ndarray, false_alarm: float) -> float:
    """The score above which the p-value is `false_alarm` or less; the largest one where none can be so small."""
    above = max(math.floor(false_alarm * (len(ordinary) + 1) + 1e-9) - 1, 0)
    return float(np.sort(ordinary)[::-1][above])


def against_the_others(scores: np.ndarray, false_alarm: float) -> tuple[np.ndarray, np.ndarray]:
    """p-value and threshold of each of n scores beside the n - 1 others: Grubbs' test, one-sided, on their logarithms.

    The ranks of n scores among themselves are always the same, so they cannot tell an odd family from a plain one. The
    logarithms of ordinary scores are taken for normal; the threshold is where the p-value is `false_alarm` / n, so that
    a family of ordinary members has one named with at most that chance.

    Returns:
        p-values and thresholds, float64 (n,).
    """
    count = len(scores)
    logs = np.log(np.maximum(scores, np.finfo(np.float64).tiny))
    limit = _t_quantile(false_alarm / count, count - 2)
    p, thresholds = np.empty(count), np.empty(count)
    for i in range(count):
        others = np.delete(logs, i)
        step = max(float(others.std(ddof=1)), 1e-9) * math.sqrt(1 + 1 / len(others))
        p[i] = t_tail((logs[i] - others.mean()) / step, count - 2)
        thresholds[i] = math.exp(min(others.mean() + limit * step, _LARGEST_LOG))
    return p, thresholds


def t_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, term, total = math.cos(angle), 1.0, 0.0
    odd = freedom % 2
    if odd:
        term = cosine
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    tail = max(1 - within, 0.0) / 2
    return tail if t >= 0 else 1 - tail


def _t_quantile(tail: float, freedom: int) -> float:
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > tail and high < 1e12:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > tail else (low, middle)
    return high
