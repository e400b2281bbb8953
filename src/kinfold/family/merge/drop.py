"""`dare_linear`, `dare_ties` and `della`: drop entries at random, divide the others so that the mean stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field

from kinfold.codec.random import uniform_bits
from kinfold.errors import MergeError
from kinfold.family.merge.registry import Options, Shares, Site, Weights, per_member, space_method

_BLOCK = 1 << 18  # entries drawn at once; a multiple of 4
_WORDS = float(1 << 32)
Dropped = tuple[list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
Width = Annotated[float, Field(ge=0, lt=1)]


def _as_it_is(merged: torch.Tensor) -> torch.Tensor:
    return merged


def _check_density(weights: Weights, options: Options) -> None:
    per_member(options["density"], len(weights), "density")


@space_method("dare_linear", inners={"task_arithmetic": {}}, check=_check_density)
@space_method("dare_ties", inners={"ties": {"density": 1.0, "scope": "tensor"}}, check=_check_density)
def dare(deltas: list[torch.Tensor], *, site: Site, density: Shares = 0.5) -> Dropped:
    """Keep each entry with probability `density` and divide it by that. DARE, arXiv 2311.03099, equation 2.

    Words of the Philox stream of (seed, tensor, member) decide, one an entry: kept where word < density * 2^32.
    """
    shares = per_member(density, len(deltas), "density")
    for delta, seed, share in zip(deltas, site.seeds, shares, strict=True):
        flat = delta.reshape(-1)
        for start in range(0, flat.numel(), _BLOCK):
            part = flat[start : start + _BLOCK]
            part.mul_(uniform_bits(seed, start, part.numel()) < share * _WORDS).div_(share)
    return deltas, _as_it_is


def _check_della(weights: Weights, options: Options) -> None:
    shares = per_member(options["density"], len(weights), "density")
    widths = per_member(options["epsilon"], len(weights), "epsilon")
    for share, width in zip(shares, widths, strict=True):
        if share - width / 2 <= 0 or share + width / 2 > 1:
            raise MergeError(
                f"`della` keeps entries with probabilities between density - epsilon / 2 and density + epsilon / 2; "
                f"{share - width / 2:g} to {share + width / 2:g} is not within (0, 1]"
            )


@space_method(
    "della",
    inners={"ties": {"density": 1.0, "scope": "tensor"}, "task_arithmetic": {}},
    check=_check_della,
)
def della(
    deltas: list[torch.Tensor], *, site: Site, density: Shares = 0.5, epsilon: Width | list[Width] = 0.2
) -> Dropped:
    """Keep large entries more often than small ones. DELLA, arXiv 2406.11617, MagPrune, ranked within rows.

    In a row of n entries the one with r smaller ones is kept with probability
    q = density - epsilon / 2 + epsilon * r / (n - 1) and divided by q, so the mean is the row itself and `density`
    of it is kept on average. Equal magnitudes are ranked by their place. Random words as for `dare_linear`.
    """
    shares = per_member(density, len(deltas), "density")
    widths = per_member(epsilon, len(deltas), "epsilon")
    for delta, seed, share, width in zip(deltas, site.seeds, shares, widths, strict=True):
        if delta.numel() == 0:
            continue
        rows = delta.reshape(delta.shape[0] if delta.dim() > 1 else 1, -1)
        length = rows.shape[1]
        step = 4 * max(1, _BLOCK // max(4 * length, 1))  # a multiple of 4 rows starts at a multiple of 4 entries
        ramp = share + width * (torch.arange(length) / max(length - 1, 1) - 0.5) if length > 1 else torch.tensor(share)
        for first in range(0, rows.shape[0], step):
            part = rows[first : first + step]
            order = part.abs().argsort(dim=1, stable=True)
            keep = torch.empty_like(part).scatter_(1, order, ramp.to(part).expand_as(part))
            words = uniform_bits(seed, first * length, part.numel()).reshape(part.shape)
            part.mul_(words < keep.double() * _WORDS).div_(keep)
    return deltas, _as_it_is
