"""Merging rules that bound what a minority of members can do.

The Gram rules look at inner products only and return weights: the merge is base + scale * sum_i a_i d_i, so deltas
kept as factors stay so. The coordinate rules look at every weight on its own. None of them stops a member that
adapts to the rule, and all of them cost honest members that differ from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kinfold.codec.gram import copies, distances, geometric_median, indicator, norms, shares_of
from kinfold.codec.sums import PIECE
from kinfold.errors import MergeError

Shares = Sequence[float] | np.ndarray | None

COPY_COSINE = 0.95
_CLIPS = 20


@dataclass(frozen=True)
class Joined:
    """Members with copies replaced by their mean.

    Attributes:
        groups: the members of each of U groups, in order.
        gram: float64 (U, U), inner products of the groups' means.
        shares: float64 (U,) of sum 1.
    """

    groups: tuple[tuple[int, ...], ...]
    gram: np.ndarray
    shares: np.ndarray

    def split(self, weights: np.ndarray) -> np.ndarray:
        """Weights of the U groups as weights of the N members, equal within a group."""
        result = np.zeros(sum(map(len, self.groups)))
        for group, weight in zip(self.groups, weights, strict=True):
            result[list(group)] = weight / len(group)
        return result

    def means(self, stack: torch.Tensor) -> torch.Tensor:
        """The groups' means of stacked deltas, (N, ...) to (U, ...), for coordinate rules; in the stack's dtype."""
        return torch.stack([stack[list(group)].mean(0) for group in self.groups])


def join_copies(gram: np.ndarray, shares: Shares = None, cosine: float = COPY_COSINE) -> Joined:
    """Replace members of pairwise cosine above `cosine` by their mean, which has one share: that of its average member.

    So a member published twice counts once. Members that differ by more are not found, whoever made them.

    Args:
        gram: float64 (N, N), of the unweighted deltas.
        shares: positive weights of the members; equal where not given.
        cosine: the limit.

    Raises:
        MergeError: the inner products are not finite, or the shares are not N values that are finite and above 0.
    """
    parts = _checked(gram, shares)
    groups = copies(gram, cosine)
    mean = indicator(groups, len(gram)) / [len(group) for group in groups]
    joint = parts @ mean
    return Joined(tuple(map(tuple, groups)), mean.T @ gram @ mean, joint / joint.sum())


def clip_mean(gram: np.ndarray, shares: Shares = None) -> np.ndarray:
    """The mean of members shortened to the median norm: a_i = s_i min(1, median(n) / n_i), of sum 1 or less.

    k of N members move it by at most k / N times the median norm.

    Args:
        gram: float64 (N, N), of the unweighted deltas.
        shares: positive weights of the members; equal where not given.

    Raises:
        MergeError: as `join_copies`.
    """
    parts = _checked(gram, shares)
    size = norms(gram)
    return parts * _clipped(size, float(np.median(size)))


def geomedian(gram: np.ndarray, shares: Shares = None) -> np.ndarray:
    """The geometric median: weights of sum 1. Arguments and errors as `clip_mean`.

    With a part b < 1/2 of bad members it lies within (1 - b) / sqrt(1 - 2 b) times the largest honest distance of
    any point (Minsker, arXiv 1308.1334, lemma 2.1).
    """
    return geometric_median(gram, _checked(gram, shares))


def centered_clip(gram: np.ndarray, shares: Shares = None) -> np.ndarray:
    """20 rounds of moving a centre by differences clipped to the median norm; the first is `clip_mean`.

    Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization (arXiv 2012.10333), their
    iteration, with the median norm as radius. Arguments and errors as `clip_mean`.
    """
    parts = _checked(gram, shares)
    radius = float(np.median(norms(gram)))
    weights = np.zeros(len(gram))
    for _ in range(_CLIPS):
        step = parts * _clipped(distances(gram, weights), radius)
        weights = weights * (1 - step.sum()) + step
    return weights


def multikrum(gram: np.ndarray, f: int = 1) -> np.ndarray:
    """The mean of the N - f members whose N - f - 2 nearest others are nearest: weights of sum 1.

    Blanchard et al.: Machine Learning with Adversaries (NeurIPS 2017).

    Args:
        gram: float64 (N, N), of the unweighted deltas.
        f: how many members may be bad; N must be at least 2 f + 3.

    Raises:
        MergeError: f does not fit the number of members, or the inner products are not finite.
    """
    _checked(gram, None)
    count = len(gram)
    if f < 0 or count < 2 * f + 3:
        raise MergeError(
            f"multikrum with f = {f} needs {2 * max(f, 0) + 3} members, {count} distinct ones were given",
            hint=f"f must lie between 0 and (members - 3) / 2 = {(count - 3) // 2}" if count >= 3 else "use clip-mean",
        )
    own = np.diag(gram)
    squared = np.maximum(own[:, None] + own[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(squared, np.inf)
    scores = np.sort(squared, axis=1)[:, : count - f - 2].sum(1)
    weights = np.zeros(count)
    weights[np.argsort(scores, kind="stable")[: count - f]] = 1 / (count - f)
    return weights


def median(stack: torch.Tensor) -> torch.Tensor:
    """The median of each weight over the members; the mean of the two middle ones where N is even.

    Args:
        stack: float32 (N, ...), finite.

    Returns:
        float32 (...).
    """
    return _middle(stack, (len(stack) - 1) // 2)


def trimmed_mean(stack: torch.Tensor, beta: float = 0.2) -> torch.Tensor:
    """The mean of each weight over the members without its floor(beta N) smallest and largest values.

    Args:
        stack: float32 (N, ...), finite.
        beta: part trimmed from each side, at least 0 and below 1/2.

    Returns:
        float32 (...).

    Raises:
        MergeError: nothing would be left.
    """
    if not 0 <= beta < 0.5:
        raise MergeError(f"beta is {beta}; it is trimmed from both sides, so it must be at least 0 and below 0.5")
    return _middle(stack, int(beta * len(stack) + 1e-9))


def _middle(stack: torch.Tensor, trimmed: int) -> torch.Tensor:
    """The mean over members without the `trimmed` ends of each weight, a block of weights at a time."""
    count = len(stack)
    flat = stack.reshape(count, -1)
    result = torch.empty(flat.shape[1])
    step = max(1, PIECE // count)
    for block, part in zip(flat.split(step, 1), result.split(step), strict=True):
        part.copy_(block.sort(0).values[trimmed : count - trimmed].double().mean(0))
    return result.reshape(stack.shape[1:])


def _clipped(sizes: np.ndarray, limit: float) -> np.ndarray:
    """min(1, limit / size), 1 where the size is zero."""
    return np.minimum(1.0, np.divide(limit, sizes, out=np.ones_like(sizes), where=sizes > 0))


def _checked(gram: np.ndarray, shares: Shares) -> np.ndarray:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not len(gram) or not np.isfinite(gram).all():
        raise MergeError(f"inner products of shape {gram.shape} were given; a finite square of 1 or more is needed")
    return shares_of(shares, len(gram), MergeError)
