"""The commands that look for what does not belong: `kinfold audit outliers ...`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from kinfold.cli.app import AsFormat, Switch, named_paths
from kinfold.cli.audit import audit
from kinfold.cli.output import DONE, FOUND, emit, facts, out, say_hint, table
from kinfold.errors import AuditError

outliers = App(name="outliers", help="Look for variants that do not belong.")
audit.command(outliers)
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
