"""The factors of each low-rank tensor, with what they lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from kinfold.codec.factors import product
from kinfold.codec.lowrank import as_matrix, leading, of_product
from kinfold.codec.sums import squared_distance, squared_norm
from kinfold.codec.threads import ordered_map
from kinfold.family.gauge import squared_product_norm
from kinfold.pack.member import Member, Pair

DEFAULT_RANK = 16  # what servers take without being told
_NOISE = 1e-7  # singular values below this share of the first are float32 rounding


@dataclass(frozen=True)
class Found:
    """A (n, r) and C (d, r), float32, for the base's `name`; ||D||^2 and ||D - A C^T||^2.

    `pair` is None where the whole tensor takes no more room than its factors, or where D is zero.
    """

    name: str
    pair: tuple[torch.Tensor, torch.Tensor] | None
    energy: float
    lost: float


def factors_of(member: Member, names: Sequence[str], rank: int | None, *, or_whole: bool) -> Iterator[Found]:
    """Factors of each delta in order: as the member keeps them, else the leading singular triplets.

    Args:
        member: whose deltas.
        names: the base's names of the tensors.
        rank: the most a tensor may have; None keeps factors as they are and gives a dense delta 16.
        or_whole: give no factors where the tensor itself is no larger.
    """

    def work(item: tuple[str, Pair | torch.Tensor]) -> Found:
        name, given = item
        if isinstance(given, torch.Tensor):
            return _dense(name, given, DEFAULT_RANK if rank is None else rank, or_whole)
        return _kept(name, given, rank)

    def items() -> Iterator[tuple[str, Pair | torch.Tensor]]:
        for name in names:  # read in this thread, for a member may keep what it read last
            pair = member.factors(name)
            yield name, member.delta(name) if pair is None else pair

    yield from ordered_map(work, items(), values=_values)


def _values(item: tuple[str, Pair | torch.Tensor]) -> int:
    given = item[1]
    return given.numel() if isinstance(given, torch.Tensor) else sum(factor.numel() for factor in given)


def _dense(name: str, delta: torch.Tensor, rank: int, or_whole: bool) -> Found:
    matrix = as_matrix(delta)
    energy = squared_norm(matrix)
    n, d = matrix.shape
    if energy == 0 or (or_whole and min(rank, n, d) * (n + d) >= n * d):
        return Found(name, None, energy, 0.0)
    triplets = leading(matrix, rank)
    kept = max(int((triplets.s > _NOISE * triplets.s[0]).sum()), 1)
    a, c = (factor.float() for factor in triplets.balanced(kept))
    return Found(name, (a, c), energy, squared_distance(product(a, c, matrix.shape, torch.float32), matrix))


def _kept(name: str, pair: Pair, rank: int | None) -> Found:
    a, c = pair
    energy = squared_product_norm(pair)
    if energy == 0:
        return Found(name, None, 0.0, 0.0)
    lost = 0.0
    if rank is not None and a.shape[1] > rank:
        triplets = of_product(a, c)
        a, c = triplets.balanced(rank)
        lost = float(triplets.s[rank:].square().sum())
    return Found(name, (a.float(), c.float()), energy, lost)
