"""A comparison as table, figure and page; the comparison itself is made up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kinfold.compare import Cell, Comparison, Quality
from kinfold.errors import MissingExtraError, OutputError
from kinfold.report.comparison import (
    check_outputs,
    measured,
    table_cells,
    write_comparison_figure,
    write_comparison_report,
)

FOUND = Comparison(
    base="models/base",
    variant="models/movie",
    reference_bytes=20_000_000,
    variant_bytes=90_000_000,
    budgets=["1/16", "1/64"],
    codecs=["osd", "dare:value_bits=1", "bitdelta"],
    seed=0,
    inputs="16 rows",
    metric="own:accuracy",
    measure="gain",
    divergence_unit="nats",
    uncompressed=Quality(0.0, 0.0, 0.9, 1.0),
    bare=Quality(1.0, 0.4, 0.5, 0.0),
    cells=[
        Cell("osd", "1/16", 1_240_000, None, Quality(0.5, 0.01, 0.88, 0.95)),
        Cell("dare:value_bits=1", "1/16", 1_250_000, None, Quality(9.0, 0.02, 0.88, 0.95)),
        Cell("bitdelta", "1/16", None, 1_400_000, None),
        Cell("osd", "1/64", 312_000, None, Quality(0.8, 0.2, 0.3, -3.0)),
        Cell("dare:value_bits=1", "1/64", 312_100, None, Quality(20.0, float("nan"), 0.7, 0.5)),
        Cell("bitdelta", "1/64", None, None, None),
    ],
    notes=["a <note>"],
)


def test_the_table_marks_the_best_and_ends_with_the_levels() -> None:
    assert table_cells(FOUND) == (
        ["codec", "1/16", "1/64"],
        [
            ["osd", "*0.950 in 1.24 MB", "-3.000 in 312 kB"],
            ["dare:value_bits=1", "*0.950 in 1.25 MB", "*0.500 in 312 kB"],
            ["bitdelta", "-, least 1.4 MB", "-"],
            ["uncompressed variant", "1.000", "1.000"],
            ["bare base", "0.000", "0.000"],
        ],
    )


def test_without_a_metric_the_table_shows_the_divergence() -> None:
    found = replace(FOUND, measure="divergence")
    rows = table_cells(found)[1]
    assert rows[0] == ["osd", "*0.01 in 1.24 MB", "*0.2 in 312 kB"]
    assert rows[1][2] == "- in 312 kB"  # not a number
    assert rows[3:] == [["uncompressed variant", "0", "0"], ["bare base", "0.4", "0.4"]]


@pytest.mark.parametrize(
    ("measure", "unit", "words"),
    [
        ("gain", "nats", "recovered gain"),
        ("score", "nats", "score by own:accuracy"),
        ("divergence", "nats", "divergence from the variant, nats"),
        ("divergence", "relative", "relative distance of the hidden states"),
    ],
)
def test_the_figure_names_codecs_levels_and_its_axis(measure: str, unit: str, words: str, tmp_path: Path) -> None:
    found = replace(FOUND, measure=measure, divergence_unit=unit)  # type: ignore[arg-type]
    assert measured(found) == words
    write_comparison_figure(tmp_path / "f.svg", found)
    svg = (tmp_path / "f.svg").read_text("utf-8")
    ElementTree.fromstring(svg)
    assert all(f">{word}" in svg for word in ("osd", "dare:value_bits=1", "uncompressed variant", "bare base", words))
    assert ">bitdelta<" not in svg


def test_the_page_holds_every_number(tmp_path: Path) -> None:
    write_comparison_report(tmp_path / "r.html", FOUND)
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.count("<svg") == 1
    assert all(f"<td>{number}</td>" in page for number in ("1240000", "0.01", "0.88", "0.95", "-3", "90000000"))
    assert "a &lt;note&gt;" in page
    assert "16 rows" in page


def test_what_cannot_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_outputs(None, None)
    check_outputs(tmp_path / "f.svg", tmp_path / "r.html")
    with pytest.raises(OutputError, match="does not exist"):
        check_outputs(tmp_path / "nowhere" / "f.svg", None)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="jinja2"):
        check_outputs(None, tmp_path / "r.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        check_outputs(tmp_path / "f.svg", None)
