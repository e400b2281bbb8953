"""What deleting an entry of a factor does: the scores of `osd`, and the error of a damaged pair."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from kinfold.codec.base import Importance
from kinfold.codec.lowrank import multiply
from kinfold.codec.sums import squared_norm

Score = Literal["frob", "mag", "fisher", "taylor"]


@dataclass(frozen=True)
class Pair:
    """Factors A (n, k) and C (d, k), float64, of which some entries are stored at `width` bits.

    Attributes:
        a: left factor.
        c: right factor.
        full: leading columns of both that are stored whole, without positions.
        kept_a: flat entries of `a[:, full:]` that are stored, rising.
        kept_c: the same of `c[:, full:]`.
        width: bits of a stored value.
    """

    a: torch.Tensor
    c: torch.Tensor
    full: int
    kept_a: np.ndarray
    kept_c: np.ndarray
    width: int

    @classmethod
    def dense(cls, a: torch.Tensor, c: torch.Tensor, width: int) -> Pair:
        nothing = np.zeros(0, np.int64)
        return cls(a, c, a.shape[1], nothing, nothing, width)

    def with_tail(self, a: torch.Tensor, c: torch.Tensor, entries: np.ndarray) -> Pair:
        """Append columns of which `entries` are kept: flat over a's entries, then c's, in any order."""
        in_a = entries < a.numel()
        kept_a, kept_c = np.sort(entries[in_a]), np.sort(entries[~in_a] - a.numel())
        return replace(self, a=torch.cat([self.a, a], 1), c=torch.cat([self.c, c], 1), kept_a=kept_a, kept_c=kept_c)


def scores(
    score: Score, a: torch.Tensor, c: torch.Tensor, importance: Importance | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The damage of deleting each entry of A (n, k) and of C (d, k), float64.

    `mag`: |A|. `frob`: the Frobenius norm of the change of A C^T, exactly. With the mean gradient G and
    the mean squared gradient F of the loss (both n x d), by the chain rule through A C^T:
    `taylor`: |A (G C)|, first order. `fisher`: A^2 (F C^2), second order. For C, G and F are transposed.
    """
    if score == "mag":
        return a.abs(), c.abs()
    if score == "frob":
        return a.abs() * c.norm(dim=0), c.abs() * a.norm(dim=0)
    if importance is None:
        raise ValueError(f"score {score} needs importance")
    if score == "fisher":
        fisher = importance.fisher.double()
        return a**2 * (fisher @ c**2), c**2 * (fisher.T @ a**2)
    gradient = importance.gradient.double()
    return (a * (gradient @ c)).abs(), (c * (gradient.T @ a)).abs()


def squared_error(matrix: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> float:
    """||D - A C^T||_F^2 for D (n, d), without forming A C^T:
    ||D||^2 - 2 tr(A^T D C) + tr(A^T A C^T C)."""
    norm = squared_norm(matrix)
    cross = float((a * multiply(matrix, c)).sum())
    return max(norm - 2 * cross + float(((a.T @ a) * (c.T @ c)).sum()), 0.0)
