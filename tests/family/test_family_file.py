"""Damaged and hostile families: a PackError, never a crash, or an allocation that the file does not justify."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from families import Family

from forge import forge, put_together, take_apart
from kinfold.errors import FamilyError, PackError
from kinfold.family.file import FamilyFile, FamilyMember, family_bytes, is_family
from kinfold.family.fold import fold
from kinfold.family.unfold import unfold
from models import pico, raw, save

Edit = Callable[[dict[str, Any]], object]


def opened(file: Path, name: str, base: Path, out: Path) -> dict[str, Any] | None:
    """What a member unfolds to, or None where it was refused with nothing left behind."""
    try:
        unfold(file, name, out, base=base)
    except PackError:
        assert not out.exists()
        return None
    return raw(out)


def forged(family: Path, out: Path, name: str, edit: Edit) -> Path:
    """A copy whose member `name` has a manifest that went through `edit`."""
    _, _, entries = take_apart(family)
    entry = f"{name}#manifest"
    manifest = json.loads(zstandard.ZstdDecompressor().decompress(entries[entry]))
    edit(manifest)
    packed = zstandard.ZstdCompressor().compress(json.dumps(manifest).encode())
    return _replaced(family, out, entry, packed)


def _replaced(family: Path, out: Path, entry: str, data: bytes) -> Path:
    metadata, manifest, entries = take_apart(family)
    assert entry in entries
    entries[entry] = data
    manifest["entries"] = {key: blake3(value).hexdigest()[:32] for key, value in entries.items()}
    return put_together(out, metadata, zstandard.ZstdCompressor().compress(json.dumps(manifest).encode()), entries)


def test_the_forger_makes_sound_families(trees: Family, tmp_path: Path) -> None:
    for key in ("directions", "jd", "packs"):
        copy = forged(trees.files[key], tmp_path / key, "ash", lambda manifest: None)
        found = opened(copy, "ash", trees.base, tmp_path / f"{key}1")
        assert found == opened(trees.files[key], "ash", trees.base, tmp_path / f"{key}2") is not None


def test_what_a_family_is(trees: Family, tmp_path: Path) -> None:
    assert is_family(trees.files["rmm"])
    assert not is_family(trees.members["ash"] / "model.safetensors")
    assert not is_family(tmp_path / "nothing")
    with pytest.raises(PackError, match="there is no family") as caught:
        FamilyFile.open(tmp_path / "nothing")
    assert caught.value.hint == f"ls {tmp_path}"
    with pytest.raises(PackError, match="no family") as caught:
        FamilyFile.open(trees.members["ash"] / "model.safetensors")
    assert caught.value.hint.startswith("kinfold fold")
    file = FamilyFile.open(trees.files["rmm"])
    shared = {layer.tensor: file.shared(layer) for layer in file.manifest.shared}
    parts = [file.part(name) for name in file.manifest.members]
    assert family_bytes(file.manifest, shared, parts) == file.file_bytes == trees.files["rmm"].stat().st_size


def test_a_member_reads_like_a_pack(trees: Family) -> None:
    member = FamilyFile.open(trees.files["jd"]).member("ash")
    assert isinstance(member, FamilyMember)
    member.verify()
    assert [data for _, data in member.payloads()] == [member.payload(n) for n in range(len(member.manifest.units))]
    assert all(unit.bytes == len(data) for unit, data in member.payloads())
    assert len(member.digest) == 64
    assert member.digest != FamilyFile.open(trees.files["rmm"]).member("ash").digest


def test_every_flipped_bit_of_header_and_manifest_is_noticed(tmp_path: Path) -> None:
    base = save(tmp_path / "base", pico(shapes={"w": (8, 4)}))
    family = tmp_path / "f"
    fold({"a": save(tmp_path / "a", pico(2, shapes={"w": (8, 4)})), "b": base}, family, base=base, budget=9000)
    data = family.read_bytes()
    length = int.from_bytes(data[:8], "little")
    end = 8 + length + json.loads(data[8 : 8 + length])["#manifest"]["data_offsets"][1]
    passed = []
    handle = os.open(family, os.O_WRONLY)
    for position in range(end):
        for bit in range(8):
            os.pwrite(handle, bytes([data[position] ^ 1 << bit]), position)
            try:
                FamilyFile.open(family)
                passed.append((position, bit))
            except PackError:
                pass
        os.pwrite(handle, data[position : position + 1], position)
    os.close(handle)
    assert FamilyFile.open(family).manifest.members == ["a", "b"]  # all is as it was
    assert end > 500
    assert passed == []


def test_a_flipped_bit_of_a_section_or_a_payload_is_noticed_by_who_reads_it(trees: Family, tmp_path: Path) -> None:
    for key in ("rmm", "packs"):
        data = bytearray(trees.files[key].read_bytes())
        _, _, entries = take_apart(trees.files[key])
        position = len(data) - sum(map(len, entries.values()))
        for name, content in entries.items():
            place = position + len(content) // 2
            data[place] ^= 4
            (tmp_path / "damaged").write_bytes(data)
            for member in trees.members:
                file = FamilyFile.open(tmp_path / "damaged")
                if name.split("#")[0] in trees.members and not name.startswith(f"{member}#"):
                    file.member(member).verify()  # another's: not read
                    continue
                with pytest.raises(PackError, match=f"`{name}` of .* is damaged: its hash differs") as caught:
                    file.member(member).verify()
                assert caught.value.hint == "fetch the family again"
            data[place] ^= 4
            position += len(content)
        assert position == len(data)


def test_every_truncation_is_noticed(trees: Family, tmp_path: Path) -> None:
    data = trees.files["rmm"].read_bytes()
    for size in [*range(0, len(data), 997), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(PackError, match="no valid safetensors file"):
            unfold(tmp_path / "cut", "ash", tmp_path / "out", base=trees.base)
    (tmp_path / "cut").write_bytes(data + b"\0")
    with pytest.raises(PackError, match="its tensors end at"):
        FamilyFile.open(tmp_path / "cut")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_a_newer_format_says_how_to_read_it(trees: Family, tmp_path: Path) -> None:
    metadata, manifest, entries = take_apart(trees.files["rmm"])
    packed = zstandard.compress(json.dumps(manifest).encode())
    newer = put_together(tmp_path / "newer", metadata | {"kinfold.format": "2"}, packed, entries)
    with pytest.raises(PackError, match="has format '2', this version reads 1") as caught:
        FamilyFile.open(newer)
    assert caught.value.hint == "pip install -U kinfold"


@pytest.mark.parametrize("what", ["missing", "more", "renamed", "order", "longer", "base", "family"])
def test_entries_are_exactly_those_of_the_manifest(trees: Family, tmp_path: Path, what: str) -> None:
    metadata, manifest, entries = take_apart(trees.files["rmm"])
    if what == "missing":
        entries.pop("cedar#payloads")
    elif what == "more":
        entries["hidden"] = b"1234"
    elif what == "renamed":
        entries = {name.replace("cedar#", "maple#"): data for name, data in entries.items()}
    elif what == "order":
        entries = dict(reversed(entries.items()))
    elif what == "longer":
        entries["layer.0.weight#rmm"] += b"\0"
    elif what == "base":
        metadata["kinfold.base"] = "0" * 64
    else:
        metadata["kinfold.family"] = '["ash"]'
    packed = zstandard.compress(json.dumps(manifest).encode())
    with pytest.raises(PackError, match="are not those its manifest lists"):
        FamilyFile.open(put_together(tmp_path / "bad", metadata, packed, entries))


MANIFESTS: dict[str, tuple[Edit, str]] = {
    "hash": (lambda m: m["members"].append("#"), "damaged"),
    "slash": (lambda m: m["members"].append("../x"), "damaged"),
    "empty": (lambda m: m["members"].append(""), "damaged"),
    "twice": (lambda m: m["members"].append("ash"), "listed twice|damaged"),
    "layer": (lambda m: m["shared"].append(m["shared"][0]), "a layer is listed twice"),
    "key": (lambda m: m.update(more=1), "damaged"),
    "negative": (lambda m: m["shared"][0].update(bytes=-1), "damaged"),
    "huge": (lambda m: m["shared"][0].update(bytes=1 << 62), "damaged"),
    "shape": (lambda m: m["shared"][0].update(shape=[]), "damaged"),
    "size": (lambda m: m["shared"][0].update(bytes=1 << 40), "entries"),
    "none": (lambda m: m.update(members=[]), "manifest is damaged"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_manifests_that_contradict_themselves(trees: Family, tmp_path: Path, what: str) -> None:
    edit, match = MANIFESTS[what]
    with pytest.raises(PackError, match=match):
        FamilyFile.open(forge(trees.files["rmm"], tmp_path / "bad", edit))


@pytest.mark.parametrize("packed", [b"", b"no zstd", zstandard.compress(b"{"), zstandard.compress(b"\0" * (64 << 20))])
def test_manifests_that_are_none(trees: Family, tmp_path: Path, packed: bytes) -> None:
    metadata, _, entries = take_apart(trees.files["rmm"])
    with pytest.raises(PackError, match="the manifest is damaged"):
        FamilyFile.open(put_together(tmp_path / "bad", metadata, packed, entries))


def shared(**changes: Any) -> Edit:
    return lambda manifest: manifest["shared"][0].update(changes)


def params(**changes: Any) -> Edit:
    return lambda manifest: manifest["shared"][0]["params"].update(changes)


SHARED: dict[str, Edit] = {
    **{f"r {value}": params(r=value) for value in (-1, 65, 1 << 40, 2.5, "16", None, True)},
    **{f"p {value}": params(p=value) for value in (-1, 0, 17, 1 << 40)},
    **{f"w {value}": params(w=value) for value in (0, 2, 16, 64)},
    "c 0": params(c=0),
    "more": params(more=1),
    "k": lambda m: m["shared"][0].update(params={"k": 16, "w": 8}),
    "codec": shared(codec="jd"),
    "other codec": shared(codec="truncsvd"),
    "flat": shared(shape=[96 * 64]),
    "turned": shared(shape=[64, 96]),
    "large": shared(shape=[1 << 40, 1 << 40]),
    "tensor": shared(tensor="layer.9.weight"),
}


@pytest.mark.parametrize("what", SHARED)
def test_shared_layers_that_lie(trees: Family, tmp_path: Path, what: str) -> None:
    """Whatever the manifest says of a layer, nothing is unfolded from it."""
    metadata, manifest, entries = take_apart(trees.files["directions"])
    SHARED[what](manifest)
    old = next(name for name in entries if name.endswith("#rmm"))
    new = f"{manifest['shared'][0]['tensor']}#{manifest['shared'][0]['codec']}"
    entries = {new if name == old else name: data for name, data in entries.items()}
    manifest["entries"] = {name: blake3(data).hexdigest()[:32] for name, data in entries.items()}
    bad = put_together(tmp_path / "bad", metadata, zstandard.compress(json.dumps(manifest).encode()), entries)
    tracemalloc.start()
    assert opened(bad, "ash", trees.base, tmp_path / "out") is None
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def unit(**changes: Any) -> Edit:
    return lambda manifest: next(u for u in manifest["units"] if u["codec"] == "rmm").update(changes)


UNITS: dict[str, Edit] = {
    **{f"s {value}": unit(params={"s": value}) for value in (0.0, -1.0, 1e300, "1", 2, None)},
    "more": unit(params={"t": 1.0}),
    "codec": unit(codec="jd"),
    "unknown codec": unit(codec="mystery"),
    "bytes": unit(bytes=3),
    "too many bytes": unit(bytes=1 << 40),
    "no base": lambda m: next(u for u in m["units"] if u["codec"] == "rmm")["pieces"][0].pop("base"),
    "other base": lambda m: next(u for u in m["units"] if u["codec"] == "rmm")["pieces"][0].update(base="norm.weight"),
    "shape": lambda m: next(u for u in m["units"] if u["codec"] == "rmm")["pieces"][0].update(shape=[1 << 30, 64]),
    "rows": lambda m: next(u for u in m["units"] if u["codec"] == "rmm")["pieces"][0].update(rows=[0, 96]),
    "fingerprint": lambda m: m["base"].update(fingerprint="0" * 64),
    "file": lambda m: m["files"][0].update(path="../config.json"),
}


@pytest.mark.parametrize("what", UNITS)
def test_members_that_lie(trees: Family, tmp_path: Path, what: str) -> None:
    bad = forged(trees.files["directions"], tmp_path / "bad", "ash", UNITS[what])
    assert opened(bad, "ash", trees.base, tmp_path / "out") is None
    assert opened(bad, "birch", trees.base, tmp_path / "other") is not None  # another member is as sound as it was


def test_zeros_that_no_byte_vouches_for_are_not_made(trees: Family, tmp_path: Path) -> None:
    """A layer of 2^40 rows without mean and directions: factors of zeros would be 256 TiB."""
    family = trees.files["directions"]
    metadata, manifest, entries = take_apart(family)
    layer = manifest["shared"][0]
    layer.update(shape=[1 << 40, 64], bytes=0, params={"r": 64, "p": 0, "w": 4, "c": 0})
    entries[f"{layer['tensor']}#rmm"] = b""
    own = json.loads(zstandard.ZstdDecompressor().decompress(entries["ash#manifest"]))
    stored = next(u for u in own["units"] if u["pieces"][0].get("base") == layer["tensor"])
    cut = stored["bytes"]
    assert own["units"][0] is stored
    stored.update(bytes=0)
    stored["pieces"][0].update(shape=[1 << 40, 64])
    entries["ash#manifest"] = zstandard.compress(json.dumps(own).encode())
    entries["ash#payloads"] = entries["ash#payloads"][cut:]
    manifest["entries"] = {name: blake3(data).hexdigest()[:32] for name, data in entries.items()}
    bad = put_together(tmp_path / "bad", metadata, zstandard.compress(json.dumps(manifest).encode()), entries)
    with pytest.raises(PackError, match="impossible"):
        FamilyFile.open(bad).member("ash").verify()


@pytest.mark.parametrize("key", ["directions", "jd", "packs"])
def test_contents_changed_together_with_their_hashes_never_crash(trees: Family, tmp_path: Path, key: str) -> None:
    """Hashes do not stop a forger: whatever the bytes, tensors of the right shapes come out, or nothing."""
    family = trees.files[key]
    _, _, entries = take_apart(family)
    wanted = {n: t[:2] for n, t in raw(trees.members["ash"]).items()}
    for name in [name for name in entries if "#rmm" in name or "#jd" in name or name == "ash#payloads"]:
        for position in range(0, len(entries[name]), max(len(entries[name]) // 8, 1)):
            data = bytearray(entries[name])
            data[position : position + 4] = b"\xff\xff\x7f\x7f" if position % 2 else b"\x00\x00\xc0\x7f"
            bad = _replaced(family, tmp_path / "bad", name, bytes(data[: len(entries[name])]))
            found = opened(bad, "ash", trees.base, tmp_path / "out")
            assert found is None or {n: t[:2] for n, t in found.items()} == wanted
            shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_wrong_lengths_with_right_hashes(trees: Family, tmp_path: Path) -> None:
    _, _, entries = take_apart(trees.files["directions"])
    payloads = entries["ash#payloads"]
    for data in (payloads[:-1], payloads + b"\0", b""):
        bad = _replaced(trees.files["directions"], tmp_path / "bad", "ash#payloads", data)
        with pytest.raises(PackError, match=r"member `ash` of .* contradicts its manifest"):
            FamilyFile.open(bad).part("ash")


def test_unknown_members_are_a_users_mistake(trees: Family) -> None:
    with pytest.raises(FamilyError, match="has no member `ask`; it has ash, "):
        FamilyFile.open(trees.files["rmm"]).member("ask")
