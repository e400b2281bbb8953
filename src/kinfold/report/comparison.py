"""A comparison of codecs as a figure, as table cells, and as an HTML page; takes what `kinfold.compare` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kinfold.checkpoint.atomic import atomic_file, refuse_existing
from kinfold.report.figures import curves, require_matplotlib
from kinfold.report.html import require_jinja2, write_page
from kinfold.report.progress import size

UNCOMPRESSED, BARE = "uncompressed variant", "bare base"
_FLOOR = -0.2  # the least gain that figures show


def measured(comparison: Any) -> str:
    """The leading figure in words, with its unit."""
    if comparison.measure == "divergence":
        nats = comparison.divergence_unit == "nats"
        return "divergence from the variant, nats" if nats else "relative distance of the hidden states"
    return "recovered gain" if comparison.measure == "gain" else f"score by {comparison.metric}"


def table_cells(comparison: Any) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a codec a row, a budget a column, the reference levels last; `*` marks the best.

    A cell is the leading figure and the bytes of the whole file, or `-` and the smallest file possible.
    """
    found = {(cell.codec, cell.budget): cell for cell in comparison.cells}
    best = {budget: comparison.best(budget) for budget in comparison.budgets}

    def cell(codec: str, budget: str) -> str:
        there = found[codec, budget]
        if there.bytes is None:
            return f"-, least {size(there.least_bytes)}" if there.least_bytes else "-"
        mark = "*" if there in best[budget] else ""
        return f"{mark}{figure_text(comparison, there.quality)} in {size(there.bytes)}"

    rows = [[codec, *(cell(codec, budget) for budget in comparison.budgets)] for codec in comparison.codecs]
    for name, level in ((UNCOMPRESSED, comparison.uncompressed), (BARE, comparison.bare)):
        rows.append([name, *[figure_text(comparison, level)] * len(comparison.budgets)])
    return ["codec", *comparison.budgets], rows


def figure_text(comparison: Any, quality: Any) -> str:
    """The leading figure of a quality; `-` where it is not a number."""
    value = comparison.value(quality)
    if value is None:
        return "-"
    return f"{value:.3g}" if comparison.measure == "divergence" else f"{value:.3f}"


def check_outputs(figure: Path | None, report: Path | None) -> None:
    """Refuse before the work what could not be written after it; None is not wanted.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        OutputError: a folder does not exist.
    """
    for path in (figure, report):
        if path is not None:
            refuse_existing(path, overwrite=True)
            require_matplotlib()
    if report is not None:
        require_jinja2()


def write_comparison_figure(path: Path, comparison: Any) -> None:
    """The figure as an SVG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the disk cannot take it.
    """
    svg = _figure(comparison)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(svg, "utf-8")


def write_comparison_report(path: Path, comparison: Any) -> None:
    """One page: the figure, the table, and every measured number.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        OutputError: the disk cannot take it.
    """
    columns, rows = table_cells(comparison)
    asked = f"Outputs were compared on {comparison.inputs}. " if comparison.inputs else ""
    scored = f"Scores are by {comparison.metric}. " if comparison.metric else ""
    write_page(
        path,
        f"{Path(comparison.variant).name}: codecs at equal bytes",
        f"A fine-tune of {Path(comparison.base).name}, {size(comparison.variant_bytes)} as stored; its changed weights "
        f"take {size(comparison.reference_bytes)} at 16 bits. {asked}{scored}{' '.join(comparison.notes)}",
        [
            {"heading": measured(comparison).capitalize(), "svg": _figure(comparison)},
            {"heading": "At equal bytes", "note": "* best at this budget", "columns": columns, "rows": rows},
            {
                "heading": "Everything measured",
                "columns": ["codec", "budget", "bytes", "relative error", "divergence", "score", "gain"],
                "rows": _numbers(comparison),
            },
        ],
    )


def _figure(comparison: Any) -> str:
    series = {
        codec: [
            (cell.bytes, comparison.value(cell.quality))
            for cell in comparison.cells
            if cell.codec == codec and comparison.value(cell.quality) is not None
        ]
        for codec in comparison.codecs
    }
    ends = [(UNCOMPRESSED, comparison.uncompressed), (BARE, comparison.bare)]
    levels = {name: comparison.value(quality) for name, quality in ends if comparison.value(quality) is not None}
    floor = None
    if comparison.measure == "gain":  # a codec far worse than nothing would flatten the rest
        lowest = min((value for points in series.values() for _, value in points), default=0.0)
        floor = max(lowest, _FLOOR) - 0.05 if lowest < 0 else None
    return curves(
        series,
        x="bytes of the whole file",
        y=measured(comparison),
        levels=levels,
        floor=floor,
        log=comparison.measure == "divergence",
    )


def _numbers(comparison: Any) -> list[list[str]]:
    def texts(quality: Any) -> list[str]:
        fields = ("error", "divergence", "score", "gain")
        values = [getattr(quality, name) if quality is not None else None for name in fields]
        return ["-" if value is None else f"{value:.4g}" for value in values]

    rows = [
        [cell.codec, cell.budget, "-" if cell.bytes is None else str(cell.bytes), *texts(cell.quality)]
        for cell in comparison.cells
    ]
    rows.append([UNCOMPRESSED, "", str(comparison.variant_bytes), *texts(comparison.uncompressed)])
    rows.append([BARE, "", "0", *texts(comparison.bare)])
    return rows
