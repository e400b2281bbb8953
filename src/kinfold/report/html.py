"""Static HTML reports: one self-contained file with inline figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinfold.checkpoint import atomic_file
from kinfold.errors import MissingExtraError
from kinfold.report.figures import bars, curves
from kinfold.report.progress import size

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2024 }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
p.lead { color: #555; margin-top: .2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #e3e6e8; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem } th { font-weight: 600 }
:is(th, td):nth-child(2):last-child { text-align: left; white-space: normal }
.scroll { overflow-x: auto } svg { max-width: 100%; height: auto }
</style></head><body>
<h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
{% for part in parts %}
<h2>{{ part.heading }}</h2>
{% if part.note %}<p>{{ part.note }}</p>{% endif %}
{% if part.svg %}<div class="scroll">{{ part.svg | safe }}</div>{% endif %}
{% if part.rows %}<div class="scroll"><table><thead><tr>
{% for cell in part.columns %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in part.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% endfor %}
</body></html>
"""


def require_jinja2() -> Any:
    """The module.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as cause:
        raise MissingExtraError("jinja2", "report") from cause
    return jinja2


def write_page(path: Path, title: str, lead: str, parts: Sequence[dict[str, Any]]) -> None:
    """Write a page of parts, each with `heading` and any of `note`, `svg`, `columns` and `rows`.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: the disk cannot take it.
    """
    template = require_jinja2().Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(template.render(title=title, lead=lead, parts=parts), "utf-8")


def write_pack_report(path: Path, info: Any) -> None:
    """The report of one pack from what `kinfold.inspect` returns (a `PackInfo`)."""
    layers: dict[str, list[Any]] = {}
    for row in info.tensors:
        layers.setdefault(layer_of(row.name), []).append(row)
    names = list(layers)
    energies = [sum((r.norm or 0.0) ** 2 for r in rows) for rows in layers.values()]
    missed = [sum((r.norm or 0.0) ** 2 * r.error**2 for r in rows) for rows in layers.values()]
    errors = [(m / e) ** 0.5 if e else 0.0 for m, e in zip(missed, energies, strict=True)]
    payload = [sum(r.bytes for r in rows) for rows in layers.values()]
    write_page(
        path,
        f"{info.variant}: {size(info.file_bytes)}",
        f"A fine-tune of {info.base}, coded by {info.codec} in 1/{info.ratio:.4g} of the "
        f"{size(info.reference_bytes)} that its changed weights take at 16 bits.",
        [
            {
                "heading": "Bytes and error by layer",
                "note": "The error is relative to the delta, in Frobenius norm. Above 1 it is unbiased noise, which "
                "wide layers average out; it cannot be compared with what a truncation loses.",
                "svg": bars(names, payload, errors),
            },
            {
                "heading": "Tensors",
                "columns": ["tensor", "codec", "shape", "bytes", "bits a weight", "rank", "relative error"],
                "rows": [
                    (
                        row.name,
                        row.codec,
                        "x".join(map(str, row.shape)),
                        row.bytes,
                        f"{row.bits_per_weight:.3g}",
                        "" if row.rank is None else row.rank,
                        f"{row.error:.3g}",
                    )
                    for row in info.tensors
                ],
            },
        ],
    )


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: everything up to its first number, or its first word.

    >>> layer_of("encoder.layer.3.attention.output.dense.weight")
    'encoder.layer.3'
    >>> layer_of("head.weight")
    'head'
    """
    match = re.match(r"(.*?\.\d+)(\.|$)", name)
    return match[1] if match else name.split(".")[0]


def write_demo_report(path: Path, lead: str, columns: Sequence[str], rows: Sequence[Sequence[str]], gains: Any) -> None:
    """The demo's report: the table, and one figure a task.

    `gains` maps a task to its (bytes, accuracy) points by codec, and to the levels to mark.
    """
    figures = [
        {
            "heading": task,
            "svg": curves(series, x="bytes of the pack", y="test accuracy", levels=levels),
        }
        for task, (series, levels) in gains.items()
    ]
    write_page(path, "Kinfold demo", lead, [*figures, {"heading": "All figures", "columns": columns, "rows": rows}])
