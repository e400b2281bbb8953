"""Manifests that lie, put into packs whose hashes are right: each is a PackError, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import kinfold
from forge import forge, put_together, take_apart
from kinfold.errors import PackError
from models import beside


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


def test_a_wrong_base_is_the_only_thing_force_forgives(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, pack = small
    forged = forge(pack, tmp_path / "forged", params(k=1 << 40))
    with pytest.raises(PackError, match="is impossible"):
        kinfold.restore(forged, base, tmp_path / "out", force=True)
