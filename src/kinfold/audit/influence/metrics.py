"""How good scores are, against models that were trained again; shapes are those of dattri's metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kinfold.errors import AuditError


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 of a vector, equals sharing their mean rank: float64 (n,)."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places].astype(np.float64)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation; NaN where one of them is constant."""
    a, b = (r - r.mean() for r in (ranks(first), ranks(second)))
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length > 0 else float("nan")


def lds(scores: np.ndarray, ground_truth: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Linear datamodeling score of each probe (TRAK, arXiv 2303.14186): do summed scores rank retrained models?

    Args:
        scores: (n, m), above 0 where a row helps the probe.
        ground_truth: values (s, m) of the probes under s models, each trained on a subset, larger being better: minus
            the loss, or a margin; and the subsets (s, r), whole numbers below n.

    Returns:
        (m,) rank correlations over the subsets; NaN where either side is constant. Its mean is the figure to quote.

    Raises:
        AuditError: shapes that do not fit.
    """
    values, subsets = (np.asarray(part) for part in ground_truth)
    if scores.ndim != 2 or values.shape != (len(subsets), scores.shape[1]):
        raise AuditError(
            f"scores of shape {list(scores.shape)} and values of shape {list(values.shape)} for {len(subsets)} subsets "
            "were given; (n, m) and (s, m) for s subsets are needed"
        )
    sums = np.stack([scores[subset].sum(0) for subset in subsets])
    return np.array([spearman(sums[:, probe], values[:, probe]) for probe in range(scores.shape[1])])


def mislabel_auc(self_scores: np.ndarray, is_wrong: np.ndarray) -> float:
    """Area under the ROC curve of a score that should be high for wrongly labelled rows, 0 to 1.

    Raises:
        AuditError: no row is wrong, or all are.
    """
    wrong = np.asarray(is_wrong, bool)
    bad, good = int(wrong.sum()), int((~wrong).sum())
    if bad == 0 or good == 0:
        raise AuditError(f"{bad} of {bad + good} rows are wrong; some must be, and some not")
    return float((ranks(np.asarray(self_scores))[wrong].sum() - bad * (bad + 1) / 2) / (bad * good))


def brittleness(scores: np.ndarray, answer: Callable[[np.ndarray, int], int], top: int) -> float:
    """Share of probes whose label changes when the `top` rows that help it most are dropped and a model retrained.

    Args:
        scores: (n, m).
        answer: `answer(rows, probe)` trains on the rows of these indices and gives the label of the probe.
        top: rows to drop, from 1 to n - 1.

    Raises:
        AuditError: `top` is out of range.
    """
    rows, probes = scores.shape
    if not 1 <= top < rows:
        raise AuditError(f"{top} of {rows} rows are to be dropped; from 1 to {rows - 1} can be")
    everything, flips = np.arange(rows), 0
    for probe in range(probes):
        dropped = np.argsort(-scores[:, probe], kind="stable")[:top]
        flips += answer(np.setdiff1d(everything, dropped), probe) != answer(everything, probe)
    return flips / probes
