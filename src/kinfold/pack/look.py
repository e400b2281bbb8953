"""`inspect`, `verify`, `diff`: what is in a pack, is it sound, and how do two models differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfold.checkpoint import Checkpoint, digests, match
from kinfold.codec.factors import matrix_sides
from kinfold.codec.lowrank import EXACT_SIDE, spectrum
from kinfold.codec.threads import ordered_map
from kinfold.errors import PackError, WrongBaseError
from kinfold.pack.files import unpack
from kinfold.pack.format import PackFile
from kinfold.pack.manifest import Manifest
from kinfold.pack.restore import check_base, tensors
from kinfold.report.progress import progress


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a pack.

    Attributes:
        name: in the variant.
        codec: `equal` and `alias` cost nothing; `grouped` tensors share a payload, so bytes are their part.
        shape: of the tensor.
        dtype: safetensors name.
        bytes: of its payload.
        bits_per_weight: of its payload.
        rank: of a low-rank codec, else None.
        error: relative Frobenius error of the delta; 0 is exact.
        norm: Frobenius norm of the delta; None where it was not measured.
    """

    name: str
    codec: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    bits_per_weight: float
    rank: int | None
    error: float
    norm: float | None

    @property
    def energy_kept(self) -> float:
        """1 - error^2: the share of the delta's energy that came back (below 0 for unbiased noisy codecs)."""
        return 1 - self.error**2


@dataclass(frozen=True)
class PackInfo:
    """What `inspect` tells; sizes in bytes."""

    path: str
    variant: str
    base: str
    base_fingerprint: str
    codec: str
    options: dict[str, Any]
    budget: str | None
    seed: int
    created_by: str
    file_bytes: int
    reference_bytes: int
    ratio: float
    variant_bytes: int
    ratio_to_variant: float
    overhead_bytes: int
    equal: int
    alias: int
    absent: list[str]
    files: dict[str, str]
    left_out: list[str]
    lossless: bool
    tensors: list[TensorRow]


def inspect(pack: str | Path) -> PackInfo:
    """Bytes, codec, rank and error of every tensor; reads header and manifest only.

    Raises:
        PackError: not a pack, or damaged.
    """
    opened = PackFile.open(pack)
    manifest = opened.manifest
    payloads = sum(unit.bytes for unit in manifest.units)
    return PackInfo(
        path=str(pack),
        variant=manifest.variant.name,
        base=manifest.base.name,
        base_fingerprint=manifest.base.fingerprint,
        codec=manifest.codec,
        options=manifest.options,
        budget=manifest.budget,
        seed=manifest.seed,
        created_by=manifest.created_by,
        file_bytes=opened.file_bytes,
        reference_bytes=manifest.reference_bytes,
        ratio=manifest.reference_bytes / opened.file_bytes,
        variant_bytes=manifest.variant.bytes,
        ratio_to_variant=manifest.variant.bytes / opened.file_bytes,
        overhead_bytes=opened.file_bytes - payloads,
        equal=len(manifest.equal),
        alias=len(manifest.alias),
        absent=manifest.absent,
        files={file.path: file.origin for file in manifest.files},
        left_out=manifest.left_out,
        lossless=manifest.lossless,
        tensors=_rows(manifest),
    )


def _rows(manifest: Manifest) -> list[TensorRow]:
    rows = []
    for unit in manifest.units:
        for piece in unit.pieces:
            share = piece.numel / max(unit.numel, 1)
            first = f"[{piece.rows[0]}:{piece.rows[1]}]" if piece.rows else ""
            rank = unit.params.get("k")
            rows.append(
                TensorRow(
                    name=piece.name + first,
                    codec=unit.codec,
                    shape=piece.part,
                    dtype=piece.dtype,
                    bytes=round(unit.bytes * share),
                    bits_per_weight=8 * unit.bytes / max(unit.numel, 1),
                    rank=rank if isinstance(rank, int) else None,
                    error=unit.error,
                    norm=unit.norm if len(unit.pieces) == 1 and unit.norm else None,
                )
            )
    return rows


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        path: the pack.
        sound: nothing is wrong.
        checked: what was looked at, in words.
        problem: the first thing that is wrong, or an empty string.
    """

    path: str
    sound: bool
    checked: list[str]
    problem: str


def verify(pack: str | Path, base: str | Path | None = None) -> VerifyReport:
    """Check a pack's structure and hashes; with `base`, decode every tensor as well.

    Damage to the pack is the answer, not an exception.

    Raises:
        CheckpointError: `base` cannot be read.
        WrongBaseError: `base` is not the pack's.
    """
    return verified(pack, lambda: check(PackFile.open(pack), base))


def verified(path: str | Path, looked: Callable[[], list[str]]) -> VerifyReport:
    """The report on a file that `looked` reads and says what it looked at, or raises PackError."""
    checked = ["header", "manifest"]
    try:
        checked += looked()
    except WrongBaseError:  # no damage
        raise
    except PackError as error:
        return VerifyReport(str(path), False, checked, str(error))
    return VerifyReport(str(path), True, checked, "")


def check(opened: PackFile, base: str | Path | None) -> list[str]:
    """Read all of a pack, and decode it where the base is given; what was looked at, in words.

    Raises:
        PackError: something is wrong.
    """
    opened.verify()
    checked = [f"hashes of {len(opened.manifest.entries)} entries"]
    if base is not None:
        checkpoint = Checkpoint.open(base)
        check_base(opened, checkpoint, force=False)
        checked.append("fingerprint of the base")
        files = unpack(opened.manifest.files, opened.files, checkpoint.directory)
        checked.append(f"{len(files)} files beside the weights")
        names = {piece.name for piece, _ in tensors(opened, checkpoint)}
        checked.append(f"decoding of {len(names)} tensors")
    return checked


@dataclass(frozen=True)
class DiffRow:
    """One tensor of two models.

    Attributes:
        name: in the variant, or in the base where it is absent from the variant.
        status: `changed`, `resized`, `new`, `alias` or `absent`; equal tensors are only counted.
        shape: in the variant.
        relative_norm: ||variant - base|| / ||base||, Frobenius; None where there is no base.
        cosine: between the flattened tensors.
        stable_rank: ||D||_F^2 / ||D||_2^2 of the delta of a matrix: how many directions hold it.
    """

    name: str
    status: str
    shape: tuple[int, ...]
    relative_norm: float | None = None
    cosine: float | None = None
    stable_rank: float | None = None


@dataclass(frozen=True)
class DiffReport:
    """How two model directories differ, tensor by tensor, the largest relative change first."""

    base: str
    variant: str
    equal: int
    prefix: tuple[str, str]
    rows: list[DiffRow]


def diff(base: str | Path, variant: str | Path) -> DiffReport:
    """Compare two model directories tensor by tensor.

    Raises:
        CheckpointError: a directory cannot be read.
    """
    a, b = Checkpoint.open(base), Checkpoint.open(variant)
    with progress("hash", a.nbytes + b.nbytes) as advance:
        matched = match(a, b, digests(a, advance), digests(b, advance), strict=False)
    pairs = [pair for pair in matched.pairs if pair.status != "equal"]

    def row(pair: Any) -> DiffRow:
        info = b.tensors[pair.name]
        if pair.status not in ("changed", "resized") or not info.torch_dtype.is_floating_point:
            return DiffRow(pair.name, pair.status, info.shape)
        rows = (0, pair.rows) if info.shape else None
        before, after = a.read(pair.base, rows=rows).double(), b.read(pair.name, rows=rows).double()
        delta = after - before
        norms = [float(t.norm()) for t in (before, after, delta)]
        stable = None
        if len(info.shape) > 1 and 1 < min(matrix_sides(tuple(delta.shape))) <= EXACT_SIDE:
            top = float(spectrum(delta.reshape(delta.shape[0], -1))[0])
            stable = norms[2] ** 2 / top**2 if top else 0.0
        cosine = float((before * after).sum()) / (norms[0] * norms[1]) if norms[0] * norms[1] else None
        relative = norms[2] / norms[0] if norms[0] else None
        return DiffRow(pair.name, pair.status, info.shape, relative, cosine, stable)

    rows = list(ordered_map(row, pairs, values=lambda pair: b.tensors[pair.name].numel))
    rows.sort(key=lambda r: -(r.relative_norm if r.relative_norm is not None else -1.0))
    rows += [DiffRow(name, "absent", a.tensors[name].shape) for name in matched.absent]
    return DiffReport(str(base), str(variant), matched.count("equal"), matched.prefix, rows)


__all__ = ["DiffReport", "PackInfo", "VerifyReport", "diff", "inspect", "verify"]
