"""`fold`: several variants of one base in one file, each of which can be unfolded again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kinfold.budget import Budget
from kinfold.checkpoint.atomic import refuse_existing
from kinfold.errors import BudgetError, FamilyError
from kinfold.family import joint
from kinfold.family.file import FamilyFile, write_family
from kinfold.family.gauge import shared_energy
from kinfold.family.layers import MOST_RANK, NOISY, Layers, read_layers
from kinfold.family.look import FamilyReport, report
from kinfold.family.manifest import FamilyManifest, require_name
from kinfold.family.packs import pack_members
from kinfold.family.rmm import most_directions
from kinfold.family.watch import Watch, require_mode, watch
from kinfold.pack.member import Base, Member, PathLike
from kinfold.pack.members import open_members
from kinfold.pack.source import created_by, source_of

Method = Literal["auto", "rmm", "jd", "truncsvd", "packs"]
_PAPER_RANK = 16
_WIDTHS = {"float16": 16, "float32": 32}


@dataclass(frozen=True)
class _Asked:
    """What the caller chose, checked."""

    method: str
    rank: int | Literal["auto"]
    directions: int | None
    width: int | None
    plain: bool


def fold(
    members: Sequence[PathLike] | Mapping[str, PathLike],
    out: PathLike,
    *,
    base: PathLike,
    method: Method = "auto",
    budget: str | int = "1/3",
    preset: Literal["paper"] | None = None,
    rank: int | Literal["auto"] = "auto",
    directions: int | Literal["auto"] = "auto",
    dtype: Literal["float16", "float32"] = "float16",
    low_rank: bool = False,
    dominance: Watch = "warn",
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> FamilyReport:
    """Keep several variants in one file, reversibly.

    Args:
        members: model directories, packs or PEFT adapters; a mapping names them, else names are file stems.
        out: the family to write.
        base: model directory of the base of all of them.
        method: `packs` codes each member alone with `fold`, at its share of the bytes. `rmm`, `jd` and
            `truncsvd` keep low-rank factors: with shared directions (arXiv 2510.14163), with shared bases
            (arXiv 2407.00066), or apart. `auto` takes of adapters, or with `low_rank`, for every layer whichever of
            the three loses least at the same bytes; else, or where these do not fit, `packs`.
        budget: bytes of the whole file: `4MB`, or a fraction of what the members take: 2 bytes for every changed
            weight of a model directory, the file's own bytes of a pack or an adapter.
        preset: `paper` is Reversible Model Merging as published: factors as they are, one number of directions
            for all layers, 16-bit numbers; the budget is then what it takes.
        rank: of the factors in `rmm`; `auto` tries 16, 8 and 4.
        directions: shared directions of `rmm` at every position; with a number the budget is what it takes.
        dtype: of stored numbers where `directions` is given.
        low_rank: every member must export exactly as a LoRA.
        dominance: what to do if a member outweighs or cancels the rest: `warn` in the report, `refuse`, or `off`.
        seed: of the packs.
        overwrite: replace an existing `out`.
        dry_run: say what each method would lose at the same bytes; write nothing.

    Raises:
        FamilyError: members that cannot be folded together, or impossible options.
        DominanceError: a member is flagged, and that was to be refused.
        BudgetError: malformed or too small.
        CheckpointError, PackError, WrongBaseError, AdapterError: a member cannot be read.
        OutputError: `out` exists, or the disk is full.
    """
    out = Path(out)
    refuse_existing(out, overwrite or dry_run)
    asked = _checked(method, preset, rank, directions, dtype, low_rank)
    target = Budget.parse(budget)
    require_mode(dominance, FamilyError)
    opened = Base.open(base)
    found = sorted(open_members(members, opened, FamilyError), key=lambda member: member.name)
    if not found:
        raise FamilyError("a family needs at least one member", hint="kinfold fold A B C --base BASE -o OUT")
    auto = asked.method == "auto"
    if auto:
        adapters = all(member.kind == "adapter" for member in found)
        asked = replace(asked, method="mixed" if adapters else "packs")
    watched = watch(found, dominance, FamilyError)
    whole = sum(_own_bytes(member) for member in found)
    total = target.file_bytes(whole)
    if total is None:
        raise FamilyError(f"`{target.text}` is no budget of a family", hint="--budget 4MB, or --budget 1/3")
    for member in found:
        require_name(member.name)
    skeleton = FamilyManifest(
        created_by=created_by(),
        method=asked.method,
        budget=target.text if asked.directions is None else None,
        seed=seed,
        base=source_of(opened.checkpoint, opened.fingerprint),
        members=[member.name for member in found],
    )
    others: dict[str, dict[str, float]] = {}
    energy = None
    built = pack_members(found, skeleton, total, target.text) if asked.method == "packs" else None
    if built is None or (dry_run and not any(member.codec in NOISY for member in found)):
        with tempfile.TemporaryDirectory(prefix="kinfold-") as folder:
            rank_read = MOST_RANK
            if isinstance(asked.rank, int):
                rank_read = asked.rank if asked.plain else max(asked.rank, MOST_RANK)
            layers = read_layers(found, Path(folder), as_given=asked.plain, rank=rank_read)
            _check_directions(asked, layers)
            energy = _shared(layers)
            try:
                planned, others = _low_rank(found, layers, skeleton, asked, total, target.text, dry_run=dry_run)
            except BudgetError:  # of the packs' rivals in a dry run, it says only that they do not fit
                if built is None and not auto:
                    raise
            else:
                built = built or planned
    if built is None:  # packs can be smaller than the least low-rank layers
        skeleton, asked = skeleton.model_copy(update={"method": "packs"}), replace(asked, method="packs")
        built = pack_members(found, skeleton, total, target.text)
    if dry_run:
        told = FamilyReport.planned(out, asked.method, built, whole, others, energy)
    else:
        write_family(out, *built[:3], overwrite=overwrite)
        told = report(FamilyFile.open(out), whole, others=others, energy=energy)
    warning = [watched.sentence] if watched and watched.verdict in ("flagged", "undecided") else []
    return replace(told, notes=[*warning, *told.notes])


def _checked(
    method: str, preset: str | None, rank: int | str, directions: int | str, dtype: str, low_rank: bool
) -> _Asked:
    known = ("auto", *joint.METHODS, "packs")
    if method not in known:
        raise FamilyError(f"no method is called `{method}`; there are {', '.join(known)}", hint="--method auto")
    if preset not in (None, "paper"):
        raise FamilyError(f"no preset is called `{preset}`; there is `paper`", hint="--preset paper")
    wanted = None if directions == "auto" else directions
    if preset == "paper":
        wanted = 1 if wanted is None else wanted
        rank = _PAPER_RANK if rank == "auto" else rank
    if wanted is not None and method == "auto":
        method = "rmm"
    if wanted is not None and (type(wanted) is not int or wanted < 0):
        raise FamilyError(f"`directions` must be a whole number from 0, got {wanted!r}", hint="--directions 2")
    if wanted is not None and method != "rmm":
        raise FamilyError(f"`directions` belong to `rmm`, not to `{method}`", hint="--method rmm, or leave them out")
    if rank != "auto" and (type(rank) is not int or rank < 1):
        raise FamilyError(f"`rank` must be a whole number from 1, or `auto`, got {rank!r}", hint="--rank 16")
    if dtype not in _WIDTHS:
        raise FamilyError(f"`dtype` is {' or '.join(_WIDTHS)}, got {dtype!r}", hint="--dtype float16")
    if method == "auto" and low_rank:
        method = "mixed"
    if low_rank and method == "packs":
        raise FamilyError("members kept as packs are no LoRAs", hint="--method auto --low-rank")
    width = None if wanted is None else _WIDTHS[dtype]
    return _Asked(method, rank, wanted, width, preset == "paper")  # pyright: ignore[reportArgumentType]


def _own_bytes(member: Member) -> int:
    if member.kind == "model":
        return member.reference_bytes
    files = [member.path] if member.path.is_file() else sorted(member.path.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


def _check_directions(asked: _Asked, layers: Layers) -> None:
    n, p = len(layers.members), asked.directions
    if p is None:
        return
    if n == 1 and p > 0:
        raise FamilyError(
            "one member has nothing to share a direction with", hint="--method truncsvd, or fold it with others"
        )
    rank = joint.ranks_for(layers, asked.rank)[0]
    if p == 0 and n > 1:
        raise FamilyError(
            "with 0 directions only the mean of the factors is kept, and all members become one", hint="--directions 1"
        )
    most, even = most_directions(n, rank), rank * (n - 1) / (rank + n)
    if n > 1 and p > min(most, even):
        raise FamilyError(
            f"{p} directions of rank {rank} for {n} members cost more than keeping each member's factors, which is "
            f"as much as {even:.3g} directions",
            hint=f"--directions {int(even)}, or --method truncsvd" if even >= 1 else "--method truncsvd",
        )


def _shared(layers: Layers) -> float:
    """n ||mean D||^2 / sum ||D||^2 over all layers."""
    joint_part = total = 0.0
    for layer in layers:
        energy = sum(layer.norms)
        joint_part += shared_energy(layer.pairs) * energy * len(layer.members) / len(layers.members)
        total += energy
    return joint_part / total if total else 0.0


def _low_rank(
    members: Sequence[Member],
    layers: Layers,
    skeleton: FamilyManifest,
    asked: _Asked,
    total: int,
    text: str,
    *,
    dry_run: bool,
) -> tuple[joint.Built, dict[str, dict[str, float]]]:
    own = joint.METHODS if asked.method in ("mixed", "packs") else (asked.method,)
    wanted = joint.METHODS if dry_run and asked.directions is None else own
    ranks = joint.ranks_for(layers, asked.rank)
    options = joint.options(layers, wanted, ranks, asked.directions, asked.width, asked.plain)
    room = total if asked.directions is None else 1 << 60
    kept = joint.keep_rest(members, layers, room if asked.directions is None else sum(map(_own_bytes, members)))

    def build(left: int) -> joint.Assembled | None:
        chosen = joint.pick(options, own, left)
        return None if chosen is None else joint.assemble(layers, chosen, kept, skeleton, plain=asked.plain)

    built = joint.fitted(build, joint.smallest(options, own), room, text)
    others: dict[str, dict[str, float]] = {}
    layer_bytes = joint.layer_bytes(*built[1:3])
    for method in wanted:
        plan = joint.pick(options, (method,), layer_bytes)
        if plan is not None:
            others[method] = _errors(layers, plan)
    if len(own) > 1:
        mixed = joint.pick(options, own, layer_bytes)
        others |= {"mixed": _errors(layers, mixed)} if mixed else {}
    return built, others


def _errors(layers: Layers, plan: Sequence[joint.Option]) -> dict[str, float]:
    """Relative error of a plan: mean and worst over the members."""
    errors = [0.0] * len(layers.members)
    for numbers, option in zip(layers.pieces.values(), plan, strict=True):
        for number, error in zip(numbers, option.errors, strict=True):
            errors[number] += error
    roots = [error**0.5 for error in errors]
    return {"mean_error": sum(roots) / len(roots), "worst_error": max(roots)}
