"""Small inputs for stores, and plain reads of what lies in one."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import fsspec
import torch
from blake3 import blake3

from kinfold.store import Store
from models import save


def model(folder: Path, seed: int = 0, size: int = 20_000) -> Path:
    """A model directory of 160 kB: a tensor that all have, one of its own, and two small ones."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "frozen.weight": torch.arange(size, dtype=torch.float32),
        "own.weight": torch.randn(size, generator=generator),
        "own.bias": torch.randn(7, generator=generator),
        "own.norm": torch.ones(3),
    }
    return save(folder, tensors, {"seed": seed})


def contents(path: Path) -> dict[str, bytes]:
    """Bytes of a file, or of all files of a directory by relative path."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def parts(path: Path) -> list[bytes]:
    """A safetensors file cut by hand: header, tensors of 64 KiB and more, runs of smaller ones."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found, run = [data[:start]], b""
    for first, last in sorted(entry["data_offsets"] for entry in header.values()):
        piece = data[start + first : start + last]
        if len(piece) < 65536:
            run += piece
        else:
            found += [run, piece]
            run = b""
    return [piece for piece in [*found, run] if piece]


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def keys(store: Store, folder: str) -> dict[str, bytes]:
    """All files below a folder of a store, by path, read without it."""
    fs, root = fsspec.core.url_to_fs(store.url)
    fs.invalidate_cache()
    try:
        found = fs.find(f"{root}/{folder}")
    except FileNotFoundError:
        return {}
    known = {}
    for name in found:
        with suppress(FileNotFoundError):  # somebody is at work beside us
            known[name.split(root.strip("/") + "/", 1)[1]] = fs.cat_file(name)
    return known


def objects(store: Store) -> dict[str, bytes]:
    """Objects by hash."""
    return {path.split("/")[-1]: data for path, data in keys(store, "objects").items()}


def write(store: Store, path: str, data: bytes | None) -> None:
    """Write, or with None remove, a file of a store behind its back."""
    fs, root = fsspec.core.url_to_fs(store.url)
    if fs.exists(f"{root}/{path}"):
        fs.rm_file(f"{root}/{path}")
    if data is not None:
        fs.makedirs(f"{root}/{path}".rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{root}/{path}", data)


def object_path(data: bytes) -> str:
    return f"objects/{digest(data)[:2]}/{digest(data)}"


def age(store: Store, path: str, seconds: float) -> None:
    """Make a file of a store older, on the clock of where it lies."""
    import os
    from datetime import timedelta

    fs, root = fsspec.core.url_to_fs(store.url)
    if store.url.startswith("memory"):
        fs.store[f"{root}/{path}"].modified -= timedelta(seconds=seconds)
        return
    there = Path(root) / path
    before = there.stat().st_mtime
    os.utime(there, (before - seconds, before - seconds))
