"""The command that says which training rows made a variant answer so: `kinfold audit influence`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kinfold.cli.app import AsFormat, Switch
from kinfold.cli.audit import audit
from kinfold.cli.output import emit, facts, out, table
from kinfold.errors import AuditError

TEXT = 60  # characters of a row in a table
LISTS = 3  # probes that are shown to people; all are in --lines, --report and JSON


@audit.command
def influence(
    variant: Path,
    *,
    train: Path,
    probe: Path | None = None,
    base: Path | None = None,
    own: Annotated[bool, Parameter(name="--self", negative="")] = False,
    gradients: Path | None = None,
    keep: int = 4096,
    mask: Literal["entry", "neuron"] = "entry",
    masks: int = 1,
    quota: Literal["sqrt", "equal", "proportional"] = "sqrt",
    module: tuple[str, ...] = (),
    blocks: Literal["module", "joint"] = "module",
    curvature: Literal["fisher", "identity"] = "fisher",
    damping: str = "0.3",
    at: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    max_tokens: int = 512,
    task: Literal["auto", "causal-lm", "sequence-classification", "pooled-head"] = "auto",
    top: int = 20,
    suspects: Path | None = None,
    worst: int = 200,
    full: Path | None = None,
    lines: Path | None = None,
    report: Path | None = None,
    batch_size: int = 16,
    device: str = "auto",
    memory_limit: int = 2 << 30,
    seed: int = 0,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Say which training rows lowered or raised a variant's loss on probe rows.

    Example: kinfold audit influence VARIANT --base BASE --train train.jsonl --probe probe.jsonl --report why.html

    Parameters
    ----------
    variant
        Model directory, pack, or PEFT adapter.
    train
        JSONL of the rows it was trained on: text or input_ids, with label for a classifier; or prompt
        and completion (question and answer), whose loss is the completion's.
    probe
        JSONL of rows to explain; not needed with --self.
    base
        Model directory of the base: needed for packs and adapters; with it, only what differs is looked at.
    own
        List the rows that influence themselves most, which is nearly a list of the highest losses.
    gradients
        Folder to keep the compressed gradients in; run again, and rows that are there are not computed anew.
    keep
        Gradient entries kept, of all modules together: 2 bytes a row each.
    mask
        entry or neuron.
    masks
        Average over this many masks of keep / masks entries.
    quota
        How entries are shared among modules: sqrt of their sizes, equal or proportional.
    module
        Name of a module in the base to look at instead of all that differ; may be repeated.
    blocks
        Curvature within each module, or joint.
    curvature
        fisher, or identity for plain inner products of gradients.
    damping
        Relative to the mean eigenvalue of the Fisher matrix; or sweep, where the rows say which are wrong.
    at
        Where gradients are taken on the way from the base (0) to the variant (1); 0.25 finds the rows of a fact best.
    reduction
        Of the losses of a row's tokens: mean or sum.
    max_tokens
        Longer rows are cut to this many tokens, or to what the model reads at once.
    task
        auto, causal-lm, sequence-classification or pooled-head.
    top
        Rows listed at each end.
    suspects
        JSONL to write the worst rows to, as they are: those that raise the probes' loss most, or with --self those
        of the highest influence on themselves.
    worst
        How many.
    full
        Safetensors file to write all scores to.
    lines
        JSONL to write every listed row to, with its scores.
    report
        HTML file to write, with the rows' texts.
    batch_size
        Most rows a batch.
    device
        auto, cpu, cuda, ...
    memory_limit
        Bytes that curvature and kept scores may take.
    seed
        Of the mask.
    overwrite
        Replace existing outputs.
    format
        human or json.
    """
    from kinfold.audit import influence as measure
    from kinfold.audit.influence.report import write_lines, write_report, write_scores, write_suspects
    from kinfold.checkpoint.atomic import refuse_existing
    from kinfold.report.html import require_jinja2
    from kinfold.tasks import read_rows

    if (probe is None) != own:
        raise AuditError("rows to explain, or the rows' influence on themselves?", hint="either --probe FILE or --self")
    for path in (suspects, full, lines, report):
        if path is not None:
            refuse_existing(path, overwrite)
    if report is not None:
        require_jinja2()
    rows = read_rows(train)

    found = measure(
        variant,
        base=base,
        train=rows,
        probe=probe,
        gradients=gradients,
        keep=keep,
        mask=mask,
        masks=masks,
        quota=quota,
        modules=module or None,
        blocks=blocks,
        curvature=curvature,
        damping=_damping(damping),
        at=at,
        reduction=reduction,
        max_tokens=max_tokens,
        task=task,
        top=top,
        full=full is not None,
        batch_size=batch_size,
        device=device,
        memory_limit=memory_limit,
        seed=seed,
    )

    if suspects is not None:
        write_suspects(suspects, found, rows, worst)
    if full is not None:
        write_scores(full, found)
    if lines is not None:
        write_lines(lines, found)
    if report is not None:
        write_report(report, found)
    emit(found.summary(), format, lambda: _show(found))


def _damping(text: str) -> Any:
    if text == "sweep":
        return text
    try:
        return float(json.loads(text))
    except (ValueError, TypeError) as cause:
        raise AuditError(f"damping is `{text}`; a number above 0, or sweep, is allowed") from cause


def _show(report: Any) -> None:
    """An `InfluenceReport`: the lists of the first probes, or of self-influence."""
    from kinfold.audit.influence import report as show

    for one in report.probes[:LISTS]:
        out.print(show.heading(one, 100), markup=False)
        for name, rows in (("top", one.top), ("bottom", one.bottom)):
            table([name, *show.columns(True)], [[str(n), *show.cells(r, TEXT)] for n, r in enumerate(rows, 1)], left=3)
            out.print()
        out.print(show.agreement(one), markup=False)
        out.print()
    if not report.probes:
        rows = [[str(n), *show.cells(r, TEXT)] for n, r in enumerate(report.self_top, 1)]
        table(["self", *show.columns(False)], rows, left=3)
        out.print()
    hidden = len(report.probes) - LISTS
    if hidden > 0:
        out.print(f"{hidden} more lists: --report FILE.html, --lines FILE.jsonl or --format json\n", markup=False)
    facts(show.facts(report))
