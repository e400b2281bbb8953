"""The exact k-th magnitude of vectors too long to sort: two passes over the bits of float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

Passes = Callable[[], Iterable[Sequence[torch.Tensor]]]

_HALF = 1 << 16  # bins: one half of the 32 bits
_BLOCK = 1 << 20  # entries counted at once


def magnitude_limits(passes: Passes, densities: Sequence[float]) -> list[float]:
    """For each member the magnitude that its top share reaches, over everything that one pass yields.

    An entry is in the share where |x| >= the limit: of N entries the int(density * N) largest (at least one), and
    all that equal the last of them. Bit patterns of non-negative floats are ordered as the floats are, so counting
    the high halves finds the limit's high half, and counting the low halves under it finds the limit itself.

    Args:
        passes: each call streams lists of tensors anew, one tensor a member; compared as float32.
        densities: in (0, 1], one a member; 1 keeps everything and needs no pass.

    Returns:
        One limit a member; 0 where everything is kept.
    """
    if all(density == 1 for density in densities):
        return [0.0] * len(densities)
    high = np.zeros((len(densities), _HALF), np.int64)
    for tensors in passes():
        _count_high(high, tensors)
    found = [_top(counts, _wanted(counts, density)) for counts, density in zip(high, densities, strict=True)]
    low = np.zeros_like(high)
    for tensors in passes():
        _count_low(low, [bin_ for bin_, _ in found], tensors)
    limits = [(bin_ << 16) | _top(counts, left)[0] for counts, (bin_, left) in zip(low, found, strict=True)]
    as_floats = np.array(limits, np.uint32).view(np.float32)
    return [0.0 if density == 1 else float(one) for one, density in zip(as_floats, densities, strict=True)]


def _count_high(high: np.ndarray, tensors: Sequence[torch.Tensor]) -> None:
    for counts, tensor in zip(high, tensors, strict=True):
        for bits in _bits(tensor):
            counts += np.bincount(bits >> 16, minlength=_HALF)


def _count_low(low: np.ndarray, bins: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
    for counts, bin_, tensor in zip(low, bins, tensors, strict=True):
        for bits in _bits(tensor):
            counts += np.bincount(bits[bits >> 16 == bin_] & (_HALF - 1), minlength=_HALF)


def _wanted(counts: np.ndarray, density: float) -> int:
    return max(1, int(density * int(counts.sum())))


def _top(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The highest bin such that it and those above hold `wanted` entries; and how many of its own are among them."""
    above = np.cumsum(counts[::-1])
    position = int(np.searchsorted(above, wanted))
    if position == len(above):  # fewer entries than wanted: an empty model
        return 0, 1
    bin_ = len(counts) - 1 - position
    return bin_, wanted - int(above[position] - counts[bin_])


def _bits(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    """Bit patterns of |x| in float32, int64 so that `bincount` copies nothing more."""
    for block in tensor.reshape(-1).split(_BLOCK):
        yield (block.float().numpy().view(np.uint32) & 0x7FFFFFFF).astype(np.int64)
