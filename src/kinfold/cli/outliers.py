"""The commands that look for what does not belong: `kinfold audit outliers ...`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from kinfold.checkpoint.atomic import atomic_file, refuse_existing
from kinfold.cli.app import AsFormat, Switch, named_paths
from kinfold.cli.audit import audit
from kinfold.cli.output import DONE, FOUND, as_json, emit, facts, out, say_hint, table
from kinfold.errors import AuditError

outliers = App(name="outliers", help="Look for variants and requests that do not belong.")
audit.command(outliers)
TOLD = 20
Members = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")]


@outliers.command
def variants(
    base: Path,
    *,
    accepted: Members,
    candidates: Members = (),
    method: Literal["tccm", "mahalanobis", "knn", "znorm"] = "tccm",
    preset: Literal["default", "paper"] = "default",
    level: Literal["tensor", "layer"] = "tensor",
    false_alarm: float = 0.05,
    seed: int = 0,
    fail_if_odd: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> int:
    """Say which variant is odd among its kin, and in which tensors.

    Example: kinfold audit outliers variants BASE --accepted a.kin.safetensors b.kin.safetensors ... --candidates new/

    Parameters
    ----------
    base
        Model directory of the base.
    accepted
        Five or more model directories, adapters, or packs of one codec, known to be ordinary; NAME=PATH
        gives one a name of its own.
    candidates
        Those to judge; without any, each accepted variant is judged by a model of the others.
    method
        Whose scores decide: tccm, mahalanobis, knn or znorm; all four are shown.
    preset
        Of TCCM: default or paper.
    level
        tensor, or layer to pool the matrices of a layer in very deep models.
    false_alarm
        Share of ordinary candidates that may be called odd; without candidates, the chance that any variant is.
    seed
        Of the nets and folds.
    fail_if_odd
        Exit with 3 when a variant is odd.
    format
        human or json.
    """
    from kinfold.audit.outliers import variants as judge

    report = judge(
        base,
        named_paths(accepted, AuditError),
        named_paths(candidates, AuditError),
        method=method,
        preset=preset,
        level=level,
        false_alarm=false_alarm,
        seed=seed,
    )

    emit(report, format, lambda: _show(report, base))
    return FOUND if fail_if_odd and report.odd else DONE


@outliers.command
def requests(
    base: Path,
    variant: Path,
    *,
    requests: Path,
    reference: Path | None = None,
    monitor: Path | None = None,
    filter: Literal["sum", "energy", "knn", "l2", "msp", "sal", "medix", "none"] = "sum",
    head: Literal["linear", "none", "finetune"] = "linear",
    preset: Literal["default", "paper"] = "default",
    at: str = "auto",
    k: Annotated[str, Parameter(name=["-k", "--k"])] = "auto",
    eps: float = 0.0,
    false_alarm: float = 0.05,
    fdr: float | None = None,
    max_length: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    with_text: Annotated[bool, Switch] = False,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    save_monitor: Path | None = None,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> int:
    """Say which served requests are not this variant's business, from a log without labels.

    Example: kinfold audit outliers requests BASE VARIANT --reference in-domain.jsonl --requests served.jsonl

    Parameters
    ----------
    base
        Model directory of the base.
    variant
        Model directory, pack or adapter.
    requests
        The log: JSON lines with text or messages, and an id if you like.
    reference
        In-domain requests in the same form, 50 or more, best ones the variant was not trained on.
    monitor
        Saved by --save-monitor, in place of a reference.
    filter
        What picks outliers for the head: sum (of energy and neighbours), energy, knn, msp, l2, sal, medix or none.
    head
        linear, none for the filter's own score, or finetune: trained with a copy of the model, which takes hours.
    preset
        default or paper.
    at
        Module for the gradients of l2, sal and medix: a name, auto or last-norm.
    k
        Requests that the filter picks: a number, a share below 1, or auto.
    eps
        Of medix: rounds end where the median moves by less.
    false_alarm
        Share of in-domain requests that may be flagged.
    fdr
        Flag so that at most this share of the flagged is in domain, instead.
    max_length
        Tokens a text is cut to.
    batch_size
        Texts at once.
    seed
        Of the folds.
    device
        As torch names it.
    with_text
        Keep texts in the report; logs are private.
    output
        JSON file for the report.
    save_monitor
        File to keep the fitted monitor in, for later requests.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    from kinfold.audit.outliers import requests as judge

    if output is not None:
        refuse_existing(output, overwrite)
    report = judge(
        base,
        variant,
        reference,
        requests,
        filter=filter,
        head=head,
        preset=preset,
        at=at,
        k=_number(k),
        eps=eps,
        false_alarm=false_alarm,
        fdr=fdr,
        max_length=max_length,
        batch_size=batch_size,
        seed=seed,
        device=device,
        with_text=with_text,
        monitor=monitor,
        save_monitor=save_monitor,
    )
    if output is not None:
        with atomic_file(output, overwrite=overwrite) as temporary:
            temporary.write_text(as_json(report) + "\n", "utf-8")

    emit(report, format, lambda: _show_requests(report))
    return DONE


def _number(k: str) -> int | float | Literal["auto"]:
    if k == "auto":
        return "auto"
    try:
        return int(k) if k.isdigit() else float(k)
    except ValueError as cause:
        raise AuditError(f"-k takes auto, a whole number or a share, got `{k}`", hint="-k 0.1") from cause


def _show_requests(report: Any) -> None:
    """A `RequestReport`, the flagged requests of highest score first."""
    shown = report.flagged[:TOLD]
    names = list(report.verdicts[0].parts)
    rows = [
        [
            one.id,
            f"{one.p_value:.3g}",
            f"{one.score:.3g}",
            *(f"{one.parts[name]:.3g}" for name in names),
            f"{one.copies}",
            *([] if one.text is None else [" ".join(one.text.split())[:60]]),
        ]
        for one in shown
    ]
    texts = ["text"] if any(one.text is not None for one in shown) else []
    if rows:
        table(["request", "p", "score", *names, "copies", *texts], rows)
        out.print()
    rule = f"fdr {report.fdr:g}" if report.fdr is not None else f"false alarm {report.false_alarm:g}"
    flagged = len(report.flagged)
    facts(
        [
            ("flagged", f"{flagged} of {report.requests} requests, {report.distinct} different, at {rule}"),
            *([("shown", f"the first {TOLD}; --format json or -o has all")] if flagged > TOLD else []),
            *([] if report.share is None else [("outliers", f"at least {report.share:.1%} of the log, by estimate")]),
            ("reference", f"{report.reference} requests"),
            ("by", f"filter {report.filter}, head {report.head}{f', at {report.at}' if report.at else ''}"),
            *(("note", note) for note in report.notes),
        ]
    )


def _show(report: Any, base: Path) -> None:
    """A `VariantReport`, the variant of highest score first."""
    order = sorted(report.variants, key=lambda one: -one.score)
    methods = list(order[0].methods)
    rows = [
        [
            one.name,
            one.verdict,
            *(f"{figure:.3g}" for figure in (one.score, one.threshold, one.p_value)),
            *(f"{told.score:.3g} ({told.p_value:.2g})" for told in one.methods.values()),
        ]
        for one in order
    ]
    table(["variant", "verdict", "score", "odd above", "p", *(f"{name} (p)" for name in methods)], rows, left=2)
    out.print()
    shown = [one for one in order if one.verdict == "odd"] or order[:1]
    parts = [[one.name, f"{part.share:.0%}", part.sentence] for one in shown for part in one.parts]
    table(["variant", "share", "where"], parts, left=3)
    out.print()
    pairs = [
        ("trained on", f"{len(report.accepted)} accepted variants, {report.features} statistics each"),
        *(("left out", f"{name}: not as in the base in {_who(report, who)}") for name, who in report.left_out.items()),
        *(("only there", f"{one.name}: {', '.join(one.left_out)}") for one in order if one.left_out),
        *(("note", note) for note in report.notes),
    ]
    facts(pairs)
    if report.odd:
        path = next(one.path for one in order if one.name == report.odd[0])
        say_hint(shlex.join(["kinfold", "inspect" if Path(path).is_file() else "diff", *_arguments(path, base)]))


def _who(report: Any, names: tuple[str, ...]) -> str:
    everyone = {*report.accepted, *(one.name for one in report.variants)}
    return "any variant" if everyone <= set(names) else ", ".join(names)


def _arguments(path: str, base: Path) -> list[str]:
    return [path, "--tensors"] if Path(path).is_file() else [str(base), path]
