"""Inner products of the members' whole deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from kinfold.codec.gram import gram as inner_products


def gram_matrix(tensors: Iterable[Sequence[torch.Tensor]], members: int) -> np.ndarray:
    """<D_i, D_j> summed over all tensors, float64 (N, N).

    Args:
        tensors: the members' deltas of one tensor after another.
        members: how many there are.
    """
    gram = np.zeros((members, members))
    for deltas in tensors:
        gram += inner_products(deltas)
    return gram
