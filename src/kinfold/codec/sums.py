"""Sums over large tensors in float64, a piece at a time: no copy of the tensor, and one order of addition."""

from __future__ import annotations

import math

import torch

PIECE = 1 << 16  # entries converted at once: 512 KiB in float64 stay in a core's cache, and below what malloc maps anew


def squared_norm(tensor: torch.Tensor) -> float:
    """||T||_F^2."""
    return sum(float(piece.double().square().sum()) for piece in tensor.reshape(-1).split(PIECE))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinity; no mask of the tensor's size is made."""
    return not tensor.numel() or all(math.isfinite(float(extreme)) for extreme in torch.aminmax(tensor))


def size_sum(tensor: torch.Tensor) -> float:
    """The sum of |T|."""
    return sum(float(piece.double().abs().sum()) for piece in tensor.reshape(-1).split(PIECE))


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """||A - B||_F^2 of two tensors of one shape."""
    pieces = zip(a.reshape(-1).split(PIECE), b.reshape(-1).split(PIECE), strict=True)
    return sum(float((one.double() - two.double()).square().sum()) for one, two in pieces)
