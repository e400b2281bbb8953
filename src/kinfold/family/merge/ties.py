"""`ties`: trim, elect signs, merge what agrees. TIES-Merging, arXiv 2306.01708."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from kinfold.errors import MergeError
from kinfold.family.merge.linear import pieces
from kinfold.family.merge.registry import HERE, Options, Shares, Site, Weights, merge_method, per_member
from kinfold.family.merge.trim import Passes, magnitude_limits


def _check(weights: Weights, options: Options) -> None:
    per_member(options["density"], len(weights), "density")
    if min(weights) < 0:
        raise MergeError(
            f"`ties` elects signs by weight and takes no negative one, {min(weights):g} was given",
            hint="to subtract a variant take --method task_arithmetic",
        )


def _survey(
    passes: Passes, members: int, *, density: Shares, scale: float, scope: str, normalize: bool
) -> list[float] | None:
    return magnitude_limits(passes, per_member(density, members, "density")) if scope == "model" else None


@merge_method("ties", check=_check, survey=_survey)
def ties(
    deltas: Sequence[torch.Tensor],
    weights: Weights,
    *,
    site: Site = HERE,
    density: Shares = 0.2,
    scale: float = 1.0,
    scope: Literal["model", "tensor"] = "model",
    normalize: bool = True,
) -> torch.Tensor:
    """Trim each delta to its largest entries, elect the sign of sum w_i D_i at each place (an exact 0 counts as
    plus), and take the weighted mean of the non-zero entries of that sign, times `scale`. Section 4.

    Args:
        deltas: float32 or float64, one shape.
        weights: positive.
        site: with the limits of the whole model, where `scope` is `model`.
        density: share of entries kept, in (0, 1]; one for all members or one a member. Entries equal to the least
            kept one are kept too.
        scale: of the merged delta.
        scope: whether the largest entries are those of the whole `model` or of each `tensor`.
        normalize: False gives the weighted sum instead of the mean.
    """
    shares = per_member(density, len(deltas), "density")
    limits = site.survey or magnitude_limits(lambda: [deltas], shares)
    weight = torch.tensor(weights, dtype=torch.float64)[:, None]
    result = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    for (out,), parts in zip(pieces([result]), pieces(deltas), strict=True):
        kept = torch.stack(
            [part.double() * (part.float().abs() >= limit) for part, limit in zip(parts, limits, strict=True)]
        )
        weighted = kept * weight
        elected = torch.where(weighted.sum(0) < 0, -1.0, 1.0)
        agree = kept * elected > 0
        total = (weighted * agree).sum(0)
        if normalize:
            share = (weight * agree).sum(0)
            total /= torch.where(share > 0, share, 1.0)
        out.copy_(total * scale)
    return result
