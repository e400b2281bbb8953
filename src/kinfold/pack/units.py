"""From matched tensors to units: which are coded with loss, which are kept, which are laid together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from kinfold.checkpoint import Checkpoint, Match, Pair
from kinfold.codec.factors import matrix_sides
from kinfold.pack.manifest import Piece

ALONE = 1 << 16  # a kept tensor of this many values is a unit of its own
GROUP = 1 << 20  # smaller ones are laid end to end up to this many values: one set of statistics for all
FLOATS = ("F64", "F32", "F16", "BF16")  # what has a delta; fp8 and integers are kept
MIN_MATRIX = 1 << 12  # a smaller matrix is kept like a vector: factors of it would save nothing


@dataclass(frozen=True)
class Draft:
    """A unit before it is coded: its pieces, and whether the lossy codec takes it."""

    pieces: tuple[Piece, ...]
    matrix: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pieces[0].part if len(self.pieces) == 1 else (self.numel,)

    @property
    def numel(self) -> int:
        return sum(piece.numel for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def name(self) -> str:
        return self.pieces[0].name


def drafts(
    base: Checkpoint, variant: Checkpoint, match: Match, *, lossless: bool, vectors: bool = False
) -> list[Draft]:
    """Units in the variant's order of tensors, matrices first, then what is kept.

    Args:
        base: the base's headers.
        variant: the variant's headers.
        match: how their tensors pair.
        lossless: no matrix is coded with loss; everything is kept.
        vectors: the lossy codec takes norms, biases and small matrices too, laid together.
    """
    matrices, small, kept = [], [], []
    for pair in match.pairs:
        for piece in pieces_of(pair, variant):
            if lossless or not _has_float_delta(piece, base):
                kept.append(piece)
            elif is_matrix(piece):
                matrices.append(piece)
            else:
                (small if vectors else kept).append(piece)
    alone = [Draft((piece,), True) for piece in matrices]
    return alone + [Draft(group, True) for group in groups(small)] + [Draft(group, False) for group in groups(kept)]


def pieces_of(pair: Pair, variant: Checkpoint) -> Iterator[Piece]:
    """What of a tensor must be stored: nothing, the whole, or the rows that the base has and the new ones."""
    info = variant.tensors[pair.name]
    spec = {"name": pair.name, "dtype": info.dtype, "shape": list(info.shape)}
    if pair.status == "new":
        yield Piece(**spec)
    elif pair.status == "changed":
        yield Piece(**spec, base=pair.base)
    elif pair.status == "resized":
        whole = info.shape[0] == pair.rows
        yield Piece(**spec, base=pair.base, rows=[0, pair.rows])
        if not whole:
            yield Piece(**spec, rows=[pair.rows, info.shape[0]])


def _has_float_delta(piece: Piece, base: Checkpoint) -> bool:
    return piece.base is not None and piece.dtype in FLOATS and base.tensors[piece.base].dtype in FLOATS


def is_matrix(piece: Piece) -> bool:
    """Whether its shape is that of a matrix large enough to be coded alone."""
    large = len(piece.part) > 1 and math.prod(piece.part) >= MIN_MATRIX
    return large and min(matrix_sides(piece.part)) > 1


def groups(kept: list[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Small pieces laid together, those of one dtype that have a base apart from those that have none."""
    open_groups: dict[tuple[str, bool], list[Piece]] = {}
    for piece in kept:
        if piece.numel >= ALONE:
            yield (piece,)
            continue
        group = open_groups.setdefault((piece.dtype, piece.base is None), [])
        group.append(piece)
        if sum(p.numel for p in group) >= GROUP:
            yield tuple(group)
            group.clear()
    yield from (tuple(group) for group in open_groups.values() if group)
