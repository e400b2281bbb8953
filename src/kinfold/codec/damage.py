"""What deleting an entry of a factor does: the scores of `osd`, and the error of a damaged pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kinfold.codec.base import Importance
from kinfold.codec.lowrank import multiply
from kinfold.codec.sums import squared_norm

Score = Literal["frob", "mag", "fisher", "taylor"]


@dataclass(frozen=True)
class Tail:
    """Columns of both factors that are stored in part: the flat entries `kept_a` and `kept_c`, rising."""

    a: torch.Tensor
    c: torch.Tensor
    kept_a: np.ndarray
    kept_c: np.ndarray

    @classmethod
    def of(cls, a: torch.Tensor, c: torch.Tensor, entries: np.ndarray) -> Tail:
        """Keep `entries`: flat over a's entries, then c's, in any order."""
        in_a = entries < a.numel()
        return cls(a, c, np.sort(entries[in_a]), np.sort(entries[~in_a] - a.numel()))


@dataclass(frozen=True)
class Pair:
    """Factors A (n, k) and C (d, k), float64, to be stored at `width` bits an entry.

    Attributes:
        a: leading columns of the left factor, which are stored whole.
        c: the same of the right factor.
        width: bits of a stored value.
        tail: the columns that follow.
    """

    a: torch.Tensor
    c: torch.Tensor
    width: int
    tail: Tail | None = None


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
        return a.abs().mul_(c.norm(dim=0)), c.abs().mul_(a.norm(dim=0))
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
    norm, c = squared_norm(matrix), c.double()
    cross = float(multiply(matrix, c).mul_(a).sum())
    a = a.double()  # only now: the product above was as large
    return max(norm - 2 * cross + float(((a.T @ a) * (c.T @ c)).sum()), 0.0)
