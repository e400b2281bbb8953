"""Three simple detectors beside TCCM, numpy only: distance to neighbours, Mahalanobis distance, length.

All standardise by the training rows, score larger for the more abnormal, and explain a score by columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kinfold.audit.outliers.rows import spread, standardised

NEIGHBOURS = 5
_AT_ONCE = 1 << 24  # differences held at once: 128 MiB


@dataclass(frozen=True)
class ZNorm:
    """||z||: the length of the standardised row."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray, floor: float = 0.0) -> ZNorm:
        return cls(*spread(rows, floor))

    def scores(self, rows: np.ndarray) -> np.ndarray:
        return np.linalg.norm(standardised(rows, self.mean, self.scale), axis=1)

    def attributions(self, rows: np.ndarray, *, signed: bool = False) -> np.ndarray:
        """|z_j|: squares add up to the score's."""
        z = standardised(rows, self.mean, self.scale)
        return z if signed else np.abs(z)


@dataclass(frozen=True)
class Knn:
    """The distance to the k-th nearest of the training rows, k = min(5, n - 1), among standardised rows."""

    mean: np.ndarray
    scale: np.ndarray
    seen: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray, floor: float = 0.0) -> Knn:
        mean, scale = spread(rows, floor)
        return cls(mean, scale, standardised(rows, mean, scale))

    def scores(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.linalg.norm(self._differences(part), axis=1) for part in self._parts(rows)])

    def attributions(self, rows: np.ndarray, *, signed: bool = False) -> np.ndarray:
        """|z - neighbour|_j of the k-th neighbour: squares add up to the score's."""
        found = np.concatenate([self._differences(part) for part in self._parts(rows)])
        return found if signed else np.abs(found)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        step = max(1, _AT_ONCE // self.seen.size)
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def _differences(self, rows: np.ndarray) -> np.ndarray:
        """z minus its k-th neighbour, (n, d)."""
        k = min(NEIGHBOURS, len(self.seen) - 1) - 1
        z = standardised(rows, self.mean, self.scale)
        apart = np.square(z[:, None, :] - self.seen[None, :, :]).sum(axis=2)
        return z - self.seen[np.argsort(apart, axis=1, kind="stable")[:, k]]


@dataclass(frozen=True)
class Mahalanobis:
    """sqrt(z^T P z) with P the inverse of the covariance as Ledoit and Wolf shrink it (2004).

    With the covariance V diag(variances) V^T and nothing beyond V, the shrunk one is (1 - s) of it plus s mu I: it has
    the eigenvalues `inside` along V and `outside` elsewhere, and is never formed.

    Attributes:
        mean: float64 (d,).
        scale: float64 (d,).
        directions: V^T, float64 (r, d), orthonormal rows.
        inside: float64 (r,).
        outside: of every direction at right angles to them.
    """

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    inside: np.ndarray
    outside: float

    @classmethod
    def fit(cls, rows: np.ndarray, floor: float = 0.0) -> Mahalanobis:
        mean, scale = spread(rows, floor)
        z = standardised(rows, mean, scale)
        shrinkage, mu = ledoit_wolf(z)
        if mu == 0:  # columns that do not vary at all: plain distance
            return cls(mean, scale, np.empty((0, z.shape[1])), np.empty(0), 1.0)
        _, values, directions = np.linalg.svd(z / np.sqrt(len(z)), full_matrices=False)
        least = 1e-12 * mu  # nothing is known of directions that neither vary nor are shrunk
        inside = np.maximum((1 - shrinkage) * values**2 + shrinkage * mu, least)
        return cls(mean, scale, directions, inside, max(shrinkage * mu, least))

    def scores(self, rows: np.ndarray) -> np.ndarray:
        z = standardised(rows, self.mean, self.scale)
        return np.sqrt(np.maximum(np.einsum("nd,nd->n", z, self._times_precision(z)), 0.0))

    def attributions(self, rows: np.ndarray, *, signed: bool = False) -> np.ndarray:
        """|P z|_j / sqrt(P_jj): how far column j is from what the others predict, in the prediction's own errors."""
        weights = 1 / self.inside - 1 / self.outside
        diagonal = 1 / self.outside + np.einsum("r,rd->d", weights, self.directions**2)
        z = standardised(rows, self.mean, self.scale)
        found = self._times_precision(z) / np.sqrt(np.maximum(diagonal, 1e-300))
        return found if signed else np.abs(found)

    def _times_precision(self, z: np.ndarray) -> np.ndarray:
        along = z @ self.directions.T
        return (along / self.inside) @ self.directions + (z - along @ self.directions) / self.outside


def ledoit_wolf(z: np.ndarray) -> tuple[float, float]:
    """The share s of mu I in the covariance of least expected error, and mu, the mean variance, of centred z (n, d)."""
    count, columns = z.shape
    squares = z * z
    mu = float(squares.sum()) / (count * columns)
    gram = z @ z.T if count <= columns else z.T @ z
    energy = float(np.square(gram).sum()) / count**2  # ||covariance||_F^2
    fourth = float(np.square(squares.sum(axis=1)).sum()) / count
    error = (fourth - energy) / (columns * count)
    distance = energy / columns - mu**2
    # covariance already a multiple of I: there is nothing to shrink
    return (0.0 if distance <= 0 else min(max(error, 0.0), distance) / distance), mu
