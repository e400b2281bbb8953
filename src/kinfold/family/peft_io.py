"""`export`: a variant as a PEFT adapter that any multi-LoRA server can load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinfold.checkpoint import DTYPES, CheckpointWriter, atomic_directory
from kinfold.checkpoint.adapter import WEIGHTS
from kinfold.checkpoint.adapter_config import write_config
from kinfold.checkpoint.atomic import refuse_existing
from kinfold.checkpoint.header import size_of
from kinfold.codec.sums import squared_norm
from kinfold.errors import AdapterError, FamilyError, OutputError
from kinfold.family.artefact import artefact as packed
from kinfold.family.peft_content import Content, gather
from kinfold.family.peft_plan import VLLM_RANKS, Engine, Plan, plan
from kinfold.pack.member import Base, Member, stem
from kinfold.pack.members import PackMember, open_member
from kinfold.pack.skeleton import Skeleton, skeleton
from kinfold.report.progress import progress

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class FactorRow:
    """One low-rank tensor: its name in the variant, its rank, ||D - A C^T|| / ||D||."""

    name: str
    rank: int
    error: float


@dataclass(frozen=True)
class LeftOut:
    """A changed tensor that the adapter lacks, why, and its share of ||delta||^2; None where it has no delta."""

    name: str
    why: str
    share: float | None


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    Attributes:
        path: the adapter's folder.
        base: as given; the adapter's config names it so.
        model: the class of transformers whose module names it uses; None where that is not known.
        engine: for which it was made.
        bytes: of its weight file.
        rank: the largest; `lora_alpha` is the same, so that every scaling is 1.
        modules: how many are adapted.
        tensors: the low-rank ones.
        whole: full names of the modules kept whole.
        biases: how many travel as `lora_B.bias`.
        left_out: what does not travel.
        error: Frobenius norm of what is lost, left-out tensors included, relative to the delta's.
        max_lora_rank: the least value of vLLM's flag that takes the adapter; None above its largest.
        notes: what a reader should know.
    """

    path: str
    base: str
    model: str | None
    engine: str
    bytes: int
    rank: int
    modules: int
    tensors: list[FactorRow]
    whole: list[str]
    biases: int
    left_out: list[LeftOut]
    error: float
    max_lora_rank: int | None
    notes: list[str]


def export(
    artefact: str | Path,
    out: str | Path,
    *,
    base: str | Path,
    to: Literal["peft"] = "peft",
    member: str | None = None,
    rank: int | None = None,
    engine: Engine = "peft",
    partial: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Write a variant as a LoRA adapter in PEFT's layout, every scaling 1 (Hu et al. 2021, arXiv 2106.09685).

    Matrices become factors: as they are where the artefact keeps them, else by the leading singular triplets of
    their delta. Norms, heads and other modules travel whole, biases beside the factors.

    Args:
        artefact: a pack, a family, a model directory, or an adapter folder.
        out: the folder to write; it appears whole or not at all.
        base: model directory of the base; the adapter names it as given.
        to: the layout.
        member: of a family; the other artefacts hold one variant.
        rank: the most a tensor may have; None keeps the artefact's own factors, and gives a dense delta 16.
        engine: `vllm` leaves out what vLLM refuses.
        partial: write the adapter though something is left out.
        overwrite: replace an existing `out`.

    Raises:
        AdapterError: something cannot travel and `partial` is not given; nothing is to be exported; `rank`, `to`
            or `engine` is impossible.
        FamilyError: no such member, none is named, or one is for something that is no family.
        PackError, WrongBaseError, CheckpointError: the artefact or the base cannot be read.
        OutputError: `out` exists, or the disk is full.
    """
    out = Path(out)
    _check_options(to, rank, engine)
    refuse_existing(out, overwrite)
    if out.resolve() in (Path(base).resolve(), Path(artefact).resolve()):
        raise OutputError(f"`{out}` is what the adapter is made from", hint="choose another -o")
    variant = open_variant(Path(artefact), Base.open(base), member)
    return export_member(variant, out, base=str(base), rank=rank, engine=engine, partial=partial, overwrite=overwrite)


def export_member(
    variant: Member,
    out: Path,
    *,
    base: str,
    rank: int | None = None,
    engine: Engine = "peft",
    partial: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """`export` of a variant that is open; `base` is what the adapter's config shall name.

    Raises:
        AdapterError, OutputError: as `export`.
    """
    bones = _skeleton(variant)
    chosen = plan(variant, bones, engine)
    if chosen.left and not partial:
        _refuse_left(variant, chosen)
    content = gather(variant, bones, chosen, rank, or_whole=engine == "peft")
    if not content.ranks:
        raise AdapterError(f"`{variant.name}` does not differ from `{base}` in anything that can be exported")
    left = _left_out(chosen, content)
    fit = _vllm_rank(max(content.ranks.values()), engine)
    with atomic_directory(out, overwrite=overwrite) as folder:
        _write_tensors(folder / WEIGHTS, variant, content)
        write_config(
            folder,
            base,
            content.ranks,
            saved=chosen.whole,
            bias=bool(chosen.biases),
            transposed=content.transposed,
        )
        (folder / "KINFOLD.md").write_text(_card(variant, base, left), "utf-8")
        nbytes = (folder / WEIGHTS).stat().st_size
    energy = sum(content.energies.values())
    return ExportReport(
        path=str(out),
        base=base,
        model=None if bones is None else bones.model,
        engine=engine,
        bytes=nbytes,
        rank=max(content.ranks.values()),
        modules=len(content.ranks),
        tensors=_rows(chosen, variant, content),
        whole=sorted(chosen.whole),
        biases=len(chosen.biases),
        left_out=left,
        error=math.sqrt(sum(content.lost.values()) / energy) if energy else 0.0,
        max_lora_rank=fit,
        notes=chosen.notes,
    )


def _check_options(to: str, rank: int | None, engine: str) -> None:
    if to != "peft" or engine not in ("peft", "vllm"):
        raise AdapterError(f"cannot export to `{to}` for `{engine}`; only to `peft`, for `peft` or `vllm`")
    if rank is not None and rank < 1:
        raise AdapterError(f"rank {rank} is impossible; it is at least 1", hint="--rank 16")


def open_variant(path: Path, base: Base, member: str | None = None) -> Member:
    """The variant in a pack, family, model directory or adapter folder; `member` is for families alone.

    Raises:
        FamilyError: no such member, none is named, or one is for something that is no family.
        PackError, WrongBaseError, AdapterError, CheckpointError: it cannot be read.
    """
    if path.is_file():
        return PackMember(member or stem(path), path, base, packed(path, member))
    if member is not None:
        raise FamilyError(f"`{path}` is no family and holds one variant", hint="leave out --member")
    return open_member(path, base)


def _skeleton(variant: Member) -> Skeleton | None:
    config = variant.files().get("config.json")
    return None if config is None else skeleton(config)


def _refuse_left(variant: Member, chosen: Plan) -> None:
    energies = {variant.own[name]: squared_norm(variant.delta(name)) for name in variant.changed}
    total = sum(energies.values())
    share = sum(energies.get(own, 0.0) for own in chosen.left) / total if total else 0.0
    shown = sorted(chosen.left, key=lambda own: -energies.get(own, math.inf))[:5]
    reasons = "; ".join(f"`{own}`{'' if own in energies else ' (new)'}: {chosen.left[own]}" for own in shown)
    more = f"; and {len(chosen.left) - len(shown)} more" if len(chosen.left) > len(shown) else ""
    raise AdapterError(
        f"{len(chosen.left)} changed tensors of `{variant.name}`, {share:.1%} of its delta's energy, cannot travel: "
        f"{reasons}{more}",
        hint="--partial exports the rest",
    )


def _vllm_rank(largest: int, engine: Engine) -> int | None:
    fit = next((rank for rank in VLLM_RANKS if rank >= largest), None)
    if fit is None and engine == "vllm":
        raise AdapterError(f"vLLM takes ranks up to {VLLM_RANKS[-1]}, not {largest}", hint=f"--rank {VLLM_RANKS[-1]}")
    return fit


def _write_tensors(path: Path, variant: Member, content: Content) -> None:
    specs = {key: (_NAMES[tensor.dtype], tuple(tensor.shape)) for key, tensor in content.tensors.items()}
    specs |= {key: variant.specs[own] for key, own in content.whole.items()}
    announced = [(key, dtype, shape) for key, (dtype, shape) in specs.items()]
    total = sum(size_of(dtype, shape) for _, dtype, shape in announced)
    with (
        CheckpointWriter(path.parent, announced, shard_bytes=total + 1) as writer,
        progress("write", total) as advance,
    ):
        for key in specs:
            tensor = content.tensors[key] if key in content.tensors else variant.value(content.whole[key])
            writer.write(key, tensor)
            advance(tensor.nbytes)
    (path.parent / "model.safetensors").rename(path)


def _left_out(chosen: Plan, content: Content) -> list[LeftOut]:
    total = sum(content.energies.values())
    shares: Mapping[str, float] = {own: energy / total if total else 0.0 for own, energy in content.energies.items()}
    return [LeftOut(own, why, shares.get(own)) for own, why in chosen.left.items()]


def _rows(chosen: Plan, variant: Member, content: Content) -> list[FactorRow]:
    rows = []
    for own in (variant.own[name] for name in chosen.low_rank):
        found = content.found[own]
        if found.pair is not None:
            rows.append(FactorRow(own, found.pair[0].shape[1], math.sqrt(found.lost / found.energy)))
    return rows


def _card(variant: Member, base: str, left: list[LeftOut]) -> str:
    """What a reader of the folder should know; Markdown."""
    lines = [f"# {variant.name}", "", f"A LoRA adapter for `{base}`, exported by Kinfold from a {variant.kind}."]
    if left:
        lines += [
            "",
            "These changed tensors are **not** in it:",
            "",
            "| tensor | share of the delta | why |",
            "|---|---|---|",
        ]
        lines += [
            f"| `{row.name}` | {'new' if row.share is None else f'{row.share:.2%}'} | {row.why} |" for row in left
        ]
    return "\n".join(lines) + "\n"
