"""`kinfold audit outliers requests`: its table, its files and its exit codes."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from kinfold.audit.outliers import requests
from kinfold.cli import app
from kinfold.cli.output import run
from models import Pair, tokenizer


def write(path: Path, count: int, letters: str, seed: int) -> list[str]:
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(letters, k=generator.randint(3, 9))) for _ in range(count)]
    with path.open("a") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return texts


@pytest.fixture(scope="module")
def desk(classifier_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, variant, ref.jsonl, and log.jsonl whose last 30 lines are foreign."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(classifier_pair.base, folder / "base")
    shutil.copytree(classifier_pair.variant, folder / "variant")
    tokenizer(folder / "variant")
    write(folder / "ref.jsonl", 60, "abcdefg", 0)
    write(folder / "log.jsonl", 40, "abcdefg", 1)
    write(folder / "log.jsonl", 30, "uvwxyz", 2)
    return folder


@pytest.fixture
def command(desk: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(desk)
    return ["audit", "outliers", "requests", "base", "variant", "--requests", "log.jsonl", "--reference", "ref.jsonl"]


def test_flagged_requests_are_told_without_their_texts(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, command) == 0
    said = capsys.readouterr()
    rows = said.out.split("\n\n")[0].splitlines()
    assert rows[0].split() == ["request", "p", "score", "head", "energy", "copies"]
    report = requests("base", "variant", "ref.jsonl", "log.jsonl")
    shown = report.flagged[:20]
    assert [row.split()[0] for row in rows[1:]] == [one.id for one in shown]
    assert f"{len(report.flagged)} of 70 requests" in said.out
    assert f"at least {report.share:.1%} of the log" in said.out
    assert "may still be harmful" in said.out
    assert json.loads(Path("log.jsonl").read_text().splitlines()[50])["text"] not in said.out


def test_texts_are_shown_when_asked_for(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, "--with-text", "--filter", "medix", "--false-alarm", "0.3"]) == 0
    said = capsys.readouterr().out
    texts = [json.loads(line)["text"] for line in Path("log.jsonl").read_text().splitlines()]
    header, *rows = said.split("\n\n")[0].splitlines()
    assert header.split()[-1] == "text"
    for row in rows:
        assert texts[int(row.split()[0]) - 1] in row
    assert "the first 20" in said
    assert "at bert.encoder.layer.1.intermediate.dense" in said


def test_reports_and_monitors_are_kept(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["-o", str(tmp_path / "r.json"), "--save-monitor", str(tmp_path / "m.safetensors")]
    assert run(app, [*command, "--fdr", "0.3", "-k", "0.2", "--format", "json", *files]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "r.json").read_text())
    report = requests("base", "variant", "ref.jsonl", "log.jsonl", fdr=0.3, k=0.2)
    assert [one["score"] for one in told["verdicts"]] == [one.score for one in report.verdicts]
    assert told["notes"] == list(report.notes)
    assert told["verdicts"][0]["text"] is None
    later = [*command[:-2], "--monitor", str(tmp_path / "m.safetensors")]
    assert run(app, later) == 0
    said = capsys.readouterr().out
    assert "60 requests" in said
    assert "by estimate" not in said
    assert run(app, [*command, "-o", str(tmp_path / "r.json")]) == 1
    assert "exists" in capsys.readouterr().err
    assert run(app, [*command, "-o", str(tmp_path / "r.json"), "--overwrite"]) == 0


def test_nothing_flagged_has_no_table(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, "--false-alarm", "0.01"]) == 0
    assert capsys.readouterr().out.startswith("flagged    0 of 70")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--fdr", "2"], 1, "fdr is 2"),
        (["-k", "many"], 1, "-k takes auto"),
        (["-k", "500"], 1, "k is 500"),
        (["--filter", "lof"], 2, "lof"),
        (["--filter", "l2", "--at", "nowhere"], 1, "`nowhere` names no module"),
        (["--monitor", "m"], 1, "either a reference or a monitor"),
        (["--preset", "paper"], 1, "has label None"),
    ],
)
def test_mistakes_get_words_and_a_code(
    more: list[str], code: int, words: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, [*command, *more]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert "Traceback" not in said.err
