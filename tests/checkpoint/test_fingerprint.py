"""Fingerprints against BLAKE3 over JSON lines written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.fingerprint import specs_of
from models import perturbed, pico, raw, save


def named(directory: Path) -> str:
    checkpoint = Checkpoint.open(directory)
    return fingerprint(specs_of(checkpoint), digests(checkpoint))


def by_hand(directory: Path) -> str:
    lines = []
    for name, (dtype, shape, data) in sorted(raw(directory).items()):
        fields = [json.dumps(name, ensure_ascii=False), json.dumps(dtype), "[" + ",".join(map(str, shape)) + "]"]
        lines.append("[" + ",".join([*fields, f'"{blake3(data).hexdigest()}"']) + "]\n")
    return blake3("".join(lines).encode()).hexdigest()


def test_the_independent_route(tmp_path: Path) -> None:
    tensors = pico(dtype=torch.bfloat16) | {
        "naïve/ü": torch.tensor(3),
        "empty": torch.zeros(0, 7),
        'quo"te': torch.ones(2),
    }
    directory = save(tmp_path / "m", tensors)
    assert named(directory) == by_hand(directory)


def test_golden_value(tmp_path: Path) -> None:
    """One tensor [1, 2, 3] in uint8, spelled out: a change of the rule would orphan every pack there is."""
    directory = save(tmp_path / "m", {"x": torch.tensor([1, 2, 3], dtype=torch.uint8)})
    line = '["x","U8",[3],"' + blake3(b"\x01\x02\x03").hexdigest() + '"]\n'
    assert named(directory) == blake3(line.encode()).hexdigest()
    assert named(directory) == "c3fae26becbb58bccd7c8ae4f4b8577512a13fe5383edf2dd9e1360d75a2094a"


def test_shards_do_not_matter(tmp_path: Path) -> None:
    tensors = pico()
    assert named(save(tmp_path / "one", tensors)) == named(save(tmp_path / "three", tensors, shards=3))


@pytest.mark.parametrize("change", ["ulp", "dtype", "shape", "name", "swap", "missing"])
def test_everything_else_does(tmp_path: Path, change: str) -> None:
    tensors = pico()
    other = dict(tensors)
    x = tensors["layer.0.bias"]
    if change == "ulp":
        other["layer.0.bias"] = x.clone()
        other["layer.0.bias"][5] = torch.nextafter(x[5], torch.tensor(1.0))
    elif change == "dtype":
        other["layer.0.bias"] = x.view(torch.int32)
    elif change == "shape":
        other["layer.0.bias"] = x.reshape(1, -1)
    elif change == "name":
        other["layer.0.bias2"] = other.pop("layer.0.bias")
    elif change == "swap":
        other["layer.1.bias"], other["norm.weight"] = other["norm.weight"], other["layer.1.bias"]
    else:
        del other["layer.0.bias"]
    assert named(save(tmp_path / "a", tensors)) != named(save(tmp_path / "b", other))


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    tensors = perturbed(pico())
    seen: list[int] = []
    digests(Checkpoint.open(save(tmp_path / "m", tensors)), seen.append)
    assert sum(seen) == sum(tensor.numel() * 4 for tensor in tensors.values())
