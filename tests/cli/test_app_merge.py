"""`kinfold merge`: what it prints, in both forms, and its exit codes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

import kinfold
from kinfold.cli import app
from kinfold.cli.output import run
from models import Pair, perturbed, pico, raw, save


@pytest.fixture(scope="module")
def others(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two more variants of the pair's base."""
    folder = tmp_path_factory.mktemp("others")
    return [str(save(folder / name, perturbed(pico(), seed))) for name, seed in (("two", 2), ("three", 3))]


def test_options_and_weights_reach_the_method(
    pair: Pair, others: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [str(pair.variant), *others]
    command = ["merge", str(pair.base), *members, "--option", "density=0.5", "--weights", "1,0.5,2", "-o"]
    assert run(app, [*command, str(tmp_path / "out")]) == 0
    kinfold.merge(pair.base, members, tmp_path / "python", method="ties", density=0.5, weights=[1, 0.5, 2])
    assert raw(tmp_path / "out") == raw(tmp_path / "python")
    said = capsys.readouterr()
    assert "density=0.5" in said.out
    assert "three" in said.out
    assert "from_pretrained" in said.err


def test_json_is_the_report(pair: Pair, others: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["merge", str(pair.base), str(pair.variant), f"mine={others[0]}", "--method", "knots", "--inner"]
    command += ["task_arithmetic", "--option", "scale=1", "--heads", "base", "--dominance", "off", "--seed", "3"]
    assert run(app, [*command, "-o", str(tmp_path / "out"), "--format", "json", "--dtype", "bfloat16"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["inner"], told["seed"], told["heads"]) == ("knots", "task_arithmetic", 3, "base")
    assert [row["name"] for row in told["members"]] == ["variant", "mine"]
    assert told["options"] == {"scale": 1.0, "normalize": False}


def test_a_recipe_stands_alone(
    pair: Pair, others: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.yaml"
    models = [{"model": path} for path in (str(pair.variant), *others)]
    file.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    assert run(app, ["merge", "--recipe", str(file), "-o", str(tmp_path / "out")]) == 0
    kinfold.merge(pair.base, [pair.variant, *others], tmp_path / "python", method="linear")
    capsys.readouterr()
    assert run(app, ["merge", str(pair.base), "--recipe", str(file), "-o", str(tmp_path / "two")]) == 1
    hint = shlex.split(capsys.readouterr().err.split("hint:")[1])
    assert run(app, hint[1:]) == 0  # the hint works as it stands


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "takes a base and its variants, or --recipe"),
        (["BASE"], "takes a base and its variants, or --recipe"),
        (["BASE", "VARIANT", "--weights", "1;2"], "--weights takes numbers, got `1;2`"),
        (["BASE", "VARIANT", "--option", "density"], "--option takes KEY=VALUE, got `density`"),
        (["BASE", "VARIANT", "--option", "heads=base"], "`heads` is no option of a method"),
        (["BASE", "x=VARIANT", "x=BASE"], "two of them are called `x`"),
        (["BASE", "VARIANT", "--method", "tie"], "no merge method is called `tie`"),
        (["BASE", "nowhere"], "there is no `nowhere`"),
    ],
)
def test_mistakes_exit_with_1(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    words = [word.replace("BASE", str(pair.base)).replace("VARIANT", str(pair.variant)) for word in arguments]
    assert run(app, ["merge", *words, "-o", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
