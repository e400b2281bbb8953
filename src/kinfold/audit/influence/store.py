"""Compressed gradients on disk: a folder of shards that only grows, and a manifest that is written last.

A shard is a safetensors file of at most 64 MiB with, a row each: `gradients` float16 over the row's largest entry,
`scale` float32, that entry; `loss` float32; and `row` uint8, the 32 bytes of BLAKE3 of the row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kinfold.checkpoint import atomic_file
from kinfold.checkpoint.header import build_header
from kinfold.errors import GradientStoreError

FORMAT = "kinfold.gradients/1"
SHARD_BYTES = 64 << 20
MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 26
Count = Annotated[int, Field(ge=0, lt=1 << 40)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Block(_Model):
    """A run of columns: one module under one mask.

    Attributes:
        name: canonical name of the module's weight.
        shape: [d_out, d_in] of the weight.
        width: number of columns.
    """

    name: str
    shape: list[Count] = Field(min_length=2, max_length=2)
    width: Annotated[int, Field(ge=1, lt=1 << 32)]


class StoreSpec(_Model):
    """What a store's gradients are of; two stores that agree in `coordinates` share their columns.

    Attributes:
        variant: fingerprint of the variant; of a pack, the hash of its file.
        base: fingerprint of the base, empty where none was given.
        task: how a row's loss is taken.
        reduction: of the losses of a row's tokens.
        tokenizer: BLAKE3 over the tokenizer's files, empty where there are none.
        max_tokens: of a row that are read.
        mask, seed, masks: which coordinates are kept.
        coordinates: BLAKE3 over names and kept indices.
        blocks: the columns in order.
    """

    variant: str
    base: str
    task: str
    reduction: Literal["mean", "sum"]
    tokenizer: str
    max_tokens: Annotated[int, Field(ge=1)]
    mask: str
    seed: int
    masks: Annotated[int, Field(ge=1, lt=1 << 20)]
    coordinates: str
    blocks: list[Block] = Field(min_length=1)

    @property
    def width(self) -> int:
        return sum(block.width for block in self.blocks)


class _Shard(_Model):
    rows: Annotated[int, Field(ge=1, lt=1 << 32)]
    hash: Hash


class _Manifest(_Model):
    format: Literal["kinfold.gradients/1"]
    spec: StoreSpec
    rows: Count
    shards: list[_Shard]


@dataclass(frozen=True)
class Rows:
    """Some rows of a store.

    Attributes:
        gradients: float32 (m, width).
        losses: float32 (m,), nats.
        hashes: 32 bytes each.
    """

    gradients: np.ndarray
    losses: np.ndarray
    hashes: list[bytes]


class GradientStore:
    """Append-only gradients of rows in a folder, of one variant and one choice of coordinates.

    Attributes:
        path: the folder.
        spec: what the gradients are of.
        hashes: of the rows on disk, in order.
    """

    def __init__(self, path: Path, spec: StoreSpec, shards: Sequence[_Shard], shard_bytes: int | None = None) -> None:
        self.path, self.spec = path, spec
        self._shards = list(shards)
        self._pending = Rows(np.empty((0, spec.width), np.float32), np.empty(0, np.float32), [])
        self._per_shard = max(1, (shard_bytes or SHARD_BYTES) // (2 * spec.width + 40))
        self.hashes: list[bytes] = []

    @classmethod
    def create(cls, path: str | Path, spec: StoreSpec, *, shard_bytes: int | None = None) -> GradientStore:
        """A new, empty store.

        Raises:
            GradientStoreError: the folder is not empty.
            OutputError: the disk cannot take it.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise GradientStoreError(f"`{path}` is there and no store of gradients", hint="choose another --gradients")
        path.mkdir(parents=True, exist_ok=True)
        store = cls(path, spec, [], shard_bytes)
        store._write_manifest()
        return store

    @classmethod
    def open(cls, path: str | Path, *, shard_bytes: int | None = None) -> GradientStore:
        """A store on disk; shards that the manifest does not name are leftovers of a killed run and are ignored.

        Raises:
            GradientStoreError: there is none, the manifest does not parse, or a shard is damaged.
        """
        path = Path(path)
        file = path / MANIFEST
        try:
            if file.stat().st_size > _MAX_MANIFEST:
                raise ValueError(f"its manifest has more than {_MAX_MANIFEST} bytes")
            manifest = _Manifest.model_validate_json(file.read_bytes())
            if sum(shard.rows for shard in manifest.shards) != manifest.rows:
                raise ValueError("the rows of its shards do not add up")
        except (OSError, ValueError, ValidationError) as cause:
            raise GradientStoreError(f"`{path}` is no store of gradients: {cause}", hint=f"ls {path}") from cause
        store = cls(path, manifest.spec, manifest.shards, shard_bytes)
        for number in range(len(manifest.shards)):
            store.hashes += store._read(number).hashes
        return store

    def require(self, spec: StoreSpec) -> None:
        """Refuse a store of other gradients.

        Raises:
            GradientStoreError: names the first field that differs, and both values.
        """
        for field in StoreSpec.model_fields:
            there, wanted = getattr(self.spec, field), getattr(spec, field)
            if there != wanted:
                raise GradientStoreError(
                    f"the gradients in `{self.path}` were made with {field} {_brief(there)}, not {_brief(wanted)}",
                    hint="give another folder: --gradients NEW.grads",
                )

    @property
    def rows(self) -> int:
        """Rows on disk."""
        return sum(shard.rows for shard in self._shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(self._file(number).stat().st_size for number in range(len(self._shards)))

    def append(self, gradients: np.ndarray, losses: np.ndarray, row_hashes: Sequence[bytes]) -> None:
        """Add rows; they reach the disk in full shards, the last by `flush`.

        Args:
            gradients: (m, width), finite.
            losses: (m,).
            row_hashes: 32 bytes a row.

        Raises:
            GradientStoreError: shapes that do not fit, or values that are not finite.
            OutputError: the disk is full.
        """
        if gradients.shape != (len(row_hashes), self.spec.width) or losses.shape != (len(row_hashes),):
            raise GradientStoreError(
                f"gradients of shape {list(gradients.shape)}, {len(losses)} losses and {len(row_hashes)} hashes were "
                f"given; each row needs {self.spec.width} numbers, one loss and one hash"
            )
        if not np.isfinite(gradients).all():
            raise GradientStoreError("gradients to be stored are not finite")
        pending = self._pending
        self._pending = Rows(
            np.concatenate([pending.gradients, gradients.astype(np.float32)]),
            np.concatenate([pending.losses, losses.astype(np.float32)]),
            [*pending.hashes, *row_hashes],
        )
        while len(self._pending.hashes) >= self._per_shard:
            self._write(self._per_shard)

    def flush(self) -> None:
        """Write the rows that do not fill a shard."""
        if self._pending.hashes:
            self._write(len(self._pending.hashes))

    def shards(self) -> Iterator[Rows]:
        """The rows on disk, one shard at a time.

        Raises:
            GradientStoreError: a shard is missing or damaged.
        """
        for number in range(len(self._shards)):
            yield self._read(number)

    def verify(self) -> None:
        """Read all of it.

        Raises:
            GradientStoreError: a shard is missing or damaged.
        """
        for _ in self.shards():
            pass

    def _file(self, number: int) -> Path:
        return self.path / f"rows-{number:05}.safetensors"

    def _header(self, rows: int) -> bytes:
        width = self.spec.width
        tensors = [
            ("gradients", "F16", (rows, width)),
            ("scale", "F32", (rows,)),
            ("loss", "F32", (rows,)),
            ("row", "U8", (rows, 32)),
        ]
        return build_header(tensors, {"kinfold.format": FORMAT})

    def _write(self, count: int) -> None:
        pending = self._pending
        gradients, hashes = pending.gradients[:count], pending.hashes[:count]
        scale = np.abs(gradients).max(1, initial=0.0)
        small = (gradients / np.where(scale > 0, scale, 1.0)[:, None]).astype("<f2")
        data = b"".join(
            [small.tobytes(), scale.astype("<f4").tobytes(), pending.losses[:count].astype("<f4").tobytes()]
        )
        data = self._header(count) + data + b"".join(hashes)
        with atomic_file(self._file(len(self._shards)), overwrite=True) as temporary:
            temporary.write_bytes(data)
        self._shards.append(_Shard(rows=count, hash=blake3(data).hexdigest()))
        self._pending = Rows(pending.gradients[count:], pending.losses[count:], pending.hashes[count:])
        self.hashes += hashes
        self._write_manifest()

    def _write_manifest(self) -> None:
        manifest = _Manifest(format=FORMAT, spec=self.spec, rows=self.rows, shards=self._shards)
        with atomic_file(self.path / MANIFEST, overwrite=True) as temporary:
            temporary.write_text(json.dumps(manifest.model_dump(), indent=1) + "\n", "utf-8")

    def _read(self, number: int) -> Rows:
        file, shard = self._file(number), self._shards[number]
        header = self._header(shard.rows)
        expected = len(header) + shard.rows * (2 * self.spec.width + 40)
        hint = f"remove `{self.path}`, or fetch it again"
        size = os.stat(file).st_size if file.is_file() else None
        if size != expected:
            raise GradientStoreError(f"`{file}` has {size} bytes, the manifest says {expected}", hint=hint)
        data = file.read_bytes()
        if blake3(data).hexdigest() != shard.hash or not data.startswith(header):
            raise GradientStoreError(f"`{file}` is damaged: its hash is not the manifest's", hint=hint)
        rows, width, start = shard.rows, self.spec.width, len(header)
        small = np.frombuffer(data, "<f2", rows * width, start).reshape(rows, width)
        scale = np.frombuffer(data, "<f4", rows, start + 2 * rows * width)
        losses = np.frombuffer(data, "<f4", rows, start + 2 * rows * width + 4 * rows)
        tail = data[start + 2 * rows * width + 8 * rows :]
        return Rows(
            small.astype(np.float32) * scale[:, None], losses, [tail[i : i + 32] for i in range(0, 32 * rows, 32)]
        )


def row_hash(row: Any) -> bytes:
    """The 32 bytes of BLAKE3 over a row's JSON with sorted keys and no spaces."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return blake3(text.encode("utf-8", "surrogatepass")).digest()


def _brief(value: Any) -> str:
    text = str(value)
    return f"{text[:60]}..." if len(text) > 60 else text or "none"
