"""Damped influence in compressed coordinates; pure functions on matrices of one block of coordinates.

With G (n, k) the gradients of training rows, P (m, k) those of probe rows, and F = G^T G / n the empirical Fisher
matrix, scores are G (F + lam I)^-1 P^T: above 0 where a row lowers the probe's loss. To first order, giving row i the
weight 1 + e instead of 1 changes the loss by -e score_i / n (influence functions, arXiv 1703.04730).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    """F + lam I of one block, ready to be divided by.

    Attributes:
        values: eigenvalues of F, float64 (r,): all k of them, or those that n < k rows span.
        vectors: their eigenvectors (k, r).
        term: lam; 0 where all gradients vanish, and scores are 0 then.
    """

    values: np.ndarray
    vectors: np.ndarray
    term: float = 0.0

    @classmethod
    def of_fisher(cls, fisher: np.ndarray) -> Factored:
        """Of F itself (k, k), for k <= n."""
        values, vectors = np.linalg.eigh(fisher)
        return cls(np.maximum(values, 0.0), vectors)

    @classmethod
    def of_rows(cls, gradients: np.ndarray, rows: int) -> Factored:
        """Of G (n, k) for k > n, each row times the root of how often it is among the `rows`."""
        _, singular, vectors = np.linalg.svd(gradients / np.sqrt(rows), full_matrices=False)
        return cls(np.square(singular), vectors.T)

    def damped(self, rows: int, size: int, damping: float) -> Factored:
        """With lam set, see `damping_term`."""
        return replace(self, term=damping_term(float(self.values.sum()), rows, size, damping))

    @property
    def effective(self) -> float:
        """trace(F (F + lam I)^-1): how many directions the data span against the damping."""
        return float((self.values / (self.values + self.term)).sum()) if self.term > 0 else 0.0

    def directions(self, probe: np.ndarray) -> np.ndarray:
        """(F + lam I)^-1 P^T, (k, m), of P (m, k); gradients times this are scores."""
        if self.term <= 0:
            return np.zeros(probe.shape[::-1])
        along = probe @ self.vectors
        found = self.vectors @ (along / (self.values + self.term)).T
        if self.values.size < len(self.vectors):  # what no training row spans is divided by lam alone
            found += (probe - along @ self.vectors.T).T / self.term
        return found

    def own(self, gradients: np.ndarray) -> np.ndarray:
        """g_i^T (F + lam I)^-1 g_i of each row, (rows,)."""
        if self.term <= 0:
            return np.zeros(len(gradients))
        along = np.square(gradients @ self.vectors)
        found = (along / (self.values + self.term)).sum(1)
        if self.values.size < len(self.vectors):
            found += np.maximum(np.square(gradients).sum(1) - along.sum(1), 0.0) / self.term
        return found


def factored(gradients: np.ndarray) -> Factored:
    """Of gradients (n, k) in memory, not yet damped."""
    rows, width = gradients.shape
    if width <= rows:
        return Factored.of_fisher(gradients.T @ gradients / rows)
    return Factored.of_rows(gradients, rows)


def influence_scores(gradients: np.ndarray, probe: np.ndarray, *, size: int, damping: float) -> np.ndarray:
    """Scores (n, m) of one block whose gradients (n, k) and (m, k), rescaled, are in memory; float64.

    Args:
        size: d, how many values the block has before compression.
        damping: relative, see `damping_term`.
    """
    wide = gradients.astype(np.float64)
    return wide @ factored(wide).damped(len(wide), size, damping).directions(probe.astype(np.float64))


def self_influence(gradients: np.ndarray, *, size: int, damping: float) -> np.ndarray:
    """Each row's score on its own loss, (n,): the diagonal of `influence_scores(G, G)`."""
    wide = gradients.astype(np.float64)
    return factored(wide).damped(len(wide), size, damping).own(wide)


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
