"""The commands that look for harm in members of a family: `kinfold audit ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App

from kinfold.cli.app import AsFormat, Switch, app
from kinfold.cli.output import DONE, FOUND, emit, facts, out, say_hint, table
from kinfold.errors import AuditError

audit = App(name="audit", help="Look for members of a family that harm the others.")
app.command(audit)


@audit.command
def dominance(
    *members: Path,
    base: Path,
    weights: Path | None = None,
    reference: tuple[Path, ...] = (),
    alpha: float = 0.05,
    check: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> int:
    """Say whether one member outweighs the others, or takes their sum away.

    Example: kinfold audit dominance A.kin.safetensors B.kin.safetensors C_DIR D_DIR --base BASE

    Parameters
    ----------
    members
        Packs and model directories of one base.
    base
        Model directory of the base.
    weights
        JSON file: what a mean would weigh each member by, a list in their order or an object by name.
    reference
        Folder with the members of a family of the same base known to be honest; may be repeated.
    alpha
        A member is flagged at a p value up to this, where there are references.
    check
        Exit with 3 when a member is flagged.
    format
        human or json.
    """
    from kinfold.audit import dominance as measure

    report = measure(
        list(members), base=base, weights=_weights(weights) if weights else None, reference=reference, alpha=alpha
    )

    emit(report, format, lambda: _show(report, members, base))
    return FOUND if check and report.flagged else DONE


def _weights(path: Path) -> Any:
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as cause:
        raise AuditError(f"cannot read weights from `{path}`: {cause}", hint='[1, 1, 2] or {"NAME": 1}') from cause
    values = list(given.values()) if isinstance(given, dict) else given
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise AuditError(f"`{path}` holds no weights", hint='write [1, 1, 2] or {"NAME": 1, "OTHER": 2}')
    return given


def _show(report: Any, members: tuple[Path, ...], base: Path) -> None:
    """A `DominanceReport`, the worst member first."""
    columns = ["member", "flag", "norm ratio", "deviation", "share", "cancellation", "cosine to rest", "influence"]
    order = sorted(report.members, key=lambda row: (row.name not in report.flagged, -(row.deviation or 0.0)))
    rows = [
        [
            row.name,
            ", ".join(row.flags),
            *(_figure(value) for value in (row.norm_ratio, row.deviation, row.share)),
            *(_figure(value) for value in (row.cancellation, row.cosine_rest, row.influence)),
            f"{row.nearest} ({row.nearest_cosine:.2f})",
        ]
        for row in order
    ]
    table([*columns, "nearest"], rows, left=2)
    out.print()
    pairs = [("verdict", report.sentence)]
    pairs += [("copies", f"{', '.join(group)}: judged as one") for group in report.copies]
    pairs += [
        ("family", f"cohesion {_figure(report.cohesion)}, {report.effective_members:.3g} effective members"),
        ("limits", _limits(report.thresholds)),
        *(("note", note) for note in report.notes),
    ]
    facts(pairs)
    if report.flagged:
        rest = [str(path) for path, row in zip(members, report.members, strict=True) if row.name not in report.flagged]
        say_hint(f"kinfold audit dominance {' '.join(rest)} --base {base}")


def _limits(limits: Any) -> str:
    return (
        f"deviation {limits.deviation:g}, norm ratio {limits.norm_ratio:g}, cancellation -{limits.cancellation:g}, "
        f"cohesion {limits.cohesion:g}, share {limits.share:g}/N, copies {limits.copy_cosine:g}"
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
