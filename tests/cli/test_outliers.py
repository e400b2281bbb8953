"""`kinfold audit outliers variants`: its tables, its JSON and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kinfold.audit.outliers import variants
from kinfold.cli import app
from kinfold.cli.output import run
from models import perturbed, pico, save

BASE = pico()
ACCEPTED = [f"kin/m{i}" for i in range(7)]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, kin/m0 .. m6, and new: noise instead of a delta in its largest matrix, and a tensor more."""
    folder = tmp_path_factory.mktemp("family")
    save(folder / "base", {**BASE, "buffer": torch.arange(4)})  # no variant has it
    for i in range(7):
        save(folder / "kin" / f"m{i}", perturbed(BASE, i))
    tensors = perturbed(BASE, 50)
    delta = tensors["layer.0.weight"] - BASE["layer.0.weight"]
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(5))
    tensors["layer.0.weight"] = BASE["layer.0.weight"] + noise * delta.norm() / noise.norm()
    save(folder / "new", {**tensors, "head.weight": torch.ones(2, 2), "norm.weight": torch.ones(3)})
    return folder


@pytest.fixture
def command(family: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(family)
    fixed = ["audit", "outliers", "variants", "base", "--preset", "paper"]
    return [*fixed, "--accepted", *ACCEPTED, "--candidates", "new"]


def test_the_odd_one_and_its_tensor_are_told(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, command) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[:3] == ["variant", "verdict", "score"]
    assert lines[1].split()[:2] == ["new", "odd"]
    assert "layer.0.weight: " in lines[4]
    assert "sd above what the other layers predict" in lines[4]
    assert "7 accepted variants, 21 statistics each" in said.out
    assert "norm.weight: not as in the base in new" in said.out
    assert "buffer: not as in the base in any variant" in said.out
    assert "new: head.weight, norm.weight" in said.out
    assert "cannot be certified" in said.out
    hint = said.err.split("next:")[1].split()
    assert run(app, hint[1:]) == 0  # it works as it stands
    assert "layer.0.weight" in capsys.readouterr().out


def test_fail_if_odd_exits_with_3(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, "--fail-if-odd"]) == 3
    assert run(app, [*command[:-1], "kin/../kin/m6", "--fail-if-odd"]) == 1  # accepted, and a candidate too
    assert "hold the same weights" in capsys.readouterr().err


def test_an_ordinary_family_is_shown_too(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command[:-2], "--fail-if-odd"]) == 0
    said = capsys.readouterr()
    assert said.out.count("undecided") >= 7
    assert "judged by a model of the others" in said.out
    assert "next:" not in said.err


def test_variants_may_be_named(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command[:-1], "fresh=new"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["fresh", "odd"]


def test_json_is_the_python_report(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, "--format", "json", "--method", "znorm"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = variants("base", ACCEPTED, ["new"], preset="paper", method="znorm")
    assert told["variants"][0]["score"] == report.variants[0].score
    assert told["variants"][0]["methods"]["tccm"]["score"] == report.variants[0].methods["tccm"].score
    assert told["variants"][0]["parts"][0]["name"] == report.variants[0].parts[0].name == "layer.0.weight"
    assert told["notes"] == list(report.notes)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--false-alarm", "2"], 1, "between 0 and 1"),
        (["--seed", "-1"], 1, "the seed is -1"),
        (["--method", "lof"], 2, "lof"),
        (["--candidates", "nowhere"], 1, "there is no `nowhere`"),
    ],
)
def test_mistakes_get_words_and_a_code(
    more: list[str], code: int, words: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, [*command[:-2], *more]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert "Traceback" not in said.err


def test_four_are_too_few(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["audit", "outliers", "variants", "base", "--accepted", *ACCEPTED[:4]]) == 1
    said = capsys.readouterr().err
    assert "4 accepted variants were given; 5 or more" in said
    assert "kinfold inspect" in said
