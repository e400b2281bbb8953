"""Figures are valid SVG, hold what they were given, and are the same bytes twice."""

from __future__ import annotations

import sys
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from kinfold.errors import MissingExtraError
from kinfold.report.figures import bars, curves, spread


def test_curves_name_every_series_and_level() -> None:
    series = {"one": [(1e4, 0.5), (1e5, 0.9)], "two": [(2e4, 0.4)], "empty": []}
    svg = curves(series, x="bytes", y="gain", levels={"uncompressed": 1.0}, floor=0.0)
    ElementTree.fromstring(svg)
    assert all(word in svg for word in (">one<", ">two<", ">uncompressed<", ">bytes<", ">gain<"))
    assert ">empty<" not in svg
    assert svg == curves(series, x="bytes", y="gain", levels={"uncompressed": 1.0}, floor=0.0)


def test_plain_curves_have_no_bytes_on_their_axis() -> None:
    series = {"fold": [(1000, 0.9), (3000, 1.0)]}
    assert "kB" in curves(series, x="bytes", y="gain")
    svg = curves(series, x="entries", y="gain", plain=True)
    assert "kB" not in svg
    assert ">1500<" in svg


def test_names_stand_beside_the_axes_however_far_they_go() -> None:
    svg = curves({"one": [(0, 0.1), (5000, 0.2)]}, x="round", y="share", plain=True)
    assert float(ElementTree.fromstring(svg).attrib["viewBox"].split()[2]) < 800  # points


def test_log_curves_leave_out_zeros_but_name_their_level() -> None:
    series = {"one": [(1e4, 0.5), (1e5, 0.0)], "none": [(1e4, 0.0)]}
    svg = curves(series, x="bytes", y="nats", levels={"itself": 0.0, "bare": 1.0}, log=True)
    ElementTree.fromstring(svg)
    assert all(word in svg for word in (">one<", ">itself: 0<", ">bare<"))
    assert ">none<" not in svg


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted), st.floats(0.01, 0.2))
def test_spread_is_the_nearest_that_is_apart(places: list[float], gap: float) -> None:
    """Against scikit-learn's isotonic regression."""
    found = spread(places, gap)
    steps = np.arange(len(places)) * gap
    expected = IsotonicRegression().fit_transform(steps, np.array(places) - steps) + steps if places else []
    assert found == pytest.approx(list(expected), abs=1e-9)
    assert all(high - low > gap - 1e-9 for low, high in pairwise(found))


def test_bars_name_every_layer() -> None:
    svg = bars(["layer.0", "head"], [1200.0, 10.0], [0.4, 2.5])
    ElementTree.fromstring(svg)
    assert ">layer.0<" in svg
    assert ">head<" in svg


def test_a_missing_extra_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib") as error:
        bars(["a"], [1.0], [1.0])
    assert "kinfold[report]" in error.value.hint
