"""What a report counts."""

from __future__ import annotations

import json

from kinfold.serve.cache import KVReport


def test_plain_data() -> None:
    report = KVReport(10, {"codes": 30, "tail": 20}, 200, 0.5, 7, {1: "X"}, {0: 0.25}, (4, 8, 9), counts={"more": 1})
    plain = json.loads(json.dumps(report.as_dict()))
    assert (plain["bytes"], plain["ratio"], plain["ratio_16bit"]) == (50, 0.25, 0.5)
    assert plain["entries_read"] == {"mean": 7, "median": 8, "max": 9}
    assert plain["other_layers"] == {"1": "X"}
    assert plain["residual_energy"] == {"0": 0.25}
    assert plain["more"] == 1


def test_nothing_read() -> None:
    report = KVReport(0, {}, 0)
    assert report.ratio == 1.0
    assert report.as_dict()["entries_read"] is None
