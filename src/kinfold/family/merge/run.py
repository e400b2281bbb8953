"""`merge`: one model out of many variants, a tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinfold._version import __version__
from kinfold.checkpoint import DTYPES, Checkpoint, CheckpointWriter, atomic_directory
from kinfold.checkpoint.atomic import refuse_existing
from kinfold.codec.sums import is_finite
from kinfold.codec.threads import return_large_buffers
from kinfold.errors import MergeError, OutputError
from kinfold.family.merge.choice import choose
from kinfold.family.merge.gram import gram_matrix
from kinfold.family.merge.layout import Layout, Output, dtype_name, lay_out
from kinfold.family.merge.report import MemberRow, MergeReport, merge_card
from kinfold.family.merge.work import Work
from kinfold.family.watch import Watch, require_mode, watch
from kinfold.pack.files import write_files
from kinfold.pack.member import Base, PathLike
from kinfold.pack.members import open_members
from kinfold.report.progress import progress


def merge(
    base: PathLike,
    variants: Sequence[PathLike] | Mapping[str, PathLike],
    out: PathLike,
    *,
    method: str = "ties",
    weights: Sequence[float] | None = None,
    inner: str | None = None,
    heads: str = "error",
    dominance: Watch = "warn",
    seed: int = 0,
    overwrite: bool = False,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> MergeReport:
    """Write one model made of many variants of a base. Not reversible; for that there are families.

    Tensors are merged one at a time: memory holds the members' deltas of one tensor in float32 and about three
    tensors more, for any number of tensors.

    Args:
        base: model directory that all variants were tuned from.
        variants: model directories or packs, mixed; a mapping names them, else they go by the stem of their path.
        out: the model directory to write; it appears whole or not at all.
        method: linear, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, knots, core_space; clip_mean,
            geomedian, centered_clip, multikrum, median, trimmed_mean; or one of another package.
        weights: one a variant, none of them 0; 1 each unless given.
        inner: the rule within knots, core_space or della: ties or task_arithmetic.
        heads: for tensors that not every variant shares with the base (task heads, resized vocabularies): `error`
            lists them, `base` keeps the base's, a variant's name takes that variant's, and its names and files.
        dominance: what to do if a member outweighs or cancels the rest: `warn` in the report, `refuse`, or `off`.
        seed: of methods that draw.
        overwrite: replace an existing `out`.
        dtype: of the merged model, such as "bfloat16"; None keeps the base's, tensor by tensor.
        **options: of the method; an unknown one is refused with the list.

    Raises:
        DominanceError: a member is flagged, and that was to be refused.
        MergeError: unknown method or option, weights or members that do not fit it, tensors that cannot be merged,
            a member with NaN, or values too large for the dtype.
        WrongBaseError: a pack of another base.
        CheckpointError, PackError: a member cannot be read.
        OutputError: `out` exists, is one of the inputs, or the disk is full.
    """
    out, kind, choice = Path(out), dtype_name(dtype), choose(method, inner, options)
    if isinstance(variants, (str, Path)):
        variants = [variants]
    weights = _checked(weights, len(variants))
    choice.check(weights)
    require_mode(dominance, MergeError)
    _refuse_inputs(out, [base, *(variants.values() if isinstance(variants, Mapping) else variants)], overwrite)
    return_large_buffers()
    opened = Base.open(base)
    members = open_members(variants, opened, MergeError)
    layout = lay_out(opened, members, heads, kind)
    verdict = watch(members, dominance, MergeError, weights if min(weights) > 0 else None)
    work = _prepared(Work(opened, members, weights, choice, seed), layout)
    with atomic_directory(out, overwrite=overwrite) as temporary:
        passed_by = _write(temporary, work, layout)
        write_files(temporary, _files(work, layout, kind))
        report = _report(out, work, layout, heads, passed_by, Checkpoint.open(temporary).nbytes, verdict)
        (temporary / "KINFOLD.md").write_text(merge_card(report), "utf-8")
    return report


def _checked(weights: Sequence[float] | None, count: int) -> list[float]:
    if count == 0:
        raise MergeError("there is nothing to merge; give at least one variant")
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise MergeError(f"{len(weights)} weights were given for {count} variants; give one each, in the same order")
    for weight in weights:
        if weight == 0 or not math.isfinite(weight):
            raise MergeError(f"a weight is {weight:g}; weights are finite numbers but 0", hint="leave that variant out")
    return weights


def _refuse_inputs(out: Path, inputs: Sequence[PathLike], overwrite: bool) -> None:
    refuse_existing(out, overwrite)
    for path in inputs:
        if out.resolve() == Path(path).resolve():
            raise OutputError(f"`{out}` is itself merged", hint="choose another -o")


def _prepared(work: Work, layout: Layout) -> Work:
    """The same with what the method finds out in passes over the whole model."""
    names = [output.base for output in layout.outputs if output.merged and output.base is not None]
    rule = work.choice.rule
    if rule.method.kind == "gram":
        gram = gram_matrix(work.coordinates(names, "inner products"), len(work.members))
        return replace(work, weights=_chosen_weights(work, gram))
    if rule.method.survey is None:
        return work
    survey = rule.method.survey(lambda: work.coordinates(names, "survey"), len(work.members), **rule.options)
    return replace(work, survey=survey)


def _chosen_weights(work: Work, gram: np.ndarray) -> list[float]:
    total = sum(work.weights)
    if total == 0:
        raise MergeError("the weights sum to 0, and the method divides by that")
    rule = work.choice.rule
    shares = np.array(work.weights, np.float64) / total
    found = np.asarray(rule.method.function(gram, shares, **rule.options), np.float64)
    if found.shape != shares.shape or not np.isfinite(found).all():
        raise MergeError(f"`{rule.method.name}` gave {found.tolist()} where a finite weight a member was asked for")
    return found.tolist()


def _write(directory: Path, work: Work, layout: Layout) -> list[str]:
    """All tensors of the merged model; returns the matrices that the method's space passed by."""
    announced = ((out.name, out.dtype, out.shape) for out in layout.outputs)
    read: Callable[[str], torch.Tensor] = layout.owner.value if layout.owner else work.base.checkpoint.read
    passed_by = []
    with (
        CheckpointWriter(directory, announced) as writer,
        progress("merge", sum(output.nbytes for output in layout.outputs)) as advance,
    ):
        for output in layout.outputs:
            advance(output.nbytes)
            if output.base is None or work.unchanged(output.base):
                writer.write(output.name, read(output.name).to(DTYPES[output.dtype]))
                continue
            delta, through = work.choice.merge(work.deltas(output.base), work.weights, work.site(output.base))
            if not through and len(output.shape) > 1:
                passed_by.append(output.name)
            writer.write(output.name, _sum(work.base, delta, output))
    return passed_by


def _sum(base: Base, delta: torch.Tensor, output: Output) -> torch.Tensor:
    """The base's tensor plus what was merged, cast once."""
    assert output.base is not None  # merged tensors have one
    value, kind = base.checkpoint.read(output.base), DTYPES[output.dtype]
    wide = torch.float64 if torch.float64 in (value.dtype, kind) else torch.float32
    result = value.to(wide).add_(delta).to(kind)
    if not is_finite(result):
        raise MergeError(
            f"`{output.name}` leaves the range of {str(kind).removeprefix('torch.')} when merged",
            hint="a smaller --option scale, or --dtype float32",
        )
    return result


def _files(work: Work, layout: Layout, dtype: str | None) -> dict[str, bytes]:
    """Config and tokenizer of the base, or of the member whose heads are taken."""
    if layout.owner is not None:
        files = dict(layout.owner.files())
    else:
        checkpoint = work.base.checkpoint
        files = {path: (checkpoint.directory / path).read_bytes() for path in checkpoint.side_files()[0]}
    if dtype and "config.json" in files:  # from_pretrained believes what the config says
        config = json.loads(files["config.json"])
        name = str(DTYPES[dtype]).removeprefix("torch.")
        config |= {key: name for key in ("dtype", "torch_dtype") if key in config}
        files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return files


def _report(
    out: Path, work: Work, layout: Layout, heads: str, passed_by: list[str], nbytes: int, verdict: Any
) -> MergeReport:
    merged = [output for output in layout.outputs if output.merged]
    unchanged = sum(output.base is not None and work.unchanged(output.base) for output in merged)
    rest = len(layout.outputs) - len(merged)
    choice = work.choice
    return MergeReport(
        path=str(out),
        method=choice.method.name,
        inner=choice.inner.method.name if choice.inner else None,
        options=choice.all_options,
        members=[
            MemberRow(m.name, str(m.path), m.kind, m.codec, m.fingerprint, weight)
            for m, weight in zip(work.members, work.weights, strict=True)
        ],
        base=str(work.base.checkpoint.directory),
        base_fingerprint=work.base.fingerprint,
        seed=work.seed,
        tensors={"merged": len(merged) - unchanged, "unchanged": unchanged, "kept": rest},
        kept=layout.kept,
        left_out=layout.left_out,
        passed_by=passed_by,
        heads=heads,
        bytes=nbytes,
        created_by=f"kinfold {__version__}",
        dominance=verdict,
    )
