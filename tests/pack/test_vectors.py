"""What is no large matrix, by a codec that takes vectors: norms and biases together, new tensors at the last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kinfold
from forge import take_apart
from kinfold.checkpoint import Checkpoint
from kinfold.pack.source import Sources
from kinfold.pack.units import drafts
from models import Tensors, perturbed, pico, raw, save

SHAPES = {
    "layer.weight": (256, 256),
    "layer.bias": (256,),
    "norm.weight": (256,),
    "table": (12, 5),
    "scale": (),
}


def values(directory: Path, name: str) -> torch.Tensor:
    kind, shape, data = raw(directory)[name]
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def round_trip(folder: Path, base: Tensors, variant: Tensors, budget: str | int) -> tuple[list[dict], Path]:
    """Units of the manifest, and the restored directory, whose names, dtypes and shapes are the variant's."""
    there, here = save(folder / "base", base), save(folder / "variant", variant)
    out = folder / "v.kin.safetensors"
    kinfold.pack(there, here, out, budget=budget)
    kinfold.restore(out, there, folder / "restored")
    assert {n: e[:2] for n, e in raw(folder / "restored").items()} == {n: e[:2] for n, e in raw(here).items()}
    return take_apart(out)[1]["units"], folder / "restored"


def names(unit: dict) -> set[str]:
    return {piece["name"] for piece in unit["pieces"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_and_biases_are_one_unit(tmp_path: Path, dtype: torch.dtype) -> None:
    base = pico(shapes=SHAPES, dtype=dtype)
    variant = perturbed(base, scale=2e-2)
    units, back = round_trip(tmp_path, base, variant, 40_000)
    assert [unit["codec"] for unit in units] == ["fold", "fold"]
    assert [names(unit) for unit in units] == [{"layer.weight"}, set(SHAPES) - {"layer.weight"}]
    for name in SHAPES:  # about five bits a value
        far, near = ((t.double() - variant[name].double()).norm() for t in (base[name], values(back, name)))
        assert near < 0.5 * far


def test_only_float_deltas_are_taken(tmp_path: Path) -> None:
    base = pico(shapes=SHAPES) | {"ids": torch.arange(9)}
    variant = perturbed(pico(shapes=SHAPES)) | {"ids": torch.arange(1, 10), "new": torch.ones(5)}
    checkpoints = [Checkpoint.open(save(tmp_path / n, t)) for n, t in (("base", base), ("variant", variant))]
    sources = Sources.open(*checkpoints)
    found = drafts(sources.base, sources.variant, sources.match, lossless=False, vectors=True)
    assert sorted((draft.matrix, sorted(piece.name for piece in draft.pieces)) for draft in found) == [
        (False, ["ids"]),
        (False, ["new"]),
        (True, ["layer.bias", "norm.weight", "scale", "table"]),
        (True, ["layer.weight"]),
    ]


@pytest.mark.parametrize("shapes", [SHAPES, {"layer.weight": (256, 256), "table": (12, 5)}], ids=["group", "alone"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_small_tensor_that_is_not_finite_is_exact(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], bad: float
) -> None:
    """Once refused when such a tensor was the only one and had two dimensions."""
    base = pico(shapes=shapes)
    variant = perturbed(base)
    variant["table"][2, 3] = bad
    units, back = round_trip(tmp_path, base, variant, 20_000)
    assert [unit["codec"] for unit in units] == ["fold", "exact"]
    for name in units[1]["pieces"]:
        assert raw(back)[name["name"]] == raw(tmp_path / "variant")[name["name"]]


def test_new_tensors_give_way_as_the_budget_falls(tmp_path: Path) -> None:
    """A head of 2,400 floats: 9 kB exact, 2.5 kB at 8 bits, 1.3 kB at 4, 0.7 kB at 2; a twentieth of the file each."""
    base = pico(shapes={"layer.weight": (768, 512)})
    variant = perturbed(base) | {"head": torch.randn(40, 60, generator=torch.Generator().manual_seed(0))}
    seen, sizes = [], []
    for budget in (250_000, 60_000, 30_000, 4_000):
        units, back = round_trip(tmp_path / str(budget), base, variant, budget)
        head = next(unit for unit in units if names(unit) == {"head"})
        seen.append((head["codec"], head.get("params", {}).get("w")))
        sizes.append(head["bytes"])
        error = float((values(back, "head") - variant["head"]).norm() / variant["head"].norm())
        assert error < {"exact": 1e-9, "rtn": 0.2, "fold": 1.0}[head["codec"]]
    assert seen == [("exact", None), ("rtn", 8), ("rtn", 4), ("fold", None)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 2400 * 2 / 8 + 128


def test_nothing_differs(tmp_path: Path) -> None:
    base = pico(shapes=SHAPES)
    units, back = round_trip(tmp_path, base, base, 4_000)
    assert units == []
    assert raw(back) == raw(tmp_path / "base")


@pytest.mark.parametrize("name", ["layer.weight", "norm.weight", "scale"])
def test_one_tensor_differs(tmp_path: Path, name: str) -> None:
    base = pico(shapes=SHAPES)
    variant = base | {name: base[name] + 0.01}
    units, back = round_trip(tmp_path, base, variant, 3_000)
    assert [names(unit) for unit in units] == [{name}]
    assert {n for n in SHAPES if raw(back)[n] != raw(tmp_path / "base")[n]} == {name}


def test_a_budget_that_holds_the_model_keeps_every_bit(tmp_path: Path) -> None:
    base = pico(shapes=SHAPES)
    variant = perturbed(base)
    units, back = round_trip(tmp_path, base, variant, 10 * 4 * 70_000)
    assert {unit["codec"] for unit in units} == {"exact"}
    assert raw(back) == raw(tmp_path / "variant")
    assert (tmp_path / "v.kin.safetensors").stat().st_size < 4 * 70_000
