"""The commands: what they print, in both forms, and their exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import kinfold
from kinfold.cli import app, main
from kinfold.cli.output import run
from models import Pair


@pytest.fixture(scope="module")
def packed(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "movie.kin.safetensors"
    kinfold.pack(pair.base, pair.variant, out, budget="6kB")
    return out


def test_pack_restore_round_trip_names_the_next_command(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["pack", str(pair.base), str(pair.variant), "-o", "m.kin.safetensors", "--codec", "exact"]
    assert run(app, command) == 0
    said = capsys.readouterr()
    assert "m.kin.safetensors" in said.out
    hint = said.err.split("next:")[1].split()
    assert hint[:2] == ["kinfold", "restore"]
    assert run(app, hint[1:]) == 0  # the hint works as it stands
    assert "bit-identical" in capsys.readouterr().out
    assert (tmp_path / "m-restored" / "model.safetensors").exists()


def test_json_equals_the_python_report(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["inspect", str(packed), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    info = kinfold.inspect(packed)
    assert told["file_bytes"] == info.file_bytes == os.stat(packed).st_size
    assert [row["name"] for row in told["tensors"]] == [row.name for row in info.tensors]


def test_inspect_lists_tensors(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["inspect", str(packed), "--tensors"]) == 0
    out = capsys.readouterr().out
    assert all(row.name in out for row in kinfold.inspect(packed).tensors)


def test_inspect_plots(packed: Path, tmp_path: Path) -> None:
    assert run(app, ["inspect", str(packed), "--plot", str(tmp_path / "p.html")]) == 0
    assert "<svg" in (tmp_path / "p.html").read_text("utf-8")


def test_dry_run_writes_nothing(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.kin.safetensors"
    assert run(app, ["pack", str(pair.base), str(pair.variant), "-o", str(out), "--budget", "6kB", "--dry-run"]) == 0
    assert "not written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_codec(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "x.kin.safetensors"
    options = ["--option", "value_bits=4", "--option", "allocation=uniform"]
    command = ["pack", str(pair.base), str(pair.variant), "-o", str(out), "--codec", "truncsvd", "--budget", "8kB"]
    assert run(app, command + options) == 0
    assert kinfold.inspect(out).options == {"value_bits": 4, "allocation": "uniform"}


def test_verify_exits_with_3_on_damage(
    packed: Path, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, ["verify", str(packed), "--base", str(pair.base)]) == 0
    broken = tmp_path / "broken.kin.safetensors"
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    broken.write_bytes(data)
    assert run(app, ["verify", str(broken)]) == 3
    assert "damaged" in capsys.readouterr().out


def test_diff_lists_the_largest_change_first(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["diff", str(pair.base), str(pair.variant), "--limit", "2"]) == 0
    out = capsys.readouterr().out
    first = kinfold.diff(pair.base, pair.variant).rows[0].name
    assert out.splitlines()[1].startswith(first)
    assert "more differ" in out


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["pack", "nowhere", "nobody", "-o", "x"], 1, "`nowhere` does not exist"),
        (["pack", "a", "b", "-o", "x", "--option", "bits"], 1, "KEY=VALUE"),
        (["pack", "a", "b", "-o", "x", "--codec", "ods"], 1, "--codec osd"),
        (["pack", "a", "b", "-o", "x", "--budget", "lots"], 1, "--budget 1/100"),
        (["inspect", "nowhere.kin.safetensors"], 1, "no pack"),
        (["pack", "a"], 2, "kinfold pack --help"),
        (["bake"], 2, "kinfold --help"),
        (["pack", "a", "b", "-o", "x", "--seed", "red"], 2, "kinfold pack --help"),
    ],
)
def test_mistakes_get_words_and_a_code(
    command: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, command) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error:")
    assert words in said.err
    assert "Traceback" not in said.err


def test_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kinfold, "inspect", stop)
    assert run(app, ["inspect", "x"]) == 130
    assert "go on" in capsys.readouterr().err


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "nowhere"])
    assert stop.value.code == 1


@pytest.mark.parametrize("command", ["pack", "inspect", "restore", "verify", "diff", "compare", "demo"])
def test_help_describes_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(app, [command, "--help"])
    assert f"kinfold {command}" in capsys.readouterr().out
