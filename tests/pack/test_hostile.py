"""Damaged and hostile packs: a PackError, never a crash, a hang, or an allocation the file does not justify."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from blake3 import blake3

import kinfold
from forge import forge, put_together, take_apart
from kinfold.errors import PackError
from kinfold.pack.format import PackFile
from models import beside, raw, save


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
