"""Values against the base's: every pair of float dtypes, and the errors that a lossy pack claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kinfold
from models import perturbed, pico, raw, save

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("own", FLOATS)
@pytest.mark.parametrize("other", FLOATS)
def test_every_pair_of_float_dtypes(tmp_path: Path, other: torch.dtype, own: torch.dtype) -> None:
    base = pico(dtype=other)
    variant = {name: tensor.to(own) for name, tensor in perturbed(pico()).items()}
    there, here = save(tmp_path / "base", base), save(tmp_path / "variant", variant)
    kinfold.pack(there, here, tmp_path / "v", codec="exact")
    assert kinfold.restore(tmp_path / "v", there, tmp_path / "restored").lossless
    assert raw(tmp_path / "restored") == raw(here)


def test_lossy_values_are_base_plus_delta(tmp_path: Path, pair: Any) -> None:
    """The claim of `error` in the manifest, recomputed from the restored file in float64."""
    out = tmp_path / "v.kin.safetensors"
    report = kinfold.pack(*pair, out, codec="truncsvd", budget="1/2")
    restored = kinfold.restore(out, pair.base, tmp_path / "restored")
    assert not restored.lossless
    tensors = {}
    for name, folder in (("base", pair.base), ("variant", pair.variant), ("restored", tmp_path / "restored")):
        entries = raw(folder).items()
        tensors[name] = {n: torch.frombuffer(bytearray(data), dtype=torch.float32) for n, (_, _, data) in entries}
    missed = energy = 0.0
    for row in kinfold.inspect(out).tensors:
        if row.codec == "exact":
            continue
        base, variant, back = (tensors[k][row.name].double() for k in ("base", "variant", "restored"))
        norm, error = float((variant - base).norm()), float((variant - back).norm())
        if row.norm is not None:  # tensors laid together have one figure between them
            assert row.norm == pytest.approx(norm, rel=6e-3)  # three digits are kept
            assert row.error == pytest.approx(error / norm, rel=6e-3, abs=1e-4)
        missed += error**2
        energy += norm**2
    assert energy > 0
    assert report.error == pytest.approx((missed / energy) ** 0.5, rel=1e-2)
