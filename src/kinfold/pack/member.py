"""A variant seen as deltas, wherever it is kept: a model directory, a pack or a PEFT adapter.

Merges, families and audits read their members through this and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.codec.lowrank import Pair
from kinfold.codec.sums import PIECE
from kinfold.errors import WrongBaseError
from kinfold.pack.manifest import Manifest, Piece
from kinfold.pack.source import Deltas, difference, lay
from kinfold.pack.units import FLOATS
from kinfold.report.progress import progress

Spec = tuple[str, tuple[int, ...]]  # dtype, shape
PathLike = str | Path


@dataclass(frozen=True)
class Base:
    """The base of all members, opened and hashed once."""

    checkpoint: Checkpoint
    digests: Mapping[str, str]

    @classmethod
    def open(cls, directory: PathLike) -> Base:
        """Read the headers and hash every tensor.

        Raises:
            CheckpointError: the directory cannot be read.
        """
        checkpoint = Checkpoint.open(directory)
        with progress("hash base", checkpoint.nbytes) as advance:
            return cls(checkpoint, digests(checkpoint, advance))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(specs_of(self.checkpoint), self.digests)


class Member(ABC):
    """One variant of a base.

    Attributes:
        name: what the user calls it: the stem of its path unless it was named.
        path: where it is kept.
        kind: `model`, `pack` or `adapter`.
        codec: of its matrices; `exact` where nothing was lost.
        fingerprint: names its content.
        specs: dtype and shape of every tensor, under the variant's own names.
        own: the variant's name for each tensor of the base that it has in the same shape, both floating point:
            these have a delta. Keyed and ordered by the base's names.
        same: those of them that are equal to the base's, so that their delta is zero.
        whole: the variant's names of what has no delta: new, resized, or not floating point and changed.
        absent: names of the base that the variant lacks.
        equal: the variant's names of all that is equal to the base's.
    """

    kind: str
    codec: str = "exact"

    def __init__(self, name: str, path: Path, base: Base) -> None:
        self.name, self.path, self.base = name, path, base
        self.fingerprint: str = ""
        self.specs: dict[str, Spec] = {}
        self.own: dict[str, str] = {}
        self.same: frozenset[str] = frozenset()
        self.whole: list[str] = []
        self.absent: list[str] = []
        self.equal: list[str] = []

    @abstractmethod
    def delta(self, name: str) -> torch.Tensor:
        """Variant minus base for a tensor of `own`, by the base's name: float32 in its shape."""

    @abstractmethod
    def value(self, own_name: str) -> torch.Tensor:
        """A tensor of the variant by its own name, in its dtype."""

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Configs, tokenizer and templates by relative path, as the variant has them."""

    def factors(self, name: str) -> Pair | None:
        """The delta as a product, where it is kept as one; None where only the dense delta is known."""
        return None

    @abstractmethod
    def skeleton(self, **facts: Any) -> tuple[Manifest, bytes]:
        """A manifest without units that carries `facts`, and the bytes of the files it keeps."""

    @property
    def deltas(self) -> Deltas:
        """The variant as encoding sees it."""
        return _Seen(self)

    def pieces(self) -> list[Piece]:
        """Every tensor that must be stored, in pieces."""
        base = {own: name for name, own in self.own.items() if name not in self.same}
        names = [name for name in self.specs if name in base or name in self.whole]
        specs = {name: {"dtype": self.specs[name][0], "shape": list(self.specs[name][1])} for name in names}
        return [Piece(name=name, **specs[name], base=base.get(name)) for name in names]

    @property
    def reference_bytes(self) -> int:
        """2 bytes for every weight in a tensor that differs from the base."""
        return sum(2 * piece.numel for piece in self.pieces())

    @property
    def changed(self) -> list[str]:
        """The base's names of the tensors whose delta is not known to be zero."""
        return [name for name in self.own if name not in self.same]

    def _place(self, pairs: Mapping[str, str], equal: set[str]) -> None:
        """Sort the variant's names into `own`, `same`, `whole`, `absent`; `pairs` gives the base's name of each."""
        tensors = self.base.checkpoint.tensors
        met = {base: own for own, base in pairs.items() if base in tensors}
        delta = {
            base
            for base, own in met.items()
            if tensors[base].shape == self.specs[own][1]
            and tensors[base].dtype in FLOATS
            and self.specs[own][0] in FLOATS
        }
        self.own = {base: met[base] for base in tensors if base in delta}
        self.same = frozenset(base for base in self.own if self.own[base] in equal)
        with_delta = set(self.own.values())
        self.whole = [name for name in self.specs if name not in with_delta and name not in equal]
        self.absent = [base for base in tensors if base not in met]
        self.equal = [name for name in self.specs if name in equal]


class _Seen:
    """A member's values and deltas, piece by piece."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def values(self, pieces: Sequence[Piece]) -> torch.Tensor:
        return lay([_rows(self._member.value(piece.name), piece) for piece in pieces])

    def reference(self, pieces: Sequence[Piece]) -> torch.Tensor | None:
        if pieces[0].base is None:
            return None
        read = self._member.base.checkpoint.read
        return lay([read(piece.base, piece.row_range) for piece in pieces if piece.base is not None])

    def delta(self, pieces: Sequence[Piece]) -> torch.Tensor:
        parts = [self._delta(piece) for piece in pieces]
        return parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])

    def delta_blocks(self, piece: Piece) -> Iterator[tuple[int, torch.Tensor]]:
        flat, position = self._delta(piece).reshape(-1), 0
        for block in flat.split(PIECE):
            yield position, block
            position += block.numel()

    def _delta(self, piece: Piece) -> torch.Tensor:
        if piece.base in self._member.own and piece.rows is None:
            return self._member.delta(piece.base)
        value, reference = self.values([piece]), self.reference([piece])
        return value.float() if reference is None else difference(value, reference)


def _rows(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    return tensor[slice(*piece.rows)] if piece.rows else tensor


def require_base(wanted: str, wanted_name: str, path: Path, base: Base) -> None:
    """Refuse a member of another base.

    Raises:
        WrongBaseError: the fingerprints differ.
    """
    if wanted != base.fingerprint:
        raise WrongBaseError(
            f"`{path}` was made from `{wanted_name}` with fingerprint {wanted[:16]}..., the base given, "
            f"`{base.checkpoint.directory}`, is {base.fingerprint[:16]}...",
            hint="give members of one base, and that base",
        )


def stem(path: Path) -> str:
    """The name a member goes by when the user gave none."""
    return path.resolve().name.removesuffix(".safetensors").removesuffix(".kin")
