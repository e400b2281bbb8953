"""Figures are valid SVG, hold what they were given, and are the same bytes twice."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from kinfold.errors import MissingExtraError
from kinfold.report.figures import bars, curves


def test_curves_name_every_series_and_level() -> None:
    series = {"one": [(1e4, 0.5), (1e5, 0.9)], "two": [(2e4, 0.4)], "empty": []}
    svg = curves(series, x="bytes", y="gain", levels={"uncompressed": 1.0}, floor=0.0)
    ElementTree.fromstring(svg)
    assert all(word in svg for word in (">one<", ">two<", ">uncompressed<", ">bytes<", ">gain<"))
    assert ">empty<" not in svg
    assert svg == curves(series, x="bytes", y="gain", levels={"uncompressed": 1.0}, floor=0.0)


def test_bars_name_every_layer() -> None:
    svg = bars(["layer.0", "head"], [1200.0, 10.0], [0.4, -5.0])
    ElementTree.fromstring(svg)
    assert ">layer.0<" in svg
    assert ">head<" in svg


def test_a_missing_extra_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib") as error:
        bars(["a"], [1.0], [1.0])
    assert "kinfold[report]" in error.value.hint
