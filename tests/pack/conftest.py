"""What several tests of packs share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kinfold
from models import MIDDLING, perturbed, pico, save


@pytest.fixture(scope="session")
def middling(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bfloat16 checkpoint of about 1.1 million weights and its fine-tune."""
    folder = tmp_path_factory.mktemp("middling")
    tensors = pico(shapes=MIDDLING, dtype=torch.bfloat16)
    return save(folder / "base", tensors), save(folder / "variant", perturbed(tensors, scale=4e-3))


SHAPES = {"a.weight": (70, 64), "a.bias": (9,), "n": (3,)}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, variant, and a pack with a lossy unit, a group, an alias, an equal tensor and kept files."""
    folder = tmp_path_factory.mktemp("small")
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    variant = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    base |= {"same": torch.ones(40)}
    variant |= {"same": torch.ones(40), "new": torch.arange(30), "twin": torch.arange(30)}
    paths = save(folder / "base", base), save(folder / "variant", variant, {"changed": True})
    kinfold.pack(*paths, folder / "v.kin.safetensors", codec="osd", budget="1/3")
    return *paths, folder / "v.kin.safetensors"
