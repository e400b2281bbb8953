"""`kinfold audit dominance`: its table, its JSON and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kinfold.audit import dominance
from kinfold.cli import app
from kinfold.cli.output import run
from models import Tensors, pico, save

BASE = pico()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, honest/m0 .. m4, and greedy, which cancels them all."""
    folder = tmp_path_factory.mktemp("fleet")
    save(folder / "base", BASE)
    deltas: list[Tensors] = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        deltas.append({k: 1e-3 * torch.randn(t.shape, generator=generator) for k, t in BASE.items()})
        save(folder / "honest" / f"m{seed}", {k: BASE[k] + d for k, d in deltas[-1].items()})
    own = {k: 1e-3 * torch.randn(t.shape, generator=torch.Generator().manual_seed(9)) for k, t in BASE.items()}
    save(folder / "greedy", {k: BASE[k] + 6 * own[k] - sum(d[k] for d in deltas) for k in own})
    return folder


@pytest.fixture
def command(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(fleet)
    members = [*(f"honest/m{i}" for i in range(5)), "greedy"]
    return ["audit", "dominance", *members, "--base", "base"]


def test_the_worst_comes_first_and_the_verdict_names_it(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, command) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[:2] == ["member", "flag"]
    assert lines[1].startswith("greedy")
    assert "deviation, norm, cancellation" in " ".join(lines[1].split())
    assert "flagged: `greedy`" in said.out
    assert "uncalibrated" in said.out
    hint = said.err.split("next:")[1].split()
    assert "greedy" not in hint
    assert run(app, [*hint[1:], "--check"]) == 0  # the hint works as it stands, and the rest is clean
    assert "no member outweighs" in capsys.readouterr().out


def test_check_exits_with_3(command: list[str]) -> None:
    assert run(app, [*command, "--check"]) == 3


def test_json_is_the_python_report(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = dominance([*(f"honest/m{i}" for i in range(5)), "greedy"], base="base")
    assert told["flagged"] == list(report.flagged) == ["greedy"]
    assert told["members"][5]["deviation"] == report.members[5].deviation
    assert told["members"][5]["lag_cancellation"] is None  # JSON has no NaN


@pytest.mark.parametrize("text", ['{"m0": 1, "m1": 1, "m2": 1, "m3": 1, "m4": 1e9}', "[1, 1, 1, 1, 1000000000]"])
def test_weights_come_from_a_file(
    text: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.json").write_text(text)
    command.remove("greedy")
    assert run(app, [*command, "--weights", str(tmp_path / "w.json"), "--check"]) == 3
    assert "holds 100.0% of the weights" in capsys.readouterr().out


def test_references_are_folders(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        made = pico(seed=number + 20)
        save(tmp_path / "other" / f"m{number}", {k: BASE[k] + 0.05 * made[k] for k in BASE})
    assert run(app, [*command, "--reference", str(tmp_path / "other"), "--alpha", "0.5"]) == 0
    assert "beyond what the honest families show" in capsys.readouterr().out


def test_copies_and_empty_members_are_told(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "twin", {k: BASE[k] + 1.001 * (t - BASE[k]) for k, t in _read("honest/m0").items()})
    save(tmp_path / "blank", BASE)
    command.remove("greedy")
    assert run(app, [*command, str(tmp_path / "twin"), str(tmp_path / "blank")]) == 0
    out = capsys.readouterr().out
    assert "m0, twin: judged as one" in out
    assert out.splitlines()[7].split()[:2] == ["blank", "empty"]  # last, after seven members


def _read(directory: str) -> Tensors:
    from safetensors.torch import load_file

    return load_file(Path(directory) / "model.safetensors")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--weights", "nowhere.json"], 1, "cannot read weights"),
        (["--weights", "broken.json"], 1, "cannot read weights"),
        (["--weights", "words.json"], 1, "holds no weights"),
        (["--weights", "short.json"], 1, "2 weights were given for 6 members"),
        (["--weights", "negative.json"], 1, "above 0"),
        (["--alpha", "2"], 1, "between 0 and 1"),
        (["--reference", "base"], 1, "0 members"),
        (["--alpha", "red"], 2, "kinfold audit --help"),
    ],
)
def test_mistakes_get_words_and_a_code(
    more: list[str], code: int, words: str, command: list[str], fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"broken": "{", "words": '["a"]', "short": "[1, 2]", "negative": "[1, 1, 1, 1, 1, -1]"}
    for name, text in files.items():
        (fleet / f"{name}.json").write_text(text)
    assert run(app, [*command, *more]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert "Traceback" not in said.err


def test_one_member_is_too_few(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["audit", "dominance", "greedy", "--base", "base"]) == 1
    assert "1 members were given" in capsys.readouterr().err
