"""The family as a file: shared sections once, then for each member its manifest and payloads together."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from kinfold.checkpoint import atomic_file
from kinfold.checkpoint.header import TensorInfo, build_header, read_header
from kinfold.codec.factors import encode_dense, matrix_sides
from kinfold.errors import FamilyError, PackError
from kinfold.family import sections
from kinfold.family.manifest import FamilyManifest, Shared
from kinfold.pack.format import FILES, FORMAT, MANIFEST, PackFile, read_entry, read_start, short_hash
from kinfold.pack.manifest import Manifest, Unit

JOINT = ("rmm", "jd")  # codecs whose units need a shared section
_PARAMS = "s"  # of a member's unit in `rmm`: what its factors were divided by


@dataclass(frozen=True)
class Part:
    """One member as it is stored: its manifest, the payloads of its units end to end, then its files."""

    name: str
    manifest: Manifest
    payloads: bytes

    @property
    def bytes(self) -> int:
        return len(self.payloads)


def shared_entry(shared: Shared) -> str:
    return f"{shared.tensor}#{shared.codec}"


def _manifest_entry(name: str) -> str:
    return f"{name}{MANIFEST}"


def _payload_entry(name: str) -> str:
    return f"{name}#payloads"


def family_bytes(manifest: FamilyManifest, shared: Mapping[str, bytes], parts: Sequence[Part]) -> int:
    """Bytes of the whole file."""
    sealed, contents = _sealed(manifest, shared, parts)
    return len(_preamble(sealed, contents)) + sum(map(len, contents.values()))


def write_family(
    path: Path, manifest: FamilyManifest, shared: Mapping[str, bytes], parts: Sequence[Part], *, overwrite: bool = False
) -> None:
    """Write the file; it appears whole or not at all.

    Args:
        path: of the file.
        manifest: without hashes; they are filled in.
        shared: section of each layer, by the base's name of the tensor.
        parts: the members, in the manifest's order.
        overwrite: replace an existing file.
    """
    sealed, contents = _sealed(manifest, shared, parts)
    with atomic_file(path, overwrite=overwrite) as temporary, temporary.open("wb") as out:
        out.write(_preamble(sealed, contents))
        for data in contents.values():
            out.write(data)


def _sealed(
    manifest: FamilyManifest, shared: Mapping[str, bytes], parts: Sequence[Part]
) -> tuple[FamilyManifest, dict[str, bytes]]:
    contents = {shared_entry(layer): shared[layer.tensor] for layer in manifest.shared}
    for part in parts:
        contents[_manifest_entry(part.name)] = part.manifest.to_bytes()
        contents[_payload_entry(part.name)] = part.payloads
    hashes = {name: short_hash(data) for name, data in contents.items()}
    return manifest.model_copy(update={"entries": hashes}), contents


def _preamble(manifest: FamilyManifest, contents: Mapping[str, bytes]) -> bytes:
    packed = manifest.to_bytes()
    metadata = {
        "kinfold.format": FORMAT,
        "kinfold.base": manifest.base.fingerprint,
        "kinfold.family": json.dumps(manifest.members, ensure_ascii=False),
        "kinfold.manifest": blake3(packed).hexdigest(),
    }
    entries = {MANIFEST: len(packed), **{name: len(data) for name, data in contents.items()}}
    return build_header(((name, "U8", (size,)) for name, size in entries.items()), metadata) + packed


def is_family(path: Path) -> bool:
    """Whether the file says that it is a family."""
    return path.is_file() and "kinfold.family" in read_header(path, PackError)[0]


@dataclass(frozen=True)
class FamilyFile:
    """An opened family whose header and manifest have been checked; members are read when asked for."""

    path: Path
    manifest: FamilyManifest
    entries: dict[str, TensorInfo]
    file_bytes: int

    @classmethod
    def open(cls, path: str | Path) -> FamilyFile:
        """Read header and manifest.

        Raises:
            PackError: no such file, not a family, made by a newer version, truncated or damaged.
        """
        path = Path(path)
        metadata, entries, raw = read_start(path, "family", "kinfold fold VARIANT... --base BASE -o OUT")
        manifest = FamilyManifest.from_bytes(raw)
        told = (metadata.get("kinfold.base"), metadata.get("kinfold.family"))
        names = json.dumps(manifest.members, ensure_ascii=False)
        sizes = {shared_entry(layer): layer.bytes for layer in manifest.shared}
        own = [entry(name) for name in manifest.members for entry in (_manifest_entry, _payload_entry)]
        known = [MANIFEST, *sizes, *own]
        if (
            told != (manifest.base.fingerprint, names)
            or list(entries) != known
            or set(manifest.entries) != set(known) - {MANIFEST}
            or any((entry.dtype, entry.shape) != ("U8", (entry.nbytes,)) for entry in entries.values())
            or any(entries[name].nbytes != size for name, size in sizes.items())
        ):
            raise PackError(f"the entries of `{path}` are not those its manifest lists", hint="fetch the family again")
        return cls(path, manifest, entries, path.stat().st_size)

    def entry(self, name: str) -> bytes:
        """The bytes of an entry, checked against its hash."""
        data = read_entry(self.entries[name])
        if short_hash(data) != self.manifest.entries[name]:
            raise PackError(f"`{name}` of `{self.path}` is damaged: its hash differs", hint="fetch the family again")
        return data

    def shared(self, layer: Shared) -> bytes:
        """The shared section of one layer."""
        return self.entry(shared_entry(layer))

    def part(self, name: str) -> Part:
        """One member as it is stored.

        Raises:
            FamilyError: no member of that name; those there are, are listed.
            PackError: what the file holds of it is damaged.
        """
        return Part(name, self.member_manifest(name), self.entry(_payload_entry(name)))

    def member_manifest(self, name: str) -> Manifest:
        """What the file says of one member; its payloads are not read. Errors as of `part`."""
        self._require(name)
        manifest = Manifest.from_bytes(self.entry(_manifest_entry(name)))
        wanted = sum(unit.bytes for unit in manifest.units) + sum(file.bytes for file in manifest.files)
        if manifest.base.fingerprint != self.manifest.base.fingerprint or self.own_bytes(name) != wanted:
            raise PackError(f"member `{name}` of `{self.path}` contradicts its manifest", hint="fetch the family again")
        return manifest

    def _require(self, name: str) -> None:
        members = self.manifest.members
        if name not in members:
            near = difflib.get_close_matches(name, members, len(members), 0)
            shown = ", ".join(near[:20]) + (f" and {len(members) - 20} more" if len(members) > 20 else "")
            raise FamilyError(
                f"`{self.path}` has no member `{name}`; it has {shown}",
                hint=f"kinfold unfold {self.path} {near[0]} --base BASE -o OUT" if near else "",
            )

    def own_bytes(self, name: str) -> int:
        """Bytes of a member's payloads and files."""
        return self.entries[_payload_entry(name)].nbytes

    def member(self, name: str) -> FamilyMember:
        """One member as the pack it would be; only its own share and the shared sections are read."""
        part = self.part(name)
        layers = {layer.tensor: layer for layer in self.manifest.shared}
        units = [_as_pack_unit(unit, layers) for unit in part.manifest.units]
        manifest = part.manifest.model_copy(update={"units": units})
        entry = {FILES: self.entries[_payload_entry(name)]} if any(f.bytes for f in manifest.files) else {}
        return FamilyMember(self.path, manifest, entry, self.file_bytes, self, part, layers)


def _as_pack_unit(unit: Unit, layers: Mapping[str, Shared]) -> Unit:
    """A unit of shared factors becomes one of its own factors, in 32 bits."""
    if unit.codec not in JOINT:
        return unit
    layer = layers.get(unit.pieces[0].base or "")
    scale = unit.params.get(_PARAMS, 1.0)
    whole = len(unit.pieces) == 1 and unit.pieces[0].rows is None
    if layer is None or layer.codec != unit.codec or layer.shape != unit.pieces[0].shape or not whole:
        raise PackError(f"`{unit.pieces[0].name}` has no shared section that fits")
    if set(unit.params) - {_PARAMS} or type(scale) is not float or not 0 < scale < 2.0**60:
        raise PackError(f"{unit.codec}: {unit.params} are impossible params")
    rank = layer.params.get("r", layer.params.get("k"))
    if type(rank) is not int or not 0 <= rank <= min(matrix_sides(tuple(layer.shape))):
        raise PackError(f"{unit.codec}: {layer.params} are impossible params")
    size = 4 * rank * sum(matrix_sides(tuple(layer.shape)))
    return unit.model_copy(update={"codec": "truncsvd", "bytes": size, "params": {"k": rank, "w": 32}})


@dataclass(frozen=True)
class FamilyMember(PackFile):
    """A member read as a pack: shared sections and its own are put together one unit at a time."""

    family: FamilyFile
    part: Part
    layers: dict[str, Shared]

    def entry(self, name: str) -> bytes:
        """Its files; nothing else has an entry of its own."""
        return self.part.payloads[sum(unit.bytes for unit in self.part.manifest.units) :]

    def payloads(self) -> Iterator[tuple[Unit, bytes]]:
        start = 0
        for unit, stored in zip(self.manifest.units, self.part.manifest.units, strict=True):
            yield unit, self._payload(stored, start)
            start += stored.bytes

    def payload(self, number: int) -> bytes:
        units = self.part.manifest.units
        return self._payload(units[number], sum(unit.bytes for unit in units[:number]))

    def _payload(self, stored: Unit, start: int) -> bytes:
        own = self.part.payloads[start : start + stored.bytes]
        if stored.codec not in JOINT:
            return own
        layer = self.layers[stored.pieces[0].base or ""]
        section, sides = self.family.shared(layer), matrix_sides(tuple(layer.shape))
        a, c = sections.decode(layer.codec, layer.params, sides, section, own)
        scale = stored.params.get(_PARAMS, 1.0)
        return encode_dense(a * scale, c * scale, 32)

    def verify(self) -> None:
        """Decode every shared unit, so that each section's hash and length is checked."""
        for _ in self.payloads():
            pass
