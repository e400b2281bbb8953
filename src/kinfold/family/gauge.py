"""The freedom of a factorisation: A G and C G^-T are the same delta, but other coordinates to share.

Balanced factors and rotations that bring the members' factors together cost no byte: they are absorbed in what
is stored. Only orthogonal rotations keep both factors of a balanced pair balanced.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinfold.codec.lowrank import Pair, of_product

_ROUNDS = 50
_CLOSE = 1e-9


def balanced(a: torch.Tensor, c: torch.Tensor) -> Pair:
    """The same product with A^T A = C^T C diagonal, largest first: A = U sqrt(S), C = V sqrt(S)."""
    triplets = of_product(a, c)  # ranks above a side are cut to it
    return triplets.balanced(len(triplets.s))


def aligned(stacked: torch.Tensor) -> torch.Tensor:
    """Rotate each member's factors towards their mean: generalised orthogonal Procrustes (Gower, 1975).

    Args:
        stacked: (P, r, n), float64.

    Returns:
        The rotated factors in the same shape; every product A C^T is unchanged. The sum of squared distances
        to the mean never rises from one round to the next.
    """
    members = list(stacked.unbind(-1))
    norms = [float(z.norm()) for z in members]
    center = members[norms.index(max(norms))] if members else stacked[..., 0]
    before = float("inf")
    for _ in range(_ROUNDS):
        members = [z @ _polar(z.T @ center) for z in members]
        center = torch.stack(members).mean(0)
        spread = sum(float((z - center).square().sum()) for z in members)
        if before - spread <= _CLOSE * max(spread, 1e-300):
            break
        before = spread
    return torch.stack(members, -1)


def _polar(matrix: torch.Tensor) -> torch.Tensor:
    """The orthogonal factor of the polar decomposition; the identity for a zero matrix."""
    if not bool(matrix.any()):
        return torch.eye(len(matrix), dtype=matrix.dtype)
    u, _, v = torch.linalg.svd(matrix)
    return u @ v


def squared_product_error(wanted: Pair, found: Pair) -> float:
    """||A C^T - A' C'^T||_F^2 in O((m + d) r^2), without forming either product."""
    (a, c), (b, e) = wanted, found
    own = ((a.T @ a) * (c.T @ c)).sum() + ((b.T @ b) * (e.T @ e)).sum()
    return max(float(own - 2 * ((a.T @ b) * (c.T @ e)).sum()), 0.0)


def squared_product_norm(pair: Pair) -> float:
    """||A C^T||_F^2."""
    a, c = pair
    return max(float(((a.T @ a) * (c.T @ c)).sum()), 0.0)


def shared_energy(pairs: Sequence[Pair]) -> float:
    """n ||mean D||^2 / sum ||D||^2: 1/n where members have nothing in common, 1 where they are equal."""
    total = sum(squared_product_norm(pair) for pair in pairs)
    joint = squared_product_norm((torch.cat([a for a, _ in pairs], 1), torch.cat([c for _, c in pairs], 1)))
    return joint / (len(pairs) * total) if total else 0.0
