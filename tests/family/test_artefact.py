"""Packs and families by the same verbs."""

from __future__ import annotations

from pathlib import Path

import pytest

import kinfold
from kinfold.errors import FamilyError, PackError, WrongBaseError
from models import MIDDLING, Pair, perturbed, pico, raw, save


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, one, two, family.kin.safetensors of both, one.kin.safetensors."""
    folder = tmp_path_factory.mktemp("artefacts")
    tensors = pico(shapes=MIDDLING)
    save(folder / "base", tensors)
    paths = [save(folder / name, perturbed(tensors, seed)) for seed, name in enumerate(("one", "two"), 1)]
    kinfold.fold(paths, folder / "family.kin.safetensors", base=folder / "base", budget="1/10", method="jd")
    kinfold.pack(folder / "base", folder / "one", folder / "one.kin.safetensors", budget="1/10")
    return folder


def test_verify_reads_every_member(made: Path, tmp_path: Path) -> None:
    family = made / "family.kin.safetensors"
    assert kinfold.verify(family).checked[-1] == "hashes of 2 members"
    assert kinfold.verify(family, made / "base").checked[-1] == "hashes and decoding of 2 members"
    data = bytearray(family.read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    found = kinfold.verify(tmp_path / "damaged")
    assert not found.sound
    assert "`two#payloads`" in found.problem
    assert not kinfold.verify(tmp_path / "nowhere").sound
    with pytest.raises(WrongBaseError):
        kinfold.verify(family, made / "one")


def test_inspect_tells_of_either(made: Path) -> None:
    assert kinfold.inspect(made / "one.kin.safetensors").codec == "fold"
    assert {row.name for row in kinfold.inspect(made / "family.kin.safetensors").members} == {"one", "two"}
    with pytest.raises(PackError):
        kinfold.inspect(made / "base" / "model.safetensors")


def test_a_member_must_be_named_and_only_of_a_family(made: Path) -> None:
    with pytest.raises(FamilyError, match="a family of one, two"):
        kinfold.load(made / "family.kin.safetensors", made / "base")
    with pytest.raises(FamilyError, match="is a pack, it has no member `one`"):
        kinfold.load(made / "one.kin.safetensors", made / "base", member="one")


def test_load_gives_the_member_that_unfold_writes(tmp_path: Path, bert_pair: Pair) -> None:
    family = tmp_path / "f.kin.safetensors"
    kinfold.fold({"m": bert_pair.variant}, family, base=bert_pair.base, budget="1/1")
    kinfold.unfold(family, "m", tmp_path / "m", base=bert_pair.base)
    loaded = kinfold.load(family, bert_pair.base, member="m").state_dict()
    for name, (_, _, data) in raw(tmp_path / "m").items():
        assert loaded[name].numpy().tobytes() == data


def test_a_section_that_only_a_removed_member_had_goes_with_it(tmp_path: Path) -> None:
    base = pico(shapes=MIDDLING)
    there, moved = save(tmp_path / "base", base), perturbed(base, 1)
    first, second = "layer.0.up.weight", "layer.1.up.weight"
    save(tmp_path / "one", base | {first: moved[first]})
    save(tmp_path / "two", base | {second: moved[second]})
    family, left = tmp_path / "f.kin.safetensors", tmp_path / "left.kin.safetensors"
    kinfold.fold([tmp_path / "one", tmp_path / "two"], family, base=there, method="rmm", budget="1/10")
    report = kinfold.remove_member(family, "two", left)
    assert {layer.tensor for layer in report.layers} == {first}
    kinfold.unfold(left, "one", tmp_path / "back", base=there)
    assert second not in str(raw(left).keys())


def test_a_recoded_pack_keeps_its_name(tmp_path: Path, bert_pair: Pair) -> None:
    pack = tmp_path / "film.kin.safetensors"
    kinfold.pack(*bert_pair, pack, codec="exact")
    kinfold.fold([pack], tmp_path / "f.kin.safetensors", base=bert_pair.base, budget="30kB")
    kinfold.unfold(tmp_path / "f.kin.safetensors", "film", tmp_path / "back", base=bert_pair.base)
    assert (tmp_path / "back" / "KINFOLD.md").read_text("utf-8").startswith("# film")


def test_layers_without_components_fold_too(tmp_path: Path) -> None:
    base = pico(shapes=MIDDLING)
    there = save(tmp_path / "base", base)
    variant = save(tmp_path / "v", perturbed(base, 1))
    for name in ("a", "b"):  # so small that most layers get rank 0
        kinfold.pack(there, variant, tmp_path / f"{name}.kin.safetensors", codec="truncsvd", budget="16kB")
    packs = [tmp_path / f"{name}.kin.safetensors" for name in ("a", "b")]
    kinfold.fold(packs, tmp_path / "f", base=there, method="jd", budget="80kB", dominance="off")
    assert kinfold.verify(tmp_path / "f", there).sound
