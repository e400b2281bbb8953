"""What `kinfold pack` prints for people where packs go to a store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kinfold.cli import show, show_store
from kinfold.cli.output import out, say_error, table
from kinfold.report.progress import size


def packed_into(report: Any, base: Path, output: Path | None, store: str) -> None:
    """A `PackedInto`."""
    show.packed(report.pack, base, kept=output is not None)
    show_store.added(report.added, store)


def told(variant: Any) -> None:
    """A `Packed`, on one line of stderr, while others still run."""
    print(f"{variant.name}: {_became(variant)}", file=sys.stderr)  # not by rich: it would write into a live display


def _became(variant: Any) -> str:
    match variant.status:
        case "packed":
            return f"packed, {show_store.shared(variant)}, {variant.seconds:.1f} s"
        case "present":
            return f"there already, version {variant.version}"
        case "base":
            return "the base itself, left out"
        case _:
            return "failed"


def packed_all(report: Any) -> None:
    """A `PackedAll`."""
    rows = [
        [
            row.name,
            row.status,
            "" if row.version is None else str(row.version),
            str(row.bytes or ""),
            str(row.new_bytes) if row.status == "packed" else "",
            f"{row.seconds:.1f}",
        ]
        for row in report.variants
    ]
    table(["variant", "result", "version", "bytes", "new bytes", "seconds"], rows, left=2)
    counts = [(len(report.of(status)), status) for status in ("packed", "present", "base", "failed")]
    total = size(sum(row.new_bytes for row in report.variants))
    out.print(f"{', '.join(f'{count} {status}' for count, status in counts if count)}; {total} new in {report.store}")
    if report.skipped:
        out.print(f"no model directories: {', '.join(report.skipped)}", markup=False)


def failures(report: Any) -> None:
    """What failed in a `PackedAll`, and the next command."""
    for row in report.of("failed"):
        say_error(f"{row.name}: {row.error}", row.hint)
    if not report.of("failed"):
        show_store.hint("store ls", report.store)
