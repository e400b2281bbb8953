"""Families that several tests share: built and folded once a session."""

from __future__ import annotations

import pytest
import torch
from families import METHODS, Family, odd_base, odd_members

from kinfold.family.fold import fold
from models import MIDDLING, perturbed, pico, save


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Three pico members, folded in every way at a third of their bytes."""
    folder = tmp_path_factory.mktemp("trees")
    tensors = pico()
    base = save(folder / "base", tensors)
    names = ("ash", "birch", "cedar")
    members = {
        name: save(folder / name, perturbed(tensors, seed), {"name": name}) for seed, name in enumerate(names, 1)
    }
    files = {key: folder / f"{key}.kin.safetensors" for key in METHODS}
    reports = {key: fold(members, files[key], base=base, **METHODS[key]) for key in METHODS}
    return Family(base, members, files, reports)


@pytest.fixture(scope="session")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Two members of 2.5 million weights in bfloat16; nothing is folded yet."""
    folder = tmp_path_factory.mktemp("middling")
    tensors = pico(shapes=MIDDLING, dtype=torch.bfloat16)
    base = save(folder / "base", tensors)
    members = {name: save(folder / name, perturbed(tensors, seed, 4e-3)) for seed, name in enumerate("ab", 1)}
    return Family(base, members, {}, {})


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """New heads, tied and grown embeddings, another dtype, integers, tensors left alone or left out."""
    folder = tmp_path_factory.mktemp("odd")
    base = save(folder / "base", odd_base())
    members = {name: save(folder / name, tensors, {"name": name}) for name, tensors in odd_members().items()}
    files = {key: folder / f"{key}.kin.safetensors" for key in ("mixed", "jd", "packs", "directions")}
    reports = {key: fold(members, file, base=base, **{**METHODS[key], "budget": "1/2"}) for key, file in files.items()}
    return Family(base, members, files, reports)
