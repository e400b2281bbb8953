"""Reversible Model Merging: a mean and a few shared directions at every position of the members' factors.

Reversible Model Merging for low-rank weights, arXiv 2510.14163. A delta is A C^T with A (m, r) and C (d, r);
its factors are stacked as Z = [A; C], one position for every row. At each position the members give n vectors
in R^r: their mean, p principal directions and p numbers a member are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kinfold.codec.lowrank import Pair, peak_signs

_GRAM_MEMBERS = 64  # above it, the n x n Gram matrix is smaller than what an SVD works on


@dataclass(frozen=True)
class Rmm:
    """What is stored for one layer; float64.

    Attributes:
        mean: (P, r), zero where the fit was not centred.
        basis: (P, r, p), orthonormal columns at each position.
        coefficients: (P, p, n), in the order of the members.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    coefficients: torch.Tensor

    def stacked(self, member: int) -> torch.Tensor:
        """Z of one member: (P, r)."""
        return self.mean + (self.basis @ self.coefficients[..., member, None])[..., 0]

    def cut(self, directions: int) -> Rmm:
        """The first `directions` directions only."""
        return Rmm(self.mean, self.basis[..., :directions], self.coefficients[:, :directions])


def stack(pairs: Sequence[Pair], rank: int) -> torch.Tensor:
    """Factors of n members as (P, rank, n), float64; narrower ones are padded with zero columns."""
    columns = []
    for a, c in pairs:
        z = torch.cat([a, c]).double()
        columns.append(torch.nn.functional.pad(z, (0, rank - z.shape[1])))
    return torch.stack(columns, -1)


def split(z: torch.Tensor, rows: int) -> Pair:
    """A (rows, r) and C from a stacked Z."""
    return z[:rows], z[rows:]


def most_directions(members: int, rank: int) -> int:
    """With so many the factors come back exactly."""
    return min(max(members - 1, 0), rank)


def fit(stacked: torch.Tensor, *, center: bool = True) -> Rmm:
    """Mean and all principal directions of `stacked` (P, r, n); `Rmm.cut` keeps the leading ones.

    The factor error of a cut is the sum of the squared singular values that it drops (Section 3 of the paper).
    Signs are canonical: the largest entry of each direction is positive.
    """
    positions, rank, members = stacked.shape
    mean = stacked.mean(-1) if center else torch.zeros(positions, rank, dtype=stacked.dtype)
    rest = stacked - mean[..., None]
    most = most_directions(members, rank) if center else min(members, rank)
    basis, size, right = _by_gram(rest) if members > _GRAM_MEMBERS else torch.linalg.svd(rest, full_matrices=False)
    basis, coefficients = basis[..., :most], size[..., :most, None] * right[:, :most]
    if most == 0:
        return Rmm(mean, basis, coefficients)
    sign = peak_signs(basis, 1)
    return Rmm(mean, basis * sign, coefficients * sign.transpose(1, 2))


def _by_gram(rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same SVD through the r x r Gram matrices: cheaper where there are many more members than ranks."""
    values, basis = torch.linalg.eigh(rest @ rest.transpose(1, 2))
    basis, size = basis.flip(-1), values.flip(-1).clamp_min(0).sqrt()
    scaled = basis.transpose(1, 2) @ rest  # = size * right
    return basis, size, scaled / size[..., None].masked_fill(size[..., None] == 0, 1.0)


def stored_numbers(positions: int, rank: int, directions: int, members: int) -> int:
    """P (r + r p + p n): mean, basis and coefficients."""
    return positions * (rank + rank * directions + directions * members)
