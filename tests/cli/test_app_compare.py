"""`kinfold compare`: table, JSON, files and mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import kinfold
from kinfold.cli import app
from kinfold.cli.output import run
from models import Pair

METRIC = """
import pathlib

def size_of_config(directory):
    print("looking at", directory)
    return len((pathlib.Path(directory) / "config.json").read_bytes())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])  # the command may add to it
    (tmp_path / "my_metric.py").write_text(METRIC)
    return tmp_path


def command(pair: Pair, *more: str) -> list[str]:
    return ["compare", str(pair.base), str(pair.variant), "--codecs", "osd,dare:value_bits=1", *more]


def test_the_table_names_the_next_command(llama_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, command(llama_pair, "--budgets", "1/256,24kB")) == 0
    said = capsys.readouterr()
    assert "-, least" in said.out
    assert "* best at this budget" in said.out
    assert "uncompressed variant" in said.out
    assert "16 rows of 32 random tokens, seed 0" in said.out
    hint = said.err.split("next:")[1].split()
    assert hint[:2] == ["kinfold", "pack"]
    assert run(app, hint[1:]) == 0  # the hint works as it stands
    assert Path("variant.kin.safetensors").stat().st_size <= 24_000


def test_json_equals_the_python_comparison(llama_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text('{"text": "a b c"}\n{"input_ids": [4, 5, 6]}\n')
    options = ["--budgets", "24kB", "--rows", "rows.jsonl", "--seed", "5", "--metric", "my_metric:size_of_config"]
    assert run(app, command(llama_pair, *options, "--format", "json")) == 0
    said = capsys.readouterr()
    assert said.err.count("looking at") == 4  # what a metric prints is no data
    found = kinfold.compare(
        *llama_pair,
        budgets=["24kB"],
        codecs=["osd", "dare:value_bits=1"],
        rows="rows.jsonl",
        metric="my_metric:size_of_config",
        seed=5,
    )
    assert json.loads(said.out) == dataclasses.asdict(found)


def test_notes_scores_and_files_are_shown(llama_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--budgets", "24kB", "--metric", "my_metric:size_of_config", "--figure", "f.svg", "--report", "r.html"]
    assert run(app, command(llama_pair, *options)) == 0
    said = capsys.readouterr()
    assert "there is no gain to recover" in said.out
    assert "by the bare base" in said.out
    assert "open f.svg r.html" in said.err
    assert Path("f.svg").read_text("utf-8").startswith("<?xml")
    assert "<svg" in Path("r.html").read_text("utf-8")


def test_no_codec_fits(llama_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, command(llama_pair, "--budgets", "1/256", "--figure", "f.svg")) == 0
    assert capsys.readouterr().out.count("-, least") == 2
    assert run(app, command(llama_pair, "--budgets", "1/256")) == 0
    assert "next:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--budgets", ","], 1, "--budgets 1/16,1/64,1/256"),
        (["--budgets", "rank:4"], 1, "equal bytes"),
        (["--codecs", "ods"], 1, "--codecs osd"),
        (["--metric", "accuracy"], 1, "module:function"),
        (["--metric", "my_metric:size_of"], 1, "--metric my_metric:size_of_config"),
        (["--metric", "nowhere_at_all:f"], 1, "cannot import"),
        (["--rows", "nowhere.jsonl"], 1, "cannot read `nowhere.jsonl`"),
        (["--calibrate", "nowhere.jsonl"], 1, "cannot read `nowhere.jsonl`"),
        (["--figure", "nowhere/f.svg"], 1, "mkdir -p nowhere"),
        (["--seed", "red"], 2, "kinfold compare --help"),
    ],
)
def test_mistakes_get_words_and_a_code(
    llama_pair: Pair, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, ["compare", str(llama_pair.base), str(llama_pair.variant), *options]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err


def test_equal_models_are_named(llama_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["compare", str(llama_pair.base), str(llama_pair.base)]) == 1
    assert "no delta" in capsys.readouterr().err
