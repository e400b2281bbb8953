"""A base and three variants, as directories and as tensors."""

from __future__ import annotations

from pathlib import Path

import torch

from models import Tensors, perturbed, pico, save

NAMES = ("a", "b", "c")


class Family:
    """Model directories, and their tensors as they were saved."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, shards: int = 1) -> None:
        self.tensors: dict[str, Tensors] = {"base": pico(dtype=dtype)}
        self.tensors |= {name: perturbed(self.tensors["base"], seed) for seed, name in enumerate(NAMES, 1)}
        self.paths = {name: save(folder / name, found, shards=shards) for name, found in self.tensors.items()}
        self.base = self.paths["base"]
        self.variants = [self.paths[name] for name in NAMES]

    def deltas(self, name: str) -> list[torch.Tensor]:
        """In float64."""
        base = self.tensors["base"][name].double()
        return [self.tensors[member][name].double() - base for member in NAMES]


Factors = list[tuple[torch.Tensor, torch.Tensor]]
