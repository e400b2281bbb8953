"""Damped influence in compressed coordinates; pure functions on matrices of one block of coordinates.

With G (n, k) the gradients of training rows, P (m, k) those of probe rows, and F = G^T G / n the empirical Fisher
matrix, scores are G (F + lam I)^-1 P^T: above 0 where a row lowers the probe's loss. To first order, giving row i the
weight 1 + e instead of 1 changes the loss by -e score_i / n (influence functions, arXiv 1703.04730).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kinfold.errors import AuditError

SWEEP = (0.03, 0.1, 0.3, 1.0, 3.0)


def damping_term(trace: float, rows: int, size: int, damping: float) -> float:
    """lam = damping * trace(F) / min(n, d): a multiple of the mean of the eigenvalues that can be above 0.

    Args:
        trace: of F, in coordinates whose inner products estimate those of whole gradients.
        rows: n.
        size: d, how many values the block has before compression; so lam means the same at every k.
        damping: relative, above 0.

    Raises:
        AuditError: `damping` is 0 or less.
    """
    if not damping > 0:
        raise AuditError(f"damping is {damping:g}; a number above 0 is needed, or F cannot be inverted")
    return damping * trace / min(rows, size)


@dataclass(frozen=True)
class Factored:
    """F + lam I of one block, ready to be divided by; for k <= n.

    Attributes:
        values, vectors: eigenvalues (k,) and eigenvectors (k, k) of F, float64.
        term: lam; 0 where all gradients vanish, and scores are 0 then.
    """

    values: np.ndarray
    vectors: np.ndarray
    term: float

    @classmethod
    def of(cls, fisher: np.ndarray, term: float) -> Factored:
        values, vectors = np.linalg.eigh(fisher)
        return cls(np.maximum(values, 0.0), vectors, term)

    @property
    def effective(self) -> float:
        """trace(F (F + lam I)^-1): how many directions the data span against the damping."""
        return float((self.values / (self.values + self.term)).sum()) if self.term > 0 else 0.0

    def directions(self, probe: np.ndarray) -> np.ndarray:
        """(F + lam I)^-1 P^T, (k, m); a block of G times this are its scores."""
        if self.term <= 0:
            return np.zeros(probe.shape[::-1])
        return self.vectors @ ((probe @ self.vectors) / (self.values + self.term)).T

    def own(self, gradients: np.ndarray) -> np.ndarray:
        """g_i^T (F + lam I)^-1 g_i of each row, (rows,)."""
        if self.term <= 0:
            return np.zeros(len(gradients))
        return (np.square(gradients @ self.vectors) / (self.values + self.term)).sum(1)


@dataclass(frozen=True)
class Dual:
    """The same through K = G G^T / n, for k > n; all training rows at once.

    Attributes:
        gradients: G (n, k), each row times the root of its weight.
        roots: the roots (n,) of how often each row occurs.
        values, vectors: eigenvalues (n,) and eigenvectors (n, n) of K.
    """

    gradients: np.ndarray
    roots: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    term: float
    rows: int

    @classmethod
    def of(cls, gradients: np.ndarray, weights: np.ndarray, term: float) -> Dual:
        """`gradients` (n, k) of distinct rows, `weights` (n,) how often each occurs."""
        roots, rows = np.sqrt(weights), int(weights.sum())
        scaled = gradients * roots[:, None]
        values, vectors = np.linalg.eigh(scaled @ scaled.T / rows)
        return cls(scaled, roots, np.maximum(values, 0.0), vectors, term, rows)

    @property
    def effective(self) -> float:
        return float((self.values / (self.values + self.term)).sum()) if self.term > 0 else 0.0

    def scores(self, probe: np.ndarray) -> np.ndarray:
        """(K + lam I)^-1 G P^T, (n, m)."""
        if self.term <= 0:
            return np.zeros((len(self.gradients), len(probe)))
        inverse = self.vectors / (self.values + self.term) @ self.vectors.T
        return inverse @ (self.gradients @ probe.T) / self.roots[:, None]

    def own(self) -> np.ndarray:
        """n (1 - lam diag((K + lam I)^-1)), over how often each row occurs: (n,)."""
        if self.term <= 0:
            return np.zeros(len(self.gradients))
        share = self.values / (self.values + self.term)  # 1 - lam / (value + lam), without the cancellation
        return self.rows * (np.square(self.vectors) @ share) / self.roots**2


def influence_scores(gradients: np.ndarray, probe: np.ndarray, *, size: int, damping: float) -> np.ndarray:
    """Scores (n, m) of one block whose gradients (n, k) and (m, k), rescaled, are in memory."""
    wide, asked = gradients.astype(np.float64), probe.astype(np.float64)
    rows, width = wide.shape
    term = damping_term(float(np.square(wide).sum()) / rows, rows, size, damping)
    if width <= rows:
        return wide @ Factored.of(wide.T @ wide / rows, term).directions(asked)
    return Dual.of(wide, np.ones(rows), term).scores(asked)


def self_influence(gradients: np.ndarray, *, size: int, damping: float) -> np.ndarray:
    """Each row's score on its own loss, (n,): the diagonal of `influence_scores(G, G)`."""
    wide = gradients.astype(np.float64)
    rows, width = wide.shape
    term = damping_term(float(np.square(wide).sum()) / rows, rows, size, damping)
    if width <= rows:
        return Factored.of(wide.T @ wide / rows, term).own(wide)
    return Dual.of(wide, np.ones(rows), term).own()


def curved_scores(gradients: np.ndarray, probe: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """G H^-1 P^T with a curvature (k, k) of your own, such as an exact Hessian of the mean loss."""
    return gradients @ np.linalg.solve(curvature, probe.T)


def sweep(
    criterion: Callable[[float], float], dampings: Sequence[float] = SWEEP
) -> tuple[float, list[tuple[float, float]]]:
    """The damping of the highest criterion, such as an LDS or a mislabel AUC, and all that was tried.

    Returns:
        The best damping, and (damping, criterion) of each; of equals the largest damping is taken.

    Raises:
        AuditError: the criterion is never a number.
    """
    tried = [(damping, float(criterion(damping))) for damping in dampings]
    finite = [(value, damping) for damping, value in tried if np.isfinite(value)]
    if not finite:
        raise AuditError("the criterion of the sweep is never a number", hint="choose one damping, such as 0.3")
    return max(finite)[1], tried


Reduction = Literal["mean", "sum"]
