"""The nets of TCCM in numpy: a fitted model is scored without torch.

Time-Conditioned Contraction Matching, arXiv 2510.18328. A net is f([z ; e(t)]), three linear layers with ReLU between
them, trained to answer -z; a row's residual is f(z, t) + z, and its score the residual's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kinfold.audit.outliers.rows import standardised

CHUNK = 8192  # rows scored at once


def frequencies(size: int) -> np.ndarray:
    """w_k = 10000^(-k / (size / 2)), float64 (size / 2,)."""
    half = size // 2
    return 10000.0 ** (-np.arange(half) / max(half, 1))


def time_embedding(t: float, size: int) -> np.ndarray:
    """e(t) = [sin(t w), cos(t w)], float64 (size,); empty for size 0."""
    angles = t * frequencies(size)
    return np.concatenate([np.sin(angles), np.cos(angles)])


@dataclass(frozen=True)
class Nets:
    """K nets side by side; all arrays are float32 and C-contiguous.

    Attributes:
        w1: (K, d + e, h), rows of the d columns of z first, then of the e entries of the time embedding.
        b1: (K, h).
        w2: (K, h, h).
        b2: (K, h).
        w3: (K, h, d).
        b3: (K, d).
    """

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    w3: np.ndarray
    b3: np.ndarray

    def folded(self, t: float) -> Nets:
        """The same nets at one time: e(t) is constant there and becomes part of the first bias."""
        columns = self.w3.shape[2]
        time = time_embedding(t, self.w1.shape[1] - columns)
        b1 = self.b1 + np.einsum("e,keh->kh", time, self.w1[:, columns:].astype(np.float64))
        w1 = np.ascontiguousarray(self.w1[:, :columns])
        return Nets(w1, b1.astype(np.float32), self.w2, self.b2, self.w3, self.b3)

    def residuals(self, z: np.ndarray) -> Iterator[np.ndarray]:
        """r_k = f_k(z) + z of each folded net in turn, float32 (n, d) for z float32 (n, d)."""
        for w1, b1, w2, b2, w3, b3 in zip(self.w1, self.b1, self.w2, self.b2, self.w3, self.b3, strict=True):
            hidden = np.maximum(z @ w1 + b1, 0)
            hidden = np.maximum(hidden @ w2 + b2, 0)
            yield hidden @ w3 + b3 + z

    def lipschitz(self) -> float:
        """A bound of how much faster than z the score can move: sqrt(mean_k (L_k + 1)^2) of folded nets.

        L_k is the product of the spectral norms of the three layers.
        """
        bounds = np.ones(len(self.w1))
        for layer in (self.w1, self.w2, self.w3):
            bounds *= [np.linalg.norm(matrix.astype(np.float64), 2) for matrix in layer]
        return float(np.sqrt(np.mean((bounds + 1) ** 2)))


@dataclass(frozen=True)
class Model:
    """Nets and the standardisation they were trained with.

    Attributes:
        mean: float64 (d,).
        scale: float64 (d,).
        nets: folded.
    """

    mean: np.ndarray
    scale: np.ndarray
    nets: Nets

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """S = sqrt(mean_k ||r_k||^2), float64 (n,), for rows (n, d)."""
        found = np.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            z, total = self._z(rows[start : start + CHUNK]), 0.0
            for residual in self.nets.residuals(z):
                exact = residual.astype(np.float64)
                total = total + np.einsum("nd,nd->n", exact, exact)
            found[start : start + CHUNK] = np.sqrt(total / len(self.nets.w1))
        return found

    def attributions(self, rows: np.ndarray, *, signed: bool = False) -> np.ndarray:
        """a_j = sqrt(mean_k r_kj^2), float64 (n, d), so that S^2 = sum_j a_j^2; signed, that of the mean residual."""
        found = np.empty(rows.shape)
        for start in range(0, len(rows), CHUNK):
            z, squares, total = self._z(rows[start : start + CHUNK]), 0.0, 0.0
            for residual in self.nets.residuals(z):
                exact = residual.astype(np.float64)
                squares, total = squares + exact * exact, total + exact
            size = np.sqrt(squares / len(self.nets.w1))
            found[start : start + CHUNK] = np.copysign(size, total) if signed else size
        return found

    def _z(self, rows: np.ndarray) -> np.ndarray:
        return standardised(rows, self.mean, self.scale).astype(np.float32)
