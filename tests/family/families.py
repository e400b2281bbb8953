"""Names, options and odd members that tests of families share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinfold.family.look import FamilyReport
from models import Tensors, perturbed, pico

METHODS: dict[str, dict[str, Any]] = {
    "rmm": {"method": "rmm"},
    "jd": {"method": "jd"},
    "truncsvd": {"method": "truncsvd"},
    "mixed": {"low_rank": True},
    "packs": {"method": "packs"},
    "directions": {"method": "rmm", "directions": 1, "dtype": "float32"},
    "paper": {"preset": "paper"},
}


@dataclass(frozen=True)
class Family:
    """A base, its fine-tunes by name, and files they were folded into, by key of METHODS."""

    base: Path
    members: dict[str, Path]
    files: dict[str, Path]
    reports: dict[str, FamilyReport]


def odd_base() -> Tensors:
    return pico() | {"same.weight": torch.ones(70, 64), "counts": torch.arange(40), "gone": torch.ones(8)}


def odd_members() -> dict[str, Tensors]:
    """What fine-tunes do besides changing matrices."""
    base = odd_base()
    generator = torch.Generator().manual_seed(7)
    headed = perturbed({k: v for k, v in base.items() if k not in ("counts", "gone")}, 1) | {
        "counts": torch.arange(40) * 2,
        "layer.1.weight": base["layer.1.weight"],  # left alone
        "same.weight": base["same.weight"],
        "head.weight": torch.randn(5, 64, generator=generator),
        "head.bias": torch.randn(5, generator=generator),
    }
    grown = perturbed({k: v for k, v in base.items() if k != "counts"}, 2) | {"counts": base["counts"]}
    grown["embed.weight"] = torch.cat([grown["embed.weight"], torch.randn(6, 48, generator=generator)])
    grown["lm_head.weight"] = grown["embed.weight"].clone()  # tied
    half = perturbed({k: v for k, v in base.items() if k != "counts"}, 3) | {"counts": base["counts"]}
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in half.items()}
    return {"grown": grown, "half": half, "headed": headed}
