"""The two checkpoints behind a pack, and what a unit's codec gets to see of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kinfold._version import __version__
from kinfold.checkpoint import Checkpoint, Match, digests, fingerprint, match
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.codec.sums import PIECE
from kinfold.pack.manifest import Manifest, Piece, SideFile, Source
from kinfold.report.progress import progress


class Deltas(Protocol):
    """What encoding needs to see of a variant and its base."""

    def values(self, pieces: Sequence[Piece]) -> torch.Tensor: ...

    def reference(self, pieces: Sequence[Piece]) -> torch.Tensor | None: ...

    def delta(self, pieces: Sequence[Piece]) -> torch.Tensor: ...

    def delta_blocks(self, piece: Piece) -> Iterator[tuple[int, torch.Tensor]]: ...


@dataclass(frozen=True)
class Sources:
    """Base and variant, opened, hashed and matched."""

    base: Checkpoint
    variant: Checkpoint
    match: Match
    base_fingerprint: str
    variant_fingerprint: str

    @classmethod
    def open(cls, base: Checkpoint, variant: Checkpoint, base_digest: Mapping[str, str] | None = None) -> Sources:
        """Hash every tensor of both sides once, of the base only where `base_digest` is not given; equal tensors
        are known from then on."""
        with progress("hash", (0 if base_digest else base.nbytes) + variant.nbytes) as advance:
            base_digest = base_digest or digests(base, advance)
            variant_digest = digests(variant, advance)
        return cls(
            base,
            variant,
            match(base, variant, base_digest, variant_digest),
            fingerprint(specs_of(base), base_digest),
            fingerprint(specs_of(variant), variant_digest),
        )

    @property
    def reference_bytes(self) -> int:
        """2 bytes for every weight in a tensor that differs from the base."""
        differ = [pair.name for pair in self.match.pairs if pair.status not in ("equal", "alias")]
        return sum(2 * self.variant.tensors[name].numel for name in differ)

    def manifest(self, files: Sequence[SideFile], left_out: Sequence[str], **facts: Any) -> Manifest:
        """A manifest without units: what is equal, alias or absent, and whatever `facts` the caller has."""
        return Manifest(
            created_by=created_by(),
            base=source_of(self.base, self.base_fingerprint),
            variant=source_of(self.variant, self.variant_fingerprint),
            reference_bytes=self.reference_bytes,
            prefix=list(self.match.prefix),
            units=[],
            equal=[pair.name for pair in self.match.pairs if pair.status == "equal"],
            alias={pair.name: pair.base for pair in self.match.pairs if pair.status == "alias" and pair.base},
            absent=self.match.absent,
            files=list(files),
            left_out=list(left_out),
            **facts,
        )

    def values(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """The variant's values of `pieces`, in its dtype: one piece's shape, or all laid end to end."""
        return lay([self.variant.read(piece.name, piece.row_range) for piece in pieces])

    def reference(self, pieces: Sequence[Piece]) -> torch.Tensor | None:
        """The base's values for `pieces`, in the base's dtype; None for new tensors."""
        if pieces[0].base is None:
            return None
        return lay([self.base.read(piece.base, piece.row_range) for piece in pieces if piece.base is not None])

    def delta(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Variant minus base in float32 (subtracted in float64 where a side is float64)."""
        if len(pieces) > 1:
            return torch.cat([self.delta([piece]).reshape(-1) for piece in pieces])
        delta = torch.empty(pieces[0].part)
        flat = delta.view(-1)
        for start, block in self.delta_blocks(pieces[0]):
            flat[start : start + block.numel()] = block  # a large tensor is never held in two dtypes
        return delta

    def delta_blocks(self, piece: Piece) -> Iterator[tuple[int, torch.Tensor]]:
        """The same in blocks of whole rows: (first entry within the piece, float32 vector)."""
        shape = piece.part
        width = math.prod(shape[1:])
        step = max(1, PIECE // max(width, 1))
        for first in range(0, shape[0] if shape else 1, step):
            part = piece.rows_between(first, first + step)
            values = self.variant.read(piece.name, part)
            if piece.base is None:
                yield first * width, values.float().reshape(-1)
                continue
            yield first * width, difference(values, self.base.read(piece.base, part)).reshape(-1)


def difference(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Values minus reference in float32, subtracted in float64 where a side is float64."""
    wide = torch.float64 if torch.float64 in (values.dtype, reference.dtype) else torch.float32
    return (values.to(wide) - reference.to(wide)).float()


def lay(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor as it is; several flattened and concatenated."""
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])


def created_by() -> str:
    """What a manifest says it was made by."""
    return f"kinfold {__version__}, torch {torch.__version__}"


def source_of(checkpoint: Checkpoint, fingerprint: str) -> Source:
    """What a manifest says of a checkpoint."""
    name = checkpoint.directory.resolve().name
    return Source(name=name, fingerprint=fingerprint, bytes=checkpoint.nbytes, metadata=checkpoint.metadata)
