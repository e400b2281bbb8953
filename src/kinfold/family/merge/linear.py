"""`linear` and `task_arithmetic`: weighted sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from kinfold.codec.sums import PIECE
from kinfold.errors import MergeError
from kinfold.family.merge.registry import Options, Weights, merge_method


def pieces(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one shape as vectors, a piece of each at a time."""
    yield from map(list, zip(*(tensor.reshape(-1).split(PIECE) for tensor in tensors), strict=True))


def weighted_sum(deltas: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
    """sum_i w_i D_i, summed in float64, in the deltas' dtype and shape."""
    result = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    for (out,), parts in zip(pieces([result]), pieces(deltas), strict=True):
        total = torch.zeros(out.shape, dtype=torch.float64)
        for part, weight in zip(parts, weights, strict=True):
            total.add_(part.double(), alpha=weight)
        out.copy_(total)
    return result


def require_sum(weights: Weights, options: Options) -> None:
    """Refuse weights that cannot be divided by their sum."""
    if options.get("normalize", True) and abs(sum(weights)) < 1e-9 * sum(map(abs, weights)):
        raise MergeError(f"the weights {', '.join(f'{w:g}' for w in weights)} sum to 0, and the method divides by that")


@merge_method("linear", check=require_sum)
def linear(deltas: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
    """The weighted mean of the variants, sum w_i theta_i / sum w_i: the base has no part in it.

    Model soups, arXiv 2203.05482.
    """
    total = sum(weights)
    return weighted_sum(deltas, [weight / total for weight in weights])


@merge_method("task_arithmetic", check=require_sum)
def task_arithmetic(
    deltas: Sequence[torch.Tensor], weights: Weights, *, scale: float = 0.4, normalize: bool = False
) -> torch.Tensor:
    """scale * sum w_i D_i; with `normalize` over the sum of the weights. arXiv 2212.04089, section 2."""
    factor = scale / sum(weights) if normalize else scale
    return weighted_sum(deltas, [factor * weight for weight in weights])
