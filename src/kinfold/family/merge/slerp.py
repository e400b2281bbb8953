"""`slerp`: from one variant to another on an arc."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from kinfold.errors import MergeError
from kinfold.family.merge.linear import pieces
from kinfold.family.merge.registry import HERE, Options, Site, Weights, merge_method

PARALLEL = 0.9995  # cosines beyond this make no arc: the straight line is taken


def _two(weights: Weights, options: Options) -> None:
    if len(weights) != 2:
        raise MergeError(
            f"`slerp` takes exactly two variants, {len(weights)} were given", hint="for more take --method linear"
        )
    if any(weight != 1 for weight in weights):
        raise MergeError("`slerp` takes no weights; t says how far to go", hint="--option t=0.3")


@merge_method("slerp", check=_two)
def slerp(
    deltas: Sequence[torch.Tensor],
    weights: Weights,
    *,
    site: Site = HERE,
    t: Annotated[float, Field(ge=0, le=1)] = 0.5,
    space: Literal["weights", "delta"] = "weights",
) -> torch.Tensor:
    """sin((1 - t) a) / sin a * X + sin(t a) / sin a * Y, where a is the angle between X and Y, flattened.

    X and Y are the variants' own tensors, or with `space="delta"` their differences to the base. Where they are
    almost parallel, or one is zero, (1 - t) X + t Y. Shoemake, Animating rotation with quaternion curves (1985).

    Args:
        deltas: two float32 tensors of one shape.
        weights: not used.
        site: reads the base.
        t: 0 gives the first, 1 the second.
        space: variants of one base are almost parallel, so that `weights` is the straight line in practice; their
            deltas are not.
    """
    base = site.base() if space == "weights" else None
    first, second = _arc(deltas, base, t)
    result = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    sources = [*deltas, *([base] if base is not None else [])]
    for (out,), parts in zip(pieces([result]), pieces(sources), strict=True):
        x, y, *there = (part.double() for part in parts)
        # X = base + x and Y = base + y, less the base that is added again
        total = first * x + second * y
        out.copy_(total.add_(there[0], alpha=first + second - 1) if there else total)
    return result


def _arc(deltas: Sequence[torch.Tensor], base: torch.Tensor | None, t: float) -> tuple[float, float]:
    """The factors of X and Y."""
    dot = xx = yy = 0.0
    for parts in pieces([*deltas, *([base] if base is not None else [])]):
        x, y, *there = (part.double() for part in parts)
        if there:
            x, y = x + there[0], y + there[0]
        dot, xx, yy = dot + float(x @ y), xx + float(x @ x), yy + float(y @ y)
    cosine = dot / math.sqrt(xx * yy) if xx * yy > 0 else 1.0
    if t in (0, 1) or abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
