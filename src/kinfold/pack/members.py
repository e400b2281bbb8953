"""The kinds of members, and opening whatever lies at a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kinfold.checkpoint import DTYPES, Checkpoint, CheckpointWriter, atomic_directory
from kinfold.checkpoint.adapter import is_adapter
from kinfold.errors import CheckpointError, PackError
from kinfold.pack import coding
from kinfold.pack.adapter_member import AdapterMember
from kinfold.pack.files import collect, unpack, write_files
from kinfold.pack.format import PackFile
from kinfold.pack.manifest import Manifest, Piece
from kinfold.pack.member import Base, Member, Pair, PathLike, require_base, stem
from kinfold.pack.restore import base_name, decode_unit, tensor_specs
from kinfold.pack.source import Deltas, Sources, difference
from kinfold.pack.units import pieces_of


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

    def skeleton(self, **facts: Any) -> tuple[Manifest, bytes]:
        found, blob, left_out = collect(self.base.checkpoint, self._checkpoint)
        return self.sources.manifest(found, left_out, **facts), blob

    @property
    def deltas(self) -> Deltas:
        return self.sources

    def pieces(self) -> list[Piece]:
        pairs = self.sources.match.pairs
        return [piece for pair in pairs for piece in pieces_of(pair, self._checkpoint)]


class PackMember(Member):
    """A pack; its payloads are decoded one at a time."""

    kind = "pack"

    def __init__(self, name: str, path: Path, base: Base, opened: PackFile | None = None) -> None:
        super().__init__(name, path, base)
        self._pack = opened or PackFile.open(path)
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
        return difference(self.value(own), self.base.checkpoint.read(name))

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
        return unpack(self.manifest.files, self._pack.files, self.base.checkpoint.directory)

    def skeleton(self, **facts: Any) -> tuple[Manifest, bytes]:
        update = {"units": [], "entries": {}, "options": {}, **facts}
        return self.manifest.model_copy(update=update), self._pack.files

    def pieces(self) -> list[Piece]:
        return [piece for unit in self.manifest.units for piece in unit.pieces]

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
        last = self._last  # another thread may put its own unit there meanwhile
        if last[:2] != (number, delta):
            unit, payload = self.manifest.units[number], self._pack.payload(number)
            seed = self.manifest.seed
            if delta:
                found = coding.decode_delta(unit, payload, seed)
            else:
                found = decode_unit(unit, payload, seed, self.base.checkpoint)
            self._last = last = (number, delta, {piece.name: tensor for piece, tensor in found})
        return last[2]


def open_member(path: PathLike, base: Base, name: str | None = None) -> Member:
    """A member of whatever kind lies at `path`.

    Raises:
        CheckpointError, PackError, AdapterError: nothing readable is there.
        WrongBaseError: a pack of another base.
    """
    path = Path(path)
    kind = PackMember if path.is_file() else AdapterMember if is_adapter(path) else ModelMember
    if not path.exists():
        raise CheckpointError(
            f"there is no `{path}`; a member is a model directory, a pack, or a PEFT adapter folder",
            hint=f"ls {path.parent}",
        )
    return kind(name or stem(path), path, base)


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


def materialise(member: Member, out: Path, *, overwrite: bool = False) -> None:
    """Write a member as a model directory, one tensor at a time; it appears whole or not at all."""
    with atomic_directory(out, overwrite=overwrite) as temporary:
        announced = [(name, dtype, shape) for name, (dtype, shape) in member.specs.items()]
        with CheckpointWriter(temporary, announced, metadata=member.base.checkpoint.metadata) as writer:
            for name in member.specs:
                writer.write(name, member.value(name))
        write_files(temporary, member.files())
