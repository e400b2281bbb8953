"""What a family holds and what it cost: for `fold` and `inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinfold.family.file import FamilyFile, Part
from kinfold.pack.manifest import Manifest


@dataclass(frozen=True)
class MemberRow:
    """One member of a family; sizes in bytes.

    Attributes:
        name: in the family.
        own_bytes: payloads and files that are its alone.
        reference_bytes: 2 bytes for every weight in a tensor that differs from the base.
        codecs: how many of its tensors each codec codes.
        error: relative error of its deltas; above 1 it is unbiased noise.
        worst_tensor: the tensor with the largest relative error.
        worst_error: of that tensor.
    """

    name: str
    own_bytes: int
    reference_bytes: int
    codecs: dict[str, int]
    error: float
    worst_tensor: str
    worst_error: float


@dataclass(frozen=True)
class LayerRow:
    """One shared layer.

    Attributes:
        tensor: the base's name.
        codec: `rmm` or `jd`.
        params: `r` rank, `p` directions, `k` columns of the bases, `w` bits a value.
        shared_bytes: of the section that all members use.
    """

    tensor: str
    codec: str
    params: dict[str, Any]
    shared_bytes: int


@dataclass(frozen=True)
class FamilyReport:
    """What a family holds; sizes in bytes.

    Attributes:
        path: of the file.
        method: `rmm`, `jd`, `truncsvd`, `mixed` or `packs`.
        base: name of the base.
        base_fingerprint: of its tensors.
        file_bytes: of the whole file; what it would be in a dry run.
        bytes: by kind: shared, own, header.
        kept_bytes: what the members took before: the reference size of a model directory, else its files.
        members: the worst first.
        layers: those with a shared section.
        others: mean and worst error of each low-rank method in the same bytes.
        shared_energy: n ||mean D||^2 / sum ||D||^2: 1/n says that members have nothing in common, 1 that they
            are equal; None where it was not measured.
        notes: what a reader should know.
    """

    path: str
    method: str
    base: str
    base_fingerprint: str
    file_bytes: int
    bytes: dict[str, int]
    kept_bytes: int
    members: list[MemberRow]
    layers: list[LayerRow]
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    shared_energy: float | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def planned(
        cls,
        out: Path,
        method: str,
        built: tuple[Any, Mapping[str, bytes], Sequence[Part], int],
        kept_bytes: int,
        others: dict[str, dict[str, float]],
        energy: float | None,
    ) -> FamilyReport:
        """Of a dry run."""
        manifest, shared, parts, size = built
        rows = [member_row(part.name, part.manifest, part.bytes) for part in parts]
        return _report(str(out), manifest, rows, sum(map(len, shared.values())), size, kept_bytes, others, energy)


def report(
    family: FamilyFile,
    kept_bytes: int = 0,
    *,
    others: dict[str, dict[str, float]] | None = None,
    energy: float | None = None,
) -> FamilyReport:
    """Of a written family; every member's manifest is read."""
    manifests = {name: family.member_manifest(name) for name in family.manifest.members}
    rows = [member_row(name, manifest, family.own_bytes(name)) for name, manifest in manifests.items()]
    shared = sum(layer.bytes for layer in family.manifest.shared)
    kept = kept_bytes or sum(manifest.reference_bytes for manifest in manifests.values())
    return _report(str(family.path), family.manifest, rows, shared, family.file_bytes, kept, others or {}, energy)


def _report(
    path: str,
    manifest: Any,
    members: Sequence[MemberRow],
    shared: int,
    file_bytes: int,
    kept_bytes: int,
    others: dict[str, dict[str, float]],
    energy: float | None,
) -> FamilyReport:
    own = sum(row.own_bytes for row in members)
    rows = sorted(members, key=lambda row: -row.error)
    return FamilyReport(
        path=path,
        method=manifest.method,
        base=manifest.base.name,
        base_fingerprint=manifest.base.fingerprint,
        file_bytes=file_bytes,
        bytes={"shared": shared, "own": own, "header": file_bytes - shared - own},
        kept_bytes=kept_bytes,
        members=rows,
        layers=[LayerRow(layer.tensor, layer.codec, layer.params, layer.bytes) for layer in manifest.shared],
        others=others,
        shared_energy=energy,
        notes=_notes(len(members), energy),
    )


def member_row(name: str, manifest: Manifest, own_bytes: int) -> MemberRow:
    """Codecs and errors of one member, or of a pack."""
    units = [unit for unit in manifest.units if unit.norm]
    energy = sum(unit.norm**2 for unit in units)
    missed = sum((unit.norm * unit.error) ** 2 for unit in units)
    worst = max(units, key=lambda unit: unit.error, default=None)
    return MemberRow(
        name=name,
        own_bytes=own_bytes,
        reference_bytes=manifest.reference_bytes,
        codecs=dict(Counter(unit.codec for unit in manifest.units for _ in unit.pieces)),
        error=(missed / energy) ** 0.5 if energy else 0.0,
        worst_tensor=worst.pieces[0].name if worst else "",
        worst_error=worst.error if worst else 0.0,
    )


def _notes(members: int, energy: float | None) -> list[str]:
    if energy is None or members < 2:
        return []
    if energy < 1.5 / members:
        return [
            f"the members have almost nothing in common: shared energy {energy:.3f}, {1 / members:.3f} is none; "
            "sharing gains nothing over keeping each alone"
        ]
    return [
        f"the members share a part of their deltas: shared energy {energy:.3f}, {1 / members:.3f} is nothing at all"
    ]
