"""`exact`: a restored directory holds the variant's bits, whatever the two checkpoints look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

import kinfold
from kinfold.errors import OutputError
from models import Tensors, beside, perturbed, pico, raw, save


def there_and_back(folder: Path, base: Path, variant: Path, **options: Any) -> Path:
    """Pack with `exact`, restore, and hold every tensor against the variant's bytes."""
    out = folder / "v.kin.safetensors"
    kinfold.pack(base, variant, out, codec="exact")
    report = kinfold.restore(out, base, folder / "restored", **options)
    found, wanted = raw(folder / "restored"), raw(variant)
    assert found == wanted
    assert report.lossless
    assert not report.forced
    assert report.tensors == len(wanted)
    assert report.bytes == sum(len(data) for _, _, data in wanted.values())
    return out


def _tied(base: Tensors, variant: Tensors) -> None:
    base["lm_head.weight"] = base["embed.weight"].clone()
    variant["lm_head.weight"] = variant["embed.weight"].clone()


def _untied(base: Tensors, variant: Tensors) -> None:
    base["lm_head.weight"] = base["embed.weight"].clone()
    variant["lm_head.weight"] = torch.randn(64, 48)


def _grown(base: Tensors, variant: Tensors) -> None:
    variant["embed.weight"] = torch.cat([variant["embed.weight"], torch.randn(7, 48)])


def _grown_much(base: Tensors, variant: Tensors) -> None:
    base["embed.weight"] = base["embed.weight"].repeat(30, 1)
    variant["embed.weight"] = torch.cat([base["embed.weight"] + 1e-3, torch.randn(1500, 48)])


def _shrunk(base: Tensors, variant: Tensors) -> None:
    variant["embed.weight"] = variant["embed.weight"][:50]


def _emptied(base: Tensors, variant: Tensors) -> None:
    variant["embed.weight"] = variant["embed.weight"][:0]


def _head(base: Tensors, variant: Tensors) -> None:
    variant |= {"classifier.weight": torch.randn(3, 64), "classifier.bias": torch.zeros(3)}


def _removed(base: Tensors, variant: Tensors) -> None:
    del variant["layer.1.bias"]


def _another_shape(base: Tensors, variant: Tensors) -> None:
    variant["layer.1.bias"] = torch.randn(65)


def _buffers(base: Tensors, variant: Tensors) -> None:
    for number, tensors in enumerate((base, variant)):
        generator = torch.Generator().manual_seed(number)
        values = torch.randn(2100, generator=generator)
        tensors |= {
            "i64": torch.arange(2100) * (number + 1),
            "i8": (values * 9).to(torch.int8),
            "u32": torch.arange(2100).to(torch.uint32),
            "bool": values > number / 2,
            "f64": values.double() / 3,
            "f64.matrix": values.reshape(70, 30).double() / 7,
            "f8": values.to(torch.float8_e4m3fn),
            "f8x": values.to(torch.float8_e5m2),
            "complex": torch.complex(values, values.flip(0)),
        }


def _scalars(base: Tensors, variant: Tensors) -> None:
    for number, tensors in enumerate((base, variant)):
        tensors |= {
            "scale": torch.tensor(1.5 + number),
            "steps": torch.tensor(10 * number),
            "flag": torch.tensor(bool(number)),
            "empty": torch.zeros(0, 4),
            "empty.int": torch.zeros(3, 0, dtype=torch.int64),
        }
    variant |= {"new.scalar": torch.tensor(0.25, dtype=torch.float64), "new.empty": torch.zeros(0, dtype=torch.bool)}


def _not_finite(base: Tensors, variant: Tensors) -> None:
    x = variant["layer.0.weight"] = variant["layer.0.weight"].clone()
    x[0, :4] = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0])
    x.view(torch.int32)[1, 0] = 0x7FC12345  # a NaN with a payload
    x.view(torch.int32)[1, 1] = -0x00400001  # and a negative one
    variant["norm.weight"] = variant["norm.weight"] * float("inf")


CASES: dict[str, Callable[[Tensors, Tensors], None]] = {
    "plain": lambda base, variant: None,
    "tied": _tied,
    "untied": _untied,
    "grown": _grown,
    "grown by payloads of their own": _grown_much,
    "shrunk": _shrunk,
    "emptied": _emptied,
    "added head": _head,
    "removed tensor": _removed,
    "another shape": _another_shape,
    "buffers": _buffers,
    "scalars and empty tensors": _scalars,
    "NaN and infinity": _not_finite,
}


@pytest.mark.parametrize("case", CASES)
def test_every_bit_comes_back(tmp_path: Path, case: str) -> None:
    base = pico()
    variant = perturbed(base)
    CASES[case](base, variant)
    there_and_back(tmp_path, save(tmp_path / "base", base), save(tmp_path / "variant", variant))


@pytest.mark.parametrize("shards", [(3, 1), (1, 3), (2, 3)])
def test_shards_on_either_side(tmp_path: Path, shards: tuple[int, int]) -> None:
    base = pico(dtype=torch.bfloat16)
    there = save(tmp_path / "base", base, shards=shards[0])
    there_and_back(tmp_path, there, save(tmp_path / "variant", perturbed(base), shards=shards[1]))
    assert (tmp_path / "restored" / "model.safetensors").exists()


def test_restored_into_shards(tmp_path: Path) -> None:
    base = pico()
    variant = save(tmp_path / "variant", perturbed(base))
    there_and_back(tmp_path, save(tmp_path / "base", base), variant, shard_bytes=25_000)
    index = json.loads((tmp_path / "restored" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == base.keys()
    assert len(set(index["weight_map"].values())) == 3  # 24.6 kB is the largest matrix; the rest goes around two


@pytest.mark.parametrize(("own", "other"), [("bert.", ""), ("", "bert.")])
def test_a_renamed_prefix(tmp_path: Path, own: str, other: str) -> None:
    tensors = pico()
    variant = {own + name: tensor for name, tensor in perturbed(tensors).items()}
    variant[own + "norm.weight"] = tensors["norm.weight"]  # equal to the base under another name
    variant["classifier.weight"] = torch.randn(3, 64)
    base = {other + name: tensor for name, tensor in tensors.items()} | {other + "pooler": torch.ones(3)}
    out = there_and_back(tmp_path, save(tmp_path / "base", base), save(tmp_path / "variant", variant))
    info = kinfold.inspect(out)
    assert info.equal == 1
    assert info.absent == [other + "pooler"]


def test_an_untouched_tensor_costs_less_than_100_bytes(tmp_path: Path) -> None:
    base = pico() | {"large": torch.randn(300, 300)}
    sizes = []
    for name, more in (("with", {}), ("without", {"large": None})):
        there = {n: t for n, t in base.items() if n not in more}
        variant = perturbed(pico()) | {n: t for n, t in there.items() if n == "large"}
        folder = tmp_path / name
        out = there_and_back(folder, save(folder / "base", there), save(folder / "variant", variant))
        sizes.append(out.stat().st_size)
    assert sizes[0] - sizes[1] < 100


def test_a_tied_copy_costs_less_than_100_bytes(tmp_path: Path) -> None:
    sizes = []
    for name in ("with", "without"):
        base = pico()
        variant = perturbed(base)
        if name == "with":
            _tied(base, variant)
        folder = tmp_path / name
        out = there_and_back(folder, save(folder / "base", base), save(folder / "variant", variant))
        sizes.append(out.stat().st_size)
    assert sizes[0] - sizes[1] < 100


def test_nothing_differs(tmp_path: Path) -> None:
    base = save(tmp_path / "base", pico())
    out = there_and_back(tmp_path, base, save(tmp_path / "variant", pico(), shards=2))
    assert out.stat().st_size < 1500
    assert kinfold.inspect(out).tensors == []


def test_metadata_of_the_weight_file_comes_back(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    base, variant = save(tmp_path / "base", pico()), save(tmp_path / "variant", perturbed(pico()))
    save_file(perturbed(pico()), variant / "model.safetensors", {"format": "pt", "trained": "today"})
    there_and_back(tmp_path, base, variant)
    with safe_open(tmp_path / "restored" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "trained": "today"}


def test_the_card_tells_where_it_came_from(tmp_path: Path, pair: Any) -> None:
    out = there_and_back(tmp_path, *pair)
    card = (tmp_path / "restored" / "KINFOLD.md").read_text()
    assert blake3(out.read_bytes()).hexdigest() in card
    assert kinfold.inspect(out).base_fingerprint in card
    assert "exact (bit-exact)" in card
    assert "Warning" not in card


def test_an_existing_output_is_kept_unless_told(tmp_path: Path, pair: Any) -> None:
    out = there_and_back(tmp_path, *pair)
    restored = tmp_path / "restored"
    (restored / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="exists") as caught:
        kinfold.restore(out, pair.base, restored)
    assert "--overwrite" in caught.value.hint
    assert (restored / "mine.txt").exists()
    kinfold.restore(out, pair.base, restored, overwrite=True)
    assert not (restored / "mine.txt").exists()
    assert raw(restored) == raw(pair.variant)
    assert beside(restored) == ["restored", "v.kin.safetensors"]


def test_the_base_itself_is_no_output(tmp_path: Path) -> None:
    base = save(tmp_path / "base", pico())
    variant = save(tmp_path / "variant", perturbed(pico()))
    kinfold.pack(base, variant, tmp_path / "v", codec="exact")
    before = raw(base)
    with pytest.raises(OutputError, match="the base itself"):
        kinfold.restore(tmp_path / "v", base, tmp_path / "variant" / ".." / "base", overwrite=True)
    assert raw(base) == before
