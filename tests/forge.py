"""Packs taken apart and put together again with json, struct and zstandard alone, so that they can lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3


def take_apart(pack: Path) -> tuple[dict[str, str], dict[str, Any], dict[str, bytes]]:
    """Metadata, manifest (parsed JSON) and the bytes of every other entry in the file's order."""
    data = pack.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    body = data[8 + length :]
    entries = {name: body[slice(*entry["data_offsets"])] for name, entry in header.items()}
    manifest = json.loads(zstandard.ZstdDecompressor().decompress(entries.pop("#manifest")))
    return metadata, manifest, entries


def put_together(path: Path, metadata: dict[str, str], packed: bytes, entries: dict[str, bytes]) -> Path:
    """Write a safetensors file of uint8 rows; the manifest's hash is right."""
    metadata = metadata | {"kinfold.manifest": blake3(packed).hexdigest()}
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, data in {"#manifest": packed, **entries}.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + packed + b"".join(entries.values()))
    return path


def forge(pack: Path, out: Path, edit: Callable[[dict[str, Any]], object], **entries: bytes) -> Path:
    """A copy of `pack` whose manifest went through `edit`; sizes and hashes of entries are as it says."""
    metadata, manifest, there = take_apart(pack)
    edit(manifest)
    there |= {"#" + name: data for name, data in entries.items()}
    manifest["entries"] = {name: blake3(data).hexdigest()[:32] for name, data in there.items()}
    return put_together(out, metadata, zstandard.ZstdCompressor().compress(json.dumps(manifest).encode()), there)
