"""The HTML reports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import kinfold
from kinfold.errors import MissingExtraError
from kinfold.report.html import layer_of, write_pack_report, write_page
from models import Pair


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.3.attention.output.dense.weight", "encoder.layer.3"),
        ("model.layers.11.mlp.up_proj.weight", "model.layers.11"),
        ("head.weight", "head"),
        ("norm", "norm"),
        ("blocks.0", "blocks.0"),
    ],
)
def test_layer_of(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_pack_report_shows_every_tensor(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "v.kin.safetensors"
    kinfold.pack(pair.base, pair.variant, out, budget="6kB")
    info = kinfold.inspect(out)
    write_pack_report(tmp_path / "report.html", info)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<svg") == 1
    assert all(f"<td>{row.name}</td>" in page for row in info.tensors)
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")  # self-contained: names of XML schemas only


def test_text_is_escaped(tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", "<b>", "&", [{"heading": "<script>", "columns": ["<i>"], "rows": [["<u>"]]}])
    page = (tmp_path / "p.html").read_text("utf-8")
    assert "<script>" not in page
    assert "&lt;u&gt;" in page


def test_a_missing_extra_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="jinja2"):
        write_page(tmp_path / "p.html", "", "", [])
    assert list(tmp_path.iterdir()) == []
