"""What the commands on families print for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kinfold.cli.output import facts, out, say_hint, table
from kinfold.report.progress import size


def described(report: Any, tensors: bool = False) -> None:
    """A `FamilyReport`; with `tensors`, a line for every shared layer."""
    ratio = report.kept_bytes / max(report.file_bytes, 1)
    parts = ", ".join(f"{size(count)} {kind}" for kind, count in report.bytes.items() if count)
    facts(
        [
            ("family", f"{report.path}, {len(report.members)} fine-tunes of {report.base}"),
            ("base", report.base_fingerprint),
            ("method", report.method),
            ("size", f"{size(report.file_bytes)}, 1/{ratio:.4g} of {size(report.kept_bytes)}; {parts}"),
            *(("note", note) for note in report.notes),
        ]
    )
    out.print()
    rows = [
        [row.name, str(row.own_bytes), f"{row.error:.3g}", row.worst_tensor, f"{row.worst_error:.3g}"]
        for row in report.members
    ]
    table(["member", "own bytes", "error", "worst tensor", "its error"], rows, left=1)
    if report.method == "packs" and any(row.error > 1 for row in report.members):
        out.print("an error above 1 is unbiased noise, which wide layers average out", style="dim")
    if report.others:
        out.print()
        methods = [
            [name, f"{found['mean_error']:.3g}", f"{found['worst_error']:.3g}"] for name, found in report.others.items()
        ]
        table(["method at the same bytes", "mean error", "worst error"], methods, left=1)
    if tensors:
        out.print()
        layers = [
            [row.tensor, row.codec, " ".join(f"{k}={v}" for k, v in row.params.items()), str(row.shared_bytes)]
            for row in report.layers
        ]
        table(["shared layer", "codec", "params", "bytes"], layers, left=3)


def folded(report: Any, base: Path, dry_run: bool) -> None:
    """A `FamilyReport` of `kinfold fold`."""
    described(report)
    if dry_run:
        say_hint("leave --dry-run out to write it")
    elif report.members:
        name = report.members[0].name
        say_hint(f"kinfold unfold {report.path} {name} --base {base} -o {name}-unfolded")


def unfolded(report: Any, to: str, base: Path) -> None:
    """A `RestoreReport` of `kinfold unfold`."""
    facts([(to, report.path), ("tensors", f"{report.tensors}, {size(report.bytes)}")])
    if to == "pack":
        say_hint(f"kinfold restore {report.path} --base {base} -o OUT")
