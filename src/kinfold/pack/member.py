"""A variant seen as deltas, wherever it is kept: a model directory, a pack or a PEFT adapter.

Merges, families and audits read their members through this and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from kinfold.checkpoint import DTYPES, Checkpoint, digests, fingerprint
from kinfold.checkpoint.adapter import is_adapter
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.errors import CheckpointError, PackError, WrongBaseError
from kinfold.pack import coding
from kinfold.pack.files import collect, unpack
from kinfold.pack.format import FILES, PackFile
from kinfold.pack.manifest import Manifest, Piece, Unit
from kinfold.pack.restore import base_name, tensor_specs
from kinfold.pack.source import Sources
from kinfold.pack.units import FLOATS
from kinfold.report.progress import progress

Spec = tuple[str, tuple[int, ...]]  # dtype, shape
Pair = tuple[torch.Tensor, torch.Tensor]  # A (n, k) and C (d, k), float64: the delta is A C^T
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


class ModelMember(Member):
    """A model directory."""

    kind = "model"

    def __init__(self, name: str, path: Path, base: Base) -> None:
        super().__init__(name, path, base)
        self._checkpoint = Checkpoint.open(path)
        self.sources = Sources.open(base.checkpoint, self._checkpoint, base.digests)
        match = self.sources.match
        self.fingerprint = self.sources.variant_fingerprint
        self.specs = {name: (info.dtype, info.shape) for name, info in self._checkpoint.tensors.items()}
        own_prefix, base_prefix = match.prefix
        pairs = {name: base_prefix + name[len(own_prefix) :] for name in self.specs if name.startswith(own_prefix)}
        self._place(pairs, {pair.name for pair in match.pairs if pair.status == "equal"})

    def delta(self, name: str) -> torch.Tensor:
        own = self.own[name]
        dtype, shape = self.specs[own]
        if name in self.same:
            return torch.zeros(shape)
        return self.sources.delta([Piece(name=own, dtype=dtype, shape=list(shape), base=name)])

    def value(self, own_name: str) -> torch.Tensor:
        return self._checkpoint.read(own_name)

    def files(self) -> Mapping[str, bytes]:
        found, blob, _ = collect(self.base.checkpoint, self._checkpoint)
        return unpack(found, blob, self.base.checkpoint.directory)


class PackMember(Member):
    """A pack; its payloads are decoded one at a time."""

    kind = "pack"

    def __init__(self, name: str, path: Path, base: Base) -> None:
        super().__init__(name, path, base)
        self._pack = PackFile.open(path)
        self.manifest: Manifest = self._pack.manifest
        require_base(self.manifest.base.fingerprint, self.manifest.base.name, path, base)
        self.codec = self.manifest.codec
        self.fingerprint = self.manifest.variant.fingerprint
        self.specs = dict(sorted(tensor_specs(self.manifest, base.checkpoint).items()))
        self._units = {piece.name: number for number, unit in enumerate(self.manifest.units) for piece in unit.pieces}
        pairs = {name: base_name(self.manifest, name) for name in self.specs if self._has_prefix(name)}
        pairs |= {p.name: p.base for unit in self.manifest.units for p in unit.pieces if p.base is not None}
        self._place(pairs, set(self.manifest.equal))
        self._last: tuple[int, bool, dict[str, torch.Tensor]] = (-1, False, {})

    def _has_prefix(self, name: str) -> bool:
        return name.startswith(self.manifest.prefix[0])

    def delta(self, name: str) -> torch.Tensor:
        own = self.own[name]
        shape = self.specs[own][1]
        if name in self.same:
            return torch.zeros(shape)
        number = self._units.get(own)
        if number is not None:
            unit = self.manifest.units[number]
            if unit.codec != "exact" and any((p.name, p.base) == (own, name) for p in unit.pieces):
                return self._decoded(number, delta=True)[own].reshape(shape)
        reference, value = self.base.checkpoint.read(name), self.value(own)
        wide = torch.float64 if torch.float64 in (value.dtype, reference.dtype) else torch.float32
        return (value.to(wide) - reference.to(wide)).float()

    def value(self, own_name: str) -> torch.Tensor:
        target = self._target(own_name)
        if target in self._units:
            dtype, shape = self.specs[own_name]
            parts = [n for n, unit in enumerate(self.manifest.units) if any(p.name == target for p in unit.pieces)]
            if len(parts) == 1:
                return self._decoded(parts[0], delta=False)[target]
            whole = torch.empty(shape, dtype=DTYPES[dtype])
            for number in parts:  # a tensor that grew lies in two units
                piece = next(p for p in self.manifest.units[number].pieces if p.name == target)
                whole[slice(*piece.rows) if piece.rows else ...] = self._decoded(number, delta=False)[target]
            return whole
        return self.base.checkpoint.read(base_name(self.manifest, target))

    def files(self) -> Mapping[str, bytes]:
        blob = self._pack.entry(FILES) if FILES in self._pack.entries else b""
        return unpack(self.manifest.files, blob, self.base.checkpoint.directory)

    def factors(self, name: str) -> Pair | None:
        number = self._units.get(self.own[name])
        if name in self.same or number is None:
            return None
        found = coding.factors(self.manifest.units[number], self._pack.payload(number), self.manifest.seed)
        return None if found is None else (found[0].double(), found[1].double())

    def _target(self, own: str) -> str:
        return self.manifest.alias.get(own, own)

    def _decoded(self, number: int, *, delta: bool) -> dict[str, torch.Tensor]:
        """The pieces of a unit by name; the last unit is kept, for small tensors share one."""
        if self._last[:2] != (number, delta):
            unit, payload = self.manifest.units[number], self._pack.payload(number)
            found = coding.decode_delta(unit, payload, self.manifest.seed) if delta else self._values(unit, payload)
            self._last = (number, delta, {piece.name: tensor for piece, tensor in found})
        return self._last[2]

    def _values(self, unit: Unit, payload: bytes) -> list[tuple[Piece, torch.Tensor]]:
        def read(piece: Piece) -> torch.Tensor:
            assert piece.base is not None  # decode asks for pieces with a base only
            return self.base.checkpoint.read(piece.base, piece.row_range)

        return list(coding.decode(unit, payload, self.manifest.seed, read))


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


def open_member(path: PathLike, base: Base, name: str | None = None) -> Member:
    """A member of whatever kind lies at `path`.

    Raises:
        CheckpointError, PackError, AdapterError: nothing readable is there.
        WrongBaseError: a pack of another base.
    """
    from kinfold.pack.adapter_member import AdapterMember  # it stands on this module

    path = Path(path)
    kind = PackMember if path.is_file() else AdapterMember if is_adapter(path) else ModelMember
    if not path.exists():
        raise CheckpointError(
            f"there is no `{path}`; a member is a model directory, a pack, or a PEFT adapter folder",
            hint=f"ls {path.parent}",
        )
    return kind(name or stem(path), path, base)


def stem(path: Path) -> str:
    """The name a member goes by when the user gave none."""
    return path.resolve().name.removesuffix(".safetensors").removesuffix(".kin")


def open_members(
    members: Sequence[PathLike] | Mapping[str, PathLike], base: Base, error: type[Exception] = PackError
) -> list[Member]:
    """All members of one base, in the order given.

    Raises:
        error: two members of one name.
    """
    named = members.items() if isinstance(members, Mapping) else [(stem(Path(path)), path) for path in members]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise error(f"two members are called `{name}`; names are the stems of their paths, and each must differ")
    return [open_member(path, base, name) for name, path in named]
