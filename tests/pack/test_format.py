"""The pack file byte by byte, taken apart without the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import zstandard
from blake3 import blake3

import kinfold
from forge import take_apart
from kinfold.pack.format import PackFile, entry_names, entry_sizes
from kinfold.pack.manifest import Manifest, Piece, SideFile, Unit
from models import perturbed, pico, raw, save


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exact pack with two payloads of their own, a shared entry and kept files."""
    folder = tmp_path_factory.mktemp("format")
    base = pico(shapes={"a.large": (300, 250), "norm": (64,), "z.large": (300, 250)})
    variant = save(folder / "variant", perturbed(base) | {"steps": torch.arange(40)}, {"more": 1})
    kinfold.pack(save(folder / "base", base), variant, folder / "v.kin.safetensors", codec="exact", seed=3)
    return folder / "v.kin.safetensors"


def test_the_header_is_canonical(pack: Path) -> None:
    data = pack.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert list(header) == ["__metadata__", "#manifest", "a.large#exact", "z.large#exact", "#small", "#files"]
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    text = json.dumps(header, separators=(",", ":")).encode()
    assert data[8 : 8 + length] == text + b" " * (-len(text) % 8)
    position = 0
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            assert (begin, entry["dtype"], entry["shape"]) == (position, "U8", [end - begin])
            position = end
    assert 8 + length + position == len(data)


def test_hashes_are_blake3(pack: Path) -> None:
    metadata, manifest, entries = take_apart(pack)
    assert manifest["entries"] == {name: blake3(data).hexdigest()[:32] for name, data in entries.items()}
    data = pack.read_bytes()
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])["#manifest"]["data_offsets"]
    packed = data[8 + length + begin : 8 + length + end]
    assert metadata["kinfold.manifest"] == blake3(packed).hexdigest()
    assert json.loads(zstandard.decompress(packed)) == manifest


def test_the_manifest_accounts_for_every_tensor(pack: Path) -> None:
    metadata, manifest, entries = take_apart(pack)
    assert metadata["kinfold.variant"] == manifest["variant"]["name"] == "variant"
    assert metadata["kinfold.base"] == manifest["base"]["fingerprint"]
    assert (manifest["codec"], manifest["seed"]) == ("exact", 3)
    pieces = {piece["name"]: piece for unit in manifest["units"] for piece in unit["pieces"]}
    there = raw(pack.parent / "variant")
    assert {name: (p["dtype"], tuple(p["shape"])) for name, p in pieces.items()} == {
        name: (dtype, shape) for name, (dtype, shape, _) in there.items()
    }
    assert sum(unit["bytes"] for unit in manifest["units"]) == sum(
        len(data) for name, data in entries.items() if name != "#files"
    )
    (config,) = manifest["files"]
    kept = (pack.parent / "variant" / "config.json").read_bytes()
    assert config["hash"] == blake3(kept).hexdigest()[:32]
    assert config["bytes"] == len(entries["#files"])


def test_payloads_are_handed_out_in_the_order_of_units(pack: Path) -> None:
    opened = PackFile.open(pack)
    _, manifest, entries = take_apart(pack)
    small = entries["#small"]
    for (unit, payload), wanted in zip(opened.payloads(), manifest["units"], strict=True):
        assert unit.pieces[0].name == wanted["pieces"][0]["name"]
        if wanted["bytes"] >= 16 << 10:
            assert payload == entries[wanted["pieces"][0]["name"] + "#exact"]
        else:
            assert payload == small[: wanted["bytes"]]
            small = small[wanted["bytes"] :]
    assert small == b""


def unit(name: str, count: int, **piece: object) -> Unit:
    whole = {"name": name, "dtype": "F32", "shape": [9, 4], **piece}
    return Unit(codec="osd", bytes=count, pieces=[Piece(**whole)])


def test_entries_from_16_kibibytes_on_are_their_own() -> None:
    units = [unit("a", 16383), unit("b", 16384), unit("c", 1), unit("d", 20000, rows=[5, 9])]
    assert entry_names(units) == ["#small", "b#osd", "#small", "d@5#osd"]
    assert list(entry_sizes(units, 7).items()) == [
        ("b#osd", 16384),
        ("d@5#osd", 20000),
        ("#small", 16384),
        ("#files", 7),
    ]
    assert entry_sizes([], 0) == {}


def test_pieces_know_their_part() -> None:
    piece = Piece(name="x", dtype="BF16", shape=[9, 4], rows=[5, 9])
    assert (piece.part, piece.first_row, piece.numel, piece.nbytes) == ((4, 4), 5, 16, 32)
    scalar = Piece(name="x", dtype="I64", shape=[])
    assert (scalar.part, scalar.first_row, scalar.numel, scalar.nbytes) == ((), 0, 1, 8)
    both = Unit(codec="exact", bytes=1, pieces=[piece, Piece(name="y", dtype="BF16", shape=[3])])
    assert (both.shape, both.numel) == ((19,), 19)


def test_a_manifest_reads_back_as_it_was(pack: Path) -> None:
    manifest = PackFile.open(pack).manifest
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.to_bytes() == manifest.to_bytes()
    assert manifest.lossless


@pytest.mark.parametrize("path", ["a.json", "sub/a.json", "..a", "a..b/c", "..."])
def test_paths_inside_are_allowed(path: str) -> None:
    assert SideFile(path=path, hash="0" * 32, origin="base").path == path
