"""Damaged and hostile packs: a PackError, never a crash, a hang, or an allocation the file does not justify."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from blake3 import blake3
from forge import forge, put_together, take_apart

import kinfold
from kinfold.errors import PackError
from kinfold.pack.format import PackFile
from models import beside, raw, save

SHAPES = {"a.weight": (70, 64), "a.bias": (9,), "n": (3,)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, variant, and a pack with a lossy unit, a group, an alias, an equal tensor and kept files."""
    folder = tmp_path_factory.mktemp("small")
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    variant = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    base |= {"same": torch.ones(40)}
    variant |= {"same": torch.ones(40), "new": torch.arange(30), "twin": torch.arange(30)}
    paths = save(folder / "base", base), save(folder / "variant", variant, {"changed": True})
    kinfold.pack(*paths, folder / "v.kin.safetensors", budget="1/3")
    return *paths, folder / "v.kin.safetensors"


def opened(pack: Path, base: Path, out: Path) -> dict[str, Any] | None:
    """What the pack restores to, or None where it was refused with nothing left behind."""
    try:
        kinfold.restore(pack, base, out)
    except PackError:
        assert not out.exists()
        return None
    return raw(out)


def test_the_forger_makes_sound_packs(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, pack = small
    copy = forge(pack, tmp_path / "copy", lambda manifest: None)
    assert kinfold.verify(copy, base).sound
    assert opened(copy, base, tmp_path / "one") == opened(pack, base, tmp_path / "two")


def test_every_flipped_bit_of_header_and_manifest_is_noticed(tmp_path: Path) -> None:
    tiny = save(tmp_path / "base", {"w": torch.ones(4)}), save(tmp_path / "variant", {"w": torch.zeros(4)})
    pack = tmp_path / "v"
    kinfold.pack(*tiny, pack, codec="exact")
    data = bytearray(pack.read_bytes())
    length = int.from_bytes(data[:8], "little")
    end = 8 + length + json.loads(data[8 : 8 + length])["#manifest"]["data_offsets"][1]
    passed = []
    handle = os.open(pack, os.O_WRONLY)
    for position in range(end):
        for bit in range(8):
            os.pwrite(handle, bytes([data[position] ^ 1 << bit]), position)
            try:
                PackFile.open(pack)
                passed.append((position, bit))
            except PackError:
                pass
        os.pwrite(handle, data[position : position + 1], position)
    os.close(handle)
    assert PackFile.open(pack).manifest.codec == "exact"  # all is as it was
    assert end > 500
    assert passed == []


def test_every_flipped_bit_of_the_payloads_is_noticed(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, pack = small
    data = bytearray(pack.read_bytes())
    _, _, entries = take_apart(pack)
    first = len(data) - sum(map(len, entries.values()))
    for position in range(first, len(data), 3):
        data[position] ^= 1 << position % 8
        (tmp_path / "damaged").write_bytes(data)
        found = kinfold.verify(tmp_path / "damaged")
        assert not found.sound
        assert "is damaged: its hash differs" in found.problem
        data[position] ^= 1 << position % 8
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    assert opened(tmp_path / "damaged", base, tmp_path / "out") is None


def test_every_truncation_is_noticed(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, pack = small
    data = pack.read_bytes()
    for size in [*range(0, len(data), 37), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(PackError, match="no valid safetensors file") as caught:
            kinfold.restore(tmp_path / "cut", base, tmp_path / "out")
        assert caught.value.hint
    (tmp_path / "cut").write_bytes(data + b"\0")
    with pytest.raises(PackError, match="its tensors end at"):
        kinfold.inspect(tmp_path / "cut")
    assert beside(tmp_path / "cut") == ["cut"]


def test_a_payload_changed_together_with_its_hash_never_crashes(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Hashes do not stop a forger: whatever the payload, it decodes to the right shapes or is refused."""
    base, variant, pack = small
    _, _, entries = take_apart(pack)
    refused = 0
    for position in range(0, len(entries["#small"]), 11):
        data = bytearray(entries["#small"])
        data[position] ^= (1 << position % 8) if position % 2 else 0xFF
        forged = forge(pack, tmp_path / "forged", lambda manifest: None, small=bytes(data))
        found = opened(forged, base, tmp_path / "out")
        if found is None:
            refused += 1
            continue
        assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in raw(variant).items()}
        shutil.rmtree(tmp_path / "out")
    assert refused > 0


def unit(manifest: dict[str, Any], codec: str) -> dict[str, Any]:
    return next(unit for unit in manifest["units"] if unit["codec"] == codec)


def fresh(codec: str, shape: list[int], **more: Any) -> Callable[[dict[str, Any]], object]:
    """Add a unit without bytes that claims a tensor of this shape."""
    piece = {"name": "x", "dtype": "F32", "shape": shape} | more.pop("piece", {})
    return lambda manifest: manifest["units"].append({"codec": codec, "bytes": 0, "pieces": [piece], **more})


def update(part: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest[part].update(changes)


def piece(codec: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: unit(manifest, codec)["pieces"][0].update(changes)


def params(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: unit(manifest, "osd")["params"].update(changes)


def file(path: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"][0].update(path=path)


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "parent folder": file("../evil.json"),
    "deep parent folder": file("a/../../evil.json"),
    "absolute path": file("/tmp/evil.json"),
    "drive": file("C:evil.json"),
    "backslash": file("..\\evil.json"),
    "empty part": file("a//b"),
    "NUL": file("a\0b"),
    "empty path": file(""),
    "weights among the files": file("model.safetensors"),
    "huge new tensor": fresh("exact", [1 << 40]),
    "huge product": fresh("exact", [1 << 61, 1 << 61]),
    "huge against the base": piece("osd", shape=[1 << 40, 64]),
    "huge with one bit a value": fresh("rtn", [1 << 50], params={"w": 4}),
    "empty but huge": fresh("exact", [0, 1 << 61, 1 << 61]),
    "huge lossy without base": fresh("osd", [1 << 40, 1 << 21], params={"k": 0, "w": 16}),
    "negative dimension": fresh("exact", [-1]),
    "65 dimensions": fresh("exact", [1] * 65),
    "rows of a scalar": fresh("exact", [], piece={"rows": [0, 1]}),
    "rows reversed": piece("osd", rows=[60, 5]),
    "rows with a gap": piece("osd", rows=[1, 70]),
    "rows beyond": piece("osd", rows=[0, 71]),
    "matrix codec on a scalar": fresh("osd", [], params={"k": 0, "w": 16}),
    "matrix codec on a vector of nothing": fresh("truncsvd", [0], params={"k": 1, "w": 16}),
    "unknown dtype": piece("osd", dtype="F9"),
    "unknown codec": lambda manifest: unit(manifest, "osd").update(codec="magic"),
    "codec with a path": lambda manifest: unit(manifest, "osd").update(codec="../../x"),
    "negative rank": params(k=-1),
    "huge rank": params(k=1 << 40),
    "rank of text": params(k="1"),
    "rank of a fraction": params(k=1.5),
    "width of a list": params(w=[16]),
    "width 5": params(w=5),
    "no parameters": lambda manifest: unit(manifest, "osd").update(params={}),
    "kept counts too many": params(f=0, s=[1 << 40, 1 << 40]),
    "kept counts negative": params(f=0, s=[-1, 3]),
    "payload one byte short": lambda manifest: unit(manifest, "osd").update(bytes=unit(manifest, "osd")["bytes"] - 1),
    "payload of 2^61 bytes": lambda manifest: unit(manifest, "osd").update(bytes=1 << 61),
    "negative bytes": lambda manifest: unit(manifest, "osd").update(bytes=-1),
    "a unit of no piece": lambda manifest: unit(manifest, "osd").update(pieces=[]),
    "a unit twice": lambda manifest: manifest["units"].append(manifest["units"][0]),
    "equal and coded": lambda manifest: manifest["equal"].append("a.weight"),
    "equal to nothing": lambda manifest: manifest["equal"].append("nowhere"),
    "alias of nothing": lambda manifest: manifest["alias"].update(x="nowhere"),
    "alias of itself": lambda manifest: manifest["alias"].update(x="x"),
    "alias of an alias": lambda manifest: manifest["alias"].update(x="twin"),
    "another base tensor": piece("osd", base="same"),
    "base tensor that is not there": piece("osd", base="nowhere"),
    "a file twice": lambda manifest: manifest["files"].append(manifest["files"][0]),
    "more bytes of files than there are": lambda manifest: manifest["files"][0].update(bytes=1 << 50),
    "another file": lambda manifest: manifest["files"][0].update(hash="0" * 32),
    "a hash that is none": lambda manifest: manifest["files"][0].update(hash="xyz"),
    "another fingerprint than the header": update("base", fingerprint="0" * 64),
    "another name than the header": update("variant", name="other"),
    "an unknown key": lambda manifest: manifest.update(more=1),
    "seed of text": lambda manifest: manifest.update(seed="1"),
    "prefix that fits nothing": lambda manifest: manifest.update(prefix=["zzz.", ""]),
    "units are no list": lambda manifest: manifest.update(units={}),
    "no base": lambda manifest: manifest.pop("base"),
    "name of 5000 letters": lambda manifest: manifest["equal"].append("x" * 5000),
}


@pytest.mark.parametrize("what", LIES)
def test_a_lying_manifest_is_refused(small: tuple[Path, Path, Path], tmp_path: Path, what: str) -> None:
    base, _, pack = small
    forged = forge(pack, tmp_path / "forged.kin.safetensors", LIES[what])
    with pytest.raises(PackError) as caught:
        kinfold.restore(forged, base, tmp_path / "out")
    assert str(caught.value)
    assert beside(forged) == ["forged.kin.safetensors"]
    assert not kinfold.verify(forged, base).sound
    with pytest.raises(PackError):
        kinfold.load(forged, base)


def manifest_bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(b" " * size)


def test_a_manifest_that_expands_without_end_is_refused(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    metadata, _, entries = take_apart(small[2])
    bomb = put_together(tmp_path / "bomb", metadata, manifest_bomb(200 << 20), entries)
    with pytest.raises(PackError, match="the manifest is damaged: it claims 209715200 bytes"):
        kinfold.inspect(bomb)


def test_a_manifest_without_a_stated_size_is_refused(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    metadata, _, entries = take_apart(small[2])
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")
    with pytest.raises(PackError, match="the manifest is damaged"):
        kinfold.inspect(put_together(tmp_path / "bomb", metadata, packed, entries))


@pytest.mark.parametrize("packed", [b"", b"no zstd", zstandard.compress(b"{"), zstandard.compress(b"[" * 100_000)])
def test_a_manifest_that_is_none_is_refused(small: tuple[Path, Path, Path], tmp_path: Path, packed: bytes) -> None:
    metadata, _, entries = take_apart(small[2])
    with pytest.raises(PackError, match="the manifest is damaged"):
        kinfold.inspect(put_together(tmp_path / "bad", metadata, packed, entries))


def test_a_newer_format_says_how_to_read_it(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    metadata, manifest, entries = take_apart(small[2])
    packed = zstandard.compress(json.dumps(manifest).encode())
    newer = put_together(tmp_path / "newer", metadata | {"kinfold.format": "2"}, packed, entries)
    with pytest.raises(PackError, match="has format '2', this version reads 1") as caught:
        kinfold.inspect(newer)
    assert caught.value.hint == "pip install -U kinfold"


@pytest.mark.parametrize("what", ["entry missing", "entry more", "entry renamed", "metadata more", "other order"])
def test_entries_are_exactly_those_of_the_manifest(small: tuple[Path, Path, Path], tmp_path: Path, what: str) -> None:
    metadata, manifest, entries = take_apart(small[2])
    packed = zstandard.compress(json.dumps(manifest).encode())
    if what == "entry missing":
        entries.pop("#files")
    elif what == "entry more":
        entries["hidden"] = b"1234"
    elif what == "entry renamed":
        entries = {name.replace("#small", "#smell"): data for name, data in entries.items()}
    elif what == "metadata more":
        metadata["note"] = "x"
    else:
        entries = dict(reversed(entries.items()))
    with pytest.raises(PackError, match="manifest"):
        kinfold.inspect(put_together(tmp_path / "bad", metadata, packed, entries))


def test_a_file_that_expands_without_end_is_refused(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, pack = small
    bomb = zstandard.ZstdCompressor(level=1).compress(b"\0" * (80 << 20))
    claim = {"path": "config.json", "hash": blake3(b"").hexdigest()[:32], "origin": "pack", "bytes": len(bomb)}
    forged = forge(pack, tmp_path / "forged", lambda manifest: manifest.update(files=[claim]), files=bomb)
    with pytest.raises(PackError, match=f"`config.json` claims {80 << 20} bytes"):
        kinfold.restore(forged, base, tmp_path / "out")


def test_a_wrong_base_is_the_only_thing_force_forgives(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, pack = small
    forged = forge(pack, tmp_path / "forged", params(k=1 << 40))
    with pytest.raises(PackError, match="is impossible"):
        kinfold.restore(forged, base, tmp_path / "out", force=True)
