"""`core_space`: merge small matrices between two shared bases. Core Space, arXiv 2509.17786."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field

from kinfold.codec.lowrank import as_matrix, leading
from kinfold.family.merge.registry import Site, space_method

_SMALLEST = 1e-12  # of the largest singular value: rounding
Found = tuple[list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


@space_method("core_space", inners={"ties": {}, "task_arithmetic": {}})
def core_space(deltas: list[torch.Tensor], *, site: Site, rank: Annotated[int, Field(ge=1)] = 16) -> Found | None:
    """Coordinates M_i = U^T D_i V, where U spans all A_i and V all C_i of D_i = A_i C_i^T; back by U M V^T. Section 3.

    Members kept as factors go in whole, with nothing lost. Of a full delta the `rank` leading singular triplets
    do, the rest of it is left out of the merge. Vectors are merged as they are.
    """
    if deltas[0].dim() < 2 or deltas[0].numel() == 0:
        return None
    shape = deltas[0].shape
    pairs = site.factors() or [None] * len(deltas)
    known = [
        pair if pair is not None else leading(as_matrix(delta), rank).balanced(rank)
        for pair, delta in zip(pairs, deltas, strict=True)
    ]
    u, v = _span([a for a, _ in known]), _span([c for _, c in known])
    cores = [(u.T @ a) @ (c.T @ v) for a, c in known]
    return cores, lambda merged: (u @ merged @ v.T).reshape(shape)


def _span(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Left singular vectors of the parts side by side, float64, without those of singular value zero."""
    u, s, _ = torch.linalg.svd(torch.cat(list(parts), 1), full_matrices=False)
    return u[:, : int((s > _SMALLEST * s[0]).sum()) if len(s) else 0]
