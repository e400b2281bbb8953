"""`unfold` to a model or a pack, reading no more than it needs; members put in and taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import METHODS, Family

import kinfold
from forge import take_apart
from kinfold.checkpoint.header import TensorInfo
from kinfold.family import file as family_file
from kinfold.family.file import FamilyFile
from kinfold.family.fold import fold
from kinfold.family.unfold import add_member, remove_member, unfold
from kinfold.pack import format as pack_format
from models import perturbed, pico, raw, save


@pytest.mark.parametrize("key", METHODS)
def test_a_pack_of_a_member_restores_to_what_unfolding_gives(trees: Family, tmp_path: Path, key: str) -> None:
    file = trees.files[key]
    model = unfold(file, "birch", tmp_path / "model", base=trees.base)
    packed = unfold(file, "birch", tmp_path / "pack", base=trees.base, to="pack")
    assert kinfold.verify(tmp_path / "pack", trees.base).sound
    kinfold.restore(tmp_path / "pack", trees.base, tmp_path / "restored")
    assert raw(tmp_path / "restored") == raw(tmp_path / "model")
    assert (tmp_path / "restored" / "config.json").read_bytes() == (tmp_path / "model" / "config.json").read_bytes()
    assert packed.bytes == (tmp_path / "pack").stat().st_size
    assert packed.tensors == model.tensors == len(raw(tmp_path / "model"))


def test_odd_members_survive_the_way_through_a_pack(odd: Family, tmp_path: Path) -> None:
    for name in odd.members:
        unfold(odd.files["mixed"], name, tmp_path / name, base=odd.base)
        unfold(odd.files["mixed"], name, tmp_path / f"{name}.pack", base=odd.base, to="pack")
        kinfold.restore(tmp_path / f"{name}.pack", odd.base, tmp_path / f"{name}-restored")
        assert raw(tmp_path / f"{name}-restored") == raw(tmp_path / name)


def test_unfolding_twice_gives_the_same_bytes_and_a_card(trees: Family, tmp_path: Path) -> None:
    for out in ("one", "two"):
        unfold(trees.files["mixed"], "ash", tmp_path / out, base=trees.base)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert "mixed.kin.safetensors" in (tmp_path / "one" / "KINFOLD.md").read_text()


@pytest.mark.parametrize(("key", "to"), [("directions", "model"), ("directions", "pack"), ("packs", "model")])
def test_only_its_own_share_is_read(
    trees: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, to: Any
) -> None:
    """Of twelve members' entries, a member's own two and the sections that all share."""
    many = {f"m{seed:02}": save(tmp_path / f"m{seed:02}", perturbed(pico(), seed)) for seed in range(10, 22)}
    fold(many, tmp_path / "family", base=trees.base, **METHODS[key])
    seen: list[TensorInfo] = []
    there = pack_format.read_entry

    def counted(info: TensorInfo) -> bytes:
        seen.append(info)
        return there(info)

    for module in (pack_format, family_file):
        monkeypatch.setattr(module, "read_entry", counted)
    unfold(tmp_path / "family", "m15", tmp_path / "out", base=trees.base, to=to)
    _, manifest, entries = take_apart(tmp_path / "family")
    shared = [f"{layer['tensor']}#rmm" for layer in manifest.get("shared", [])]
    assert sorted(info.name for info in seen) == sorted(["#manifest", "m15#manifest", "m15#payloads", *shared])
    assert bool(shared) == (key == "directions")
    others = sum(len(data) for name, data in entries.items() if name not in shared and not name.startswith("m15"))
    file_bytes = (tmp_path / "family").stat().st_size
    assert sum(info.nbytes for info in seen) < file_bytes - others
    assert others > 0.4 * file_bytes


def test_a_member_put_in_comes_out_as_it_was(trees: Family, tmp_path: Path) -> None:
    variant = save(tmp_path / "oak", perturbed(pico(), 8))
    pack = tmp_path / "oak.kin.safetensors"
    kinfold.pack(trees.base, variant, pack, codec="osd", budget="1/4")
    for key, name in (("rmm", None), ("packs", "acorn")):
        report = add_member(trees.files[key], pack, tmp_path / key, name=name)
        called = name or "oak"
        assert FamilyFile.open(tmp_path / key).manifest.members == sorted([*trees.members, called])
        assert report.file_bytes == (tmp_path / key).stat().st_size
        assert {row.name for row in report.members} == {*trees.members, called}
        unfold(tmp_path / key, called, tmp_path / f"{key}.pack", base=trees.base, to="pack")
        assert (tmp_path / f"{key}.pack").read_bytes() == pack.read_bytes()
        for member in trees.members:
            unfold(trees.files[key], member, tmp_path / f"{key}-{member}-a", base=trees.base)
            unfold(tmp_path / key, member, tmp_path / f"{key}-{member}-b", base=trees.base)
            assert raw(tmp_path / f"{key}-{member}-a") == raw(tmp_path / f"{key}-{member}-b")


def test_putting_in_and_taking_out_leaves_the_same_file(trees: Family, tmp_path: Path) -> None:
    pack = tmp_path / "oak.kin.safetensors"
    kinfold.pack(trees.base, save(tmp_path / "oak", perturbed(pico(), 8)), pack, codec="exact")
    for key in ("jd", "packs"):
        add_member(trees.files[key], pack, tmp_path / f"{key}-more")
        remove_member(tmp_path / f"{key}-more", "oak", tmp_path / f"{key}-again")
        assert (tmp_path / f"{key}-again").read_bytes() == trees.files[key].read_bytes()


def test_a_member_taken_out_is_gone_and_the_others_stay(trees: Family, tmp_path: Path) -> None:
    report = remove_member(trees.files["rmm"], "birch", tmp_path / "f")
    assert sorted(row.name for row in report.members) == ["ash", "cedar"]
    _, manifest, entries = take_apart(tmp_path / "f")
    _, before, there = take_apart(trees.files["rmm"])
    assert not any("birch" in name for name in entries)
    assert b"birch" not in (tmp_path / "f").read_bytes()
    assert manifest["shared"] == before["shared"]  # the mean and the directions still know of it
    assert all(entries[name] == there[name] for name in entries)
    for member in ("ash", "cedar"):
        unfold(trees.files["rmm"], member, tmp_path / f"{member}-a", base=trees.base)
        unfold(tmp_path / "f", member, tmp_path / f"{member}-b", base=trees.base)
        assert raw(tmp_path / f"{member}-a") == raw(tmp_path / f"{member}-b")
