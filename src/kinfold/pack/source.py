"""The two checkpoints behind a pack, and what a unit's codec gets to see of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kinfold.checkpoint import Checkpoint, Match, digests, fingerprint, match
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.pack.manifest import Piece
from kinfold.report.progress import progress


@dataclass(frozen=True)
class Sources:
    """Base and variant, opened, hashed and matched."""

    base: Checkpoint
    variant: Checkpoint
    match: Match
    base_fingerprint: str
    variant_fingerprint: str

    @classmethod
    def open(cls, base: Checkpoint, variant: Checkpoint) -> Sources:
        """Hash every tensor of both sides once; equal tensors are known from then on."""
        with progress("hash", base.nbytes + variant.nbytes) as advance:
            base_digest = digests(base, advance)
            variant_digest = digests(variant, advance)
        return cls(
            base,
            variant,
            match(base, variant, base_digest, variant_digest),
            fingerprint(specs_of(base), base_digest),
            fingerprint(specs_of(variant), variant_digest),
        )

    def values(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """The variant's values of `pieces`, in its dtype: one piece's shape, or all laid end to end."""
        return lay([_rows(self.variant, piece.name, piece) for piece in pieces])

    def reference(self, pieces: Sequence[Piece]) -> torch.Tensor | None:
        """The base's values for `pieces`, in the base's dtype; None for new tensors."""
        if pieces[0].base is None:
            return None
        return lay([_rows(self.base, piece.base, piece) for piece in pieces if piece.base is not None])

    def delta(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Variant minus base in float32 (subtracted in float64 where a side is float64)."""
        values = self.values(pieces)
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        delta = values.to(wide, copy=True)
        del values  # a large tensor is held once here, not in two dtypes
        reference = self.reference(pieces)
        if reference is not None and reference.dtype == torch.float64:
            delta = delta.double()
        if reference is not None:
            delta -= reference
        return delta.float()


def lay(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor as it is; several flattened and concatenated."""
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])


def _rows(checkpoint: Checkpoint, name: str, piece: Piece) -> torch.Tensor:
    if piece.rows is None:
        return checkpoint.read(name)
    first, last = piece.rows
    return checkpoint.read(name, rows=last)[first:]
