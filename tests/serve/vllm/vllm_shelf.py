"""What the tests of the vLLM plug-in share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Shelf(NamedTuple):
    """The base's directory, the store, and the directories that variants were made from."""

    base: Path
    store: Path
    sources: Path


def drifted(model: Any, seed: int, *, rank: int = 2, parts: str = "proj") -> Any:
    """A fine-tune whose delta has exactly this rank, on the matrices with `parts` in their names."""
    variant = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in variant.named_parameters():
            if parts in name and parameter.dim() == 2:
                left, right = (torch.randn(side, rank, generator=generator) for side in parameter.shape)
                parameter += 0.05 * left @ right.T
    return variant
