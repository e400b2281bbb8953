"""Packing and restoring hold a few tensors, not a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import save
from zygote import Zygote

TENSORS, SHAPE = 200, (32, 16_384)
MEGABYTES = TENSORS * SHAPE[0] * SHAPE[1] * 2 >> 20  # in bfloat16
BOUND = 170  # some tensors in flight on two cores, 140 or less; either checkpoint held whole would take 200 or more

CHILD = """
import os, sys, torch
os.cpu_count = lambda: 2
import kinfold, kinfold.codec.osd, kinfold.codec.exact
def peak():  # of this process alone: ru_maxrss starts at the parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10
before = peak()
base, variant, out, codec, back = sys.argv[1:]
options = {"value_bits": 8, "extra_rank": 1, "score": "mag"} if codec == "osd" else None
kinfold.pack(base, variant, out, codec=codec, options=options, budget=None if codec == "exact" else "1/200")
packed = peak()
kinfold.restore(out, base, back)
print(packed - before, peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SHAPE, generator=generator)
    base = {f"layer.{n}.weight": values.bfloat16() for n in range(TENSORS)}
    base = {name: tensor.clone() for name, tensor in base.items()}
    variant = {name: (values * (1 + n / 2000)).bfloat16() for n, name in enumerate(base, 1)}
    return save(folder / "base", base, shards=4), save(folder / "variant", variant, shards=4)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("codec", ["exact", "osd"])
def test_peak_memory_is_that_of_a_few_tensors(
    zygote: Zygote, tmp_path: Path, large: tuple[Path, Path], codec: str
) -> None:
    job = zygote.run(CHILD, [*large, tmp_path / "v", codec, tmp_path / "back"])
    assert job.wait() == 0, job.out.read_text()
    packing, restoring = map(int, job.out.read_text().split())
    assert MEGABYTES == 200
    assert packing < BOUND
    assert restoring < BOUND
