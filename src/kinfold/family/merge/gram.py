"""Inner products of the members' whole deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from kinfold.family.merge.linear import pieces


def gram_matrix(tensors: Iterable[Sequence[torch.Tensor]], members: int) -> np.ndarray:
    """<D_i, D_j> summed over all tensors, float64 (N, N).

    Args:
        tensors: the members' deltas of one tensor after another.
        members: how many there are.
    """
    gram = torch.zeros(members, members, dtype=torch.float64)
    for deltas in tensors:
        for parts in pieces(deltas):
            stack = torch.stack(parts).double()
            gram.addmm_(stack, stack.T)
    return gram.numpy()
