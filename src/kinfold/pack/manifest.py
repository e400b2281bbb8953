"""The manifest: what a pack says of itself. `docs/FORMAT.md` is the normative text."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kinfold.checkpoint.header import DTYPES, size_of
from kinfold.errors import PackError

MAX_MANIFEST = 1 << 28  # bytes of JSON; a model of a million tensors stays below
MAX_EXPANSION = 1 << 16  # decoded bytes a payload byte may stand for, where no base vouches for the size

Name = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$|^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Piece(_Model):
    """A tensor of the variant, or some of its rows.

    Attributes:
        name: in the variant.
        dtype: safetensors name, such as `BF16`.
        shape: of the whole tensor.
        base: the tensor of the base that was subtracted; None for new values.
        rows: (first, past the last) row, where the piece is not the whole tensor.
    """

    name: Name
    dtype: str
    shape: list[Count] = Field(max_length=64)
    base: Name | None = None
    rows: list[Count] | None = Field(default=None, min_length=2, max_length=2)

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype}")
        return dtype

    @property
    def part(self) -> tuple[int, ...]:
        """Shape of the piece itself."""
        if self.rows is None:
            return tuple(self.shape)
        return (self.rows[1] - self.rows[0], *self.shape[1:])

    @property
    def first_row(self) -> int:
        return self.rows[0] if self.rows else 0

    @property
    def row_range(self) -> tuple[int, int] | None:
        """(first, past the last) row; None for a whole tensor."""
        return (self.rows[0], self.rows[1]) if self.rows else None

    def rows_between(self, first: int, last: int) -> tuple[int, int] | None:
        """Rows of the tensor for rows `first` to `last` of the piece, cut at its end; None for a scalar."""
        if not self.shape:
            return None
        return self.first_row + first, self.first_row + min(last, self.part[0])

    @property
    def numel(self) -> int:
        return math.prod(self.part)

    @property
    def nbytes(self) -> int:
        return size_of(self.dtype, self.part)


class Unit(_Model):
    """One payload: a single piece, or several small ones laid end to end.

    Attributes:
        codec: its codec's name.
        bytes: length of the payload.
        pieces: what it decodes to, in order.
        params: what the decoder needs besides shape and dtype.
        error: relative Frobenius error of the decoded delta, three digits; 0 is exact.
        norm: Frobenius norm of the delta, three digits; 0 where nobody measured it.
    """

    codec: Name
    bytes: Count
    pieces: list[Piece] = Field(min_length=1)
    params: dict[str, Any] = {}
    error: float = 0.0
    norm: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """What the codec saw: the piece's shape, or one row of all pieces' values."""
        return self.pieces[0].part if len(self.pieces) == 1 else (self.numel,)

    @property
    def numel(self) -> int:
        return sum(piece.numel for piece in self.pieces)


class Source(_Model):
    """A checkpoint: its name, fingerprint, bytes of all its tensors and the metadata of its weight files."""

    name: str
    fingerprint: Hash
    bytes: Count
    metadata: dict[str, str] = {}


class SideFile(_Model):
    """A config or tokenizer file; `origin` says whether its bytes come from the base or from the pack.

    A `patch` is compressed with the base's file of the same path as dictionary.
    """

    path: Name
    hash: Hash
    origin: Literal["base", "pack", "patch"]
    bytes: Count = 0

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = path.split("/")
        if path.startswith("/") or any(p in ("", ".", "..") for p in parts) or set(path) & set("\\:\0"):
            raise ValueError(f"`{path}` leads out of the directory")
        if path.endswith((".safetensors", ".safetensors.index.json")):
            raise ValueError(f"`{path}` is no side file but weights")
        return path


class Stored(_Model):
    """A manifest as it lies in a file."""

    def to_bytes(self) -> bytes:
        """JSON in the order of the fields, no spaces, defaults left out, compressed with zstd."""
        text = self.model_dump_json(exclude_defaults=True).encode()
        return zstandard.ZstdCompressor(level=19).compress(text)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read and check a manifest.

        Raises:
            PackError: it does not decompress, parse, or contradicts itself.
        """
        try:
            text = zstandard.ZstdDecompressor().decompress(data, max_output_size=_json_limit(data))
            manifest = cls.model_validate_json(text)
            manifest._check()
        except (zstandard.ZstdError, ValidationError, ValueError) as cause:
            raise PackError(f"the manifest is damaged: {str(cause).splitlines()[0]}") from cause
        return manifest

    def _check(self) -> None:
        """Raise ValueError for what contradicts itself."""


class Manifest(Stored):
    """Everything a reader must know; see `docs/FORMAT.md` for each key."""

    created_by: str
    codec: Name
    options: dict[str, Any] = {}
    budget: str | None = None
    seed: int = 0
    calibration: str | None = None
    base: Source
    variant: Source
    reference_bytes: Count
    prefix: list[str] = Field(default=["", ""], min_length=2, max_length=2)
    units: list[Unit]
    equal: list[Name] = []
    alias: dict[Name, Name] = {}
    absent: list[Name] = []
    files: list[SideFile] = []
    left_out: list[str] = []
    entries: dict[Name, Hash] = {}

    def _check(self) -> None:
        """Every tensor of the variant is accounted for once, and no payload claims too much."""
        rows: dict[str, list[tuple[int, int]]] = {}
        shapes: dict[str, tuple[str, list[int]]] = {}
        for unit in self.units:
            for piece in unit.pieces:
                spec = shapes.setdefault(piece.name, (piece.dtype, piece.shape))
                if spec != (piece.dtype, piece.shape):
                    raise ValueError(f"`{piece.name}` has two shapes")
                whole = (0, piece.shape[0] if piece.shape else 1)
                if piece.rows and not piece.shape:
                    raise ValueError(f"`{piece.name}` is a scalar and has no rows")
                if size_of(piece.dtype, (max(side, 1) for side in piece.shape)) >= 1 << 62:
                    raise ValueError(f"`{piece.name}` has the impossible shape {piece.shape}")
                rows.setdefault(piece.name, []).append((piece.rows[0], piece.rows[1]) if piece.rows else whole)
            if len({(p.dtype, p.base is None) for p in unit.pieces}) > 1:
                raise ValueError("a unit mixes dtypes, or new values with coded ones")
            new = sum(piece.nbytes for piece in unit.pieces if piece.base is None)
            if new > unit.bytes * MAX_EXPANSION:
                raise ValueError(f"`{unit.pieces[0].name}` claims {new} bytes from a payload of {unit.bytes}")
        for name, parts in rows.items():
            shape = shapes[name][1]
            position = 0
            for first, last in sorted(parts):
                if first != position or last < first:
                    raise ValueError(f"the rows of `{name}` overlap or leave a gap")
                position = last
            if position != (shape[0] if shape else 1):
                raise ValueError(f"the rows of `{name}` are not all there")
        names = [*rows, *self.equal, *self.alias]
        if len(set(names)) != len(names):
            raise ValueError("a tensor is listed twice")
        if any(target not in rows and target not in self.equal for target in self.alias.values()):
            raise ValueError("an alias points nowhere")
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is listed twice")

    @property
    def recipe(self) -> dict[str, Any]:
        """What it was made of beside the tensors of variant and base: settings, and side files with their hashes."""
        settings = {key: getattr(self, key) for key in ("codec", "options", "budget", "seed", "calibration")}
        return {**settings, "files": {file.path: file.hash for file in self.files}}

    @property
    def lossless(self) -> bool:
        return all(unit.codec == "exact" for unit in self.units)


def _json_limit(data: bytes) -> int:
    size = zstandard.frame_content_size(data)
    if not 0 <= size <= min(MAX_MANIFEST, 2048 * len(data) + 4096):
        raise ValueError(f"it claims {size} bytes")
    return max(size, 1)
