"""`kinfold audit influence`: its tables, its JSON, its files and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kinfold.cli import app
from kinfold.cli.output import run
from models import Pair

ROWS = [{"text": " ".join("abcdefghij"[n % 3 : 4 + n % 5])} for n in range(9)]


@pytest.fixture
def command(llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", ROWS), ("probe", ROWS[:2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixed = ["audit", "influence", str(llama_pair.variant), "--base", str(llama_pair.base)]
    return [*fixed, "--train", "train.jsonl", "--keep", "100", "--top", "2"]


def test_tables_for_people(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, "--probe", "probe.jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mean over all probes"
    assert lines[1].split() == ["top", "text", "label", "row", "score", "cosine", "bm25", "self", "loss", "norm"]
    assert any("in the top of bm25" in line for line in lines)
    assert any(line.startswith("kept") and "100 of" in line for line in lines)


def test_self_needs_no_probe(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, "--self", "--suspects", "s.jsonl", "--worst", "3"]) == 0
    assert capsys.readouterr().out.split()[:7] == ["self", "text", "label", "row", "self", "loss", "norm"]
    suspects = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert len(suspects) == 3
    assert all(row in ROWS for row in suspects)


def test_json_and_files(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--full", "f.safetensors", "--lines", "l.jsonl", "--report", "r.html", "--gradients", "g.grads"]
    assert run(app, [*command, "--probe", "probe.jsonl", *files, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    arrays = load_file("f.safetensors")
    assert arrays["scores"].shape == (9, 2)
    first = told["probes"][1]
    assert first["top"][0]["score"] == pytest.approx(arrays["scores"][:, 0].max(), rel=1e-5)
    assert first["top"][0]["row"] == int(np.argmax(arrays["scores"][:, 0]))
    assert "scores" not in told
    assert len(Path("l.jsonl").read_text().splitlines()) == 3 * 4 + 2
    assert "<table>" in Path("r.html").read_text()
    assert Path("g.grads/manifest.json").is_file()
    assert run(app, [*command, "--probe", "probe.jsonl", *files]) == 1
    assert "f.safetensors` exists" in capsys.readouterr().err
    assert run(app, [*command, "--probe", "probe.jsonl", *files, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--probe FILE or --self"),
        (["--probe", "probe.jsonl", "--self"], "--probe FILE or --self"),
        (["--self", "--damping", "much"], "damping is `much`"),
        (["--self", "--damping", "sweep"], "which rows are wrong"),
        (["--probe", "none.jsonl"], "cannot read `none.jsonl`"),
    ],
)
def test_refusals(command: list[str], more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, *more]) == 1
    assert words in capsys.readouterr().err
