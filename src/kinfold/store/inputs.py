"""What lies at a path that is to be added: its kind, its files, and the facts for the manifest."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.adapter import Adapter, is_adapter
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.errors import StoreError
from kinfold.family.file import FamilyFile, is_family
from kinfold.family.look import member_row, report
from kinfold.pack.format import PackFile
from kinfold.report.progress import progress
from kinfold.store.manifest import BaseModelOf, Kind
from kinfold.store.segments import Scan, scan


@dataclass(frozen=True)
class Given:
    """An input that has been read once.

    Attributes:
        kind: model, pack, family or adapter.
        scans: its files, by relative path, in order.
        codec, fingerprint, reference_bytes, report: as in the manifest.
        base: what the artefact itself says of its base.
    """

    kind: Kind
    scans: dict[str, Scan]
    codec: str
    fingerprint: str | None
    reference_bytes: int
    report: dict[str, Any] = field(default_factory=dict)
    base: BaseModelOf | None = None

    @property
    def places(self) -> dict[str, tuple[Path, int, int]]:
        """File, offset and bytes of every object."""
        found = {}
        for one in self.scans.values():
            start = 0
            for segment in one.segments:
                found[segment.hash] = (one.path, start, segment.size)
                start += segment.size
        return found


def look_at(path: str | Path) -> Given:
    """Read what lies at `path`: a model directory, a pack, a family or a PEFT adapter folder.

    Raises:
        CheckpointError, PackError, AdapterError: it is damaged, or none of these.
        StoreError: a file changed meanwhile.
    """
    path = Path(path)
    files = {path.name: path} if path.is_file() else _files(path)
    before = {name: _state(file) for name, file in files.items()}
    facts = _file_facts(path) if path.is_file() else _adapter_facts(path) if is_adapter(path) else _model_facts(path)
    with progress(f"hash {path.name}", sum(size for size, _ in before.values())) as advance:
        scans = {name: scan(file, advance) for name, file in files.items()}
    given = facts(scans)
    changed = [name for name, file in files.items() if _state(file) != before[name]]
    if changed:
        raise StoreError(
            f"`{changed[0]}` of `{path}` changed while it was read", hint="wait for who writes it, run again"
        )
    return given


def _files(directory: Path) -> dict[str, Path]:
    """All files in a directory and below but hidden ones; links to files are followed."""
    found = {}
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                found[path.relative_to(directory).as_posix()] = path
    return dict(sorted(found.items()))


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as cause:
        raise StoreError(f"cannot read `{path}`: {cause}", hint=f"ls -l {path}") from cause
    return status.st_size, status.st_mtime_ns


Facts = Callable[[dict[str, Scan]], Given]  # they wait for the hashes


def _model_facts(path: Path) -> Facts:
    checkpoint = Checkpoint.open(path)

    def facts(scans: dict[str, Scan]) -> Given:
        weights = 2 * sum(info.numel for info in checkpoint.tensors.values())
        return Given("model", scans, "exact", fingerprint(specs_of(checkpoint), _digests(checkpoint, scans)), weights)

    return facts


def _adapter_facts(path: Path) -> Facts:
    adapter = Adapter.open(path)

    def facts(scans: dict[str, Scan]) -> Given:
        shapes = [lora.shape for lora in adapter.loras.values()]
        shapes += [adapter.tensors.tensors[key].shape for key in adapter.saved.values()]
        weights = sum(math.prod(shape) for shape in shapes)
        told = {"base_model_name_or_path": adapter.settings.base, "rank": adapter.settings.rank}
        name = adapter.fingerprint(_digests(adapter.tensors, scans))
        return Given("adapter", scans, "lora", name, 2 * weights, told)

    return facts


def _file_facts(path: Path) -> Facts:
    return _family_facts(path) if is_family(path) else _pack_facts(path)


def _pack_facts(path: Path) -> Facts:
    manifest = PackFile.open(path).manifest
    row = dataclasses.asdict(member_row(manifest.variant.name, manifest, 0))
    told = {key: row[key] for key in ("codecs", "error", "worst_tensor", "worst_error")}
    told |= {"variant": manifest.variant.name, "lossless": manifest.lossless, "recipe": manifest.recipe}
    base = BaseModelOf(fingerprint=manifest.base.fingerprint, name=manifest.base.name)
    name = manifest.variant.fingerprint
    return lambda scans: Given("pack", scans, manifest.codec, name, manifest.reference_bytes, told, base)


def _family_facts(path: Path) -> Facts:
    family = FamilyFile.open(path)
    known = report(family)
    kept = ("method", "bytes", "members", "shared_energy", "notes")
    told = {key: value for key, value in dataclasses.asdict(known).items() if key in kept}
    base = BaseModelOf(fingerprint=known.base_fingerprint, name=known.base)
    return lambda scans: Given("family", scans, known.method, None, known.kept_bytes, told, base)


def _digests(checkpoint: Checkpoint, scans: dict[str, Scan]) -> dict[str, str]:
    """Hashes of all tensors; those that are segments of their own have been hashed already."""
    hashed = {(one.path, name): hash for one in scans.values() for name, hash in one.tensors.items()}
    infos = checkpoint.tensors
    known = {name: hashed[info.file, name] for name, info in infos.items() if (info.file, name) in hashed}
    rest = {name: info for name, info in infos.items() if name not in known}
    return known | digests(dataclasses.replace(checkpoint, tensors=rest))
