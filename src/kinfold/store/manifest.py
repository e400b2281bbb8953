"""The manifest: what a version is, as immutable JSON named by its own hash."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kinfold.errors import StoreError
from kinfold.store.names import is_name
from kinfold.store.objects import DamagedError

FORMAT = 1
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Kind = Literal["model", "pack", "family", "adapter"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Segment(_Model):
    """A run of bytes of a file: its BLAKE3, which is the object's name, and its bytes."""

    hash: Hash
    size: Annotated[int, Field(gt=0, lt=1 << 62)]


class File(_Model):
    """A file, the concatenation of its segments.

    Attributes:
        path: relative, with `/`.
        size: bytes.
        hash: BLAKE3 of the whole file.
        segments: in order.
    """

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    size: Count
    hash: Hash
    segments: list[Segment]

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if any(part in ("", ".", "..") for part in path.split("/")) or set(path) & set("\\:\0"):
            raise ValueError(f"`{path}` leads out of the directory")
        return path

    @model_validator(mode="after")
    def _adds_up(self) -> File:
        if sum(segment.size for segment in self.segments) != self.size:
            raise ValueError(f"the segments of `{self.path}` do not add up to {self.size} bytes")
        return self


class BaseModelOf(_Model):
    """The base that a variant belongs to: the fingerprint of its tensors, and what it is called."""

    fingerprint: Hash
    name: str


class Manifest(_Model):
    """One version.

    Attributes:
        format: of the manifest.
        kind: model, pack, family or adapter.
        name: it was added under.
        files: in order of path.
        base: None of a model that says none, or of an adapter whose base was not named.
        parent: the manifest of the version before, or of what it was made from.
        codec: of its matrices; `exact` of a model, `lora` of an adapter, the method of a family.
        fingerprint: of the variant's tensors; None of a family.
        reference_bytes: 2 bytes for every weight in a tensor that differs from the base; of a model, every weight.
        report: errors, members and the like, as `inspect` tells them.
        created_by: program and version.
        created: ISO time, by the clock of who added it.
    """

    format: Literal[1] = FORMAT
    kind: Kind
    name: str
    files: Annotated[list[File], Field(min_length=1)]
    base: BaseModelOf | None
    parent: Hash | None
    codec: str
    fingerprint: Hash | None
    reference_bytes: Count
    report: dict[str, Any]
    created_by: str
    created: str

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if not is_name(name):  # it becomes a folder of the cache
            raise ValueError(f"{name!r} is no name")
        return name

    @model_validator(mode="after")
    def _sorted(self) -> Manifest:
        paths = [file.path for file in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("the files are not in order, or one is listed twice")
        if self.kind in ("pack", "family") and len(paths) != 1:
            raise ValueError(f"a {self.kind} is one file")
        return self

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)

    @property
    def objects(self) -> dict[str, int]:
        """Bytes of each object that the files need, by hash."""
        return {segment.hash: segment.size for file in self.files for segment in file.segments}

    def same_content(self, other: Manifest) -> bool:
        """Whether the other holds the same files for the same base, whenever and by whom it was added."""
        mine, theirs = ((m.kind, m.files, m.base.fingerprint if m.base else None) for m in (self, other))
        return mine == theirs

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8."""
        content = self.model_dump(mode="json")
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_of(data: bytes) -> str:
    """BLAKE3, 64 hex digits."""
    return blake3(data).hexdigest()


def parse_manifest(data: bytes, hash: str) -> Manifest:
    """Check a manifest's bytes against its name, and read it.

    Raises:
        StoreError: damaged, or made by a newer version.
    """
    if hash_of(data) != hash:
        raise DamagedError(hash, "is damaged", "manifest")
    try:
        content = json.loads(data)
        if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise StoreError(
                f"the manifest {hash[:16]}... has format {content['format']}, made by a newer Kinfold; this one reads "
                f"{FORMAT}",
                hint="pip install -U kinfold",
            )
        manifest = Manifest.model_validate_json(data)
        if manifest.to_bytes() != data:
            raise ValueError("it is not in canonical form")
        return manifest
    except (ValidationError, ValueError, RecursionError) as cause:
        raise StoreError(
            f"the manifest {hash[:16]}... is no manifest: {problem(cause)}", hint="kinfold store verify"
        ) from cause


def problem(cause: Exception) -> str:
    """The first thing that is wrong, on one line."""
    if not isinstance(cause, ValidationError):
        return str(cause)
    first = cause.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
