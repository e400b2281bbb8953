"""`kinfold kv calibrate|drift|compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import kinfold
from kinfold.cli import app
from kinfold.cli.output import run
from kinfold.serve.cache import KVBasis, calibrate, drift
from kinfold.tasks import Task
from models import bert, finetuned, llama, tokenizer


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, variant, variant.kin.safetensors, texts.jsonl of 60 and 30 tokens, and a basis of full rank."""
    folder = tmp_path_factory.mktemp("kv")
    model = llama(max_position_embeddings=128)
    model.save_pretrained(folder / "base")
    finetuned(model, folder / "variant", scale=5e-2)
    tokenizer(folder / "base")
    tokenizer(folder / "variant")
    letters = "the quick brown fox jumps over the lazy dog and runs away from it all again and again" * 2
    rows = [{"text": " ".join(letters.replace(" ", "")[:60])}, {"input_ids": [*range(30)]}]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinfold.pack(folder / "base", folder / "variant", folder / "variant.kin.safetensors", codec="exact")
    command = ["kv", "calibrate", str(folder / "base"), "--texts", str(folder / "texts.jsonl")]
    assert run(app, [*command, "-o", str(folder / "full.kvbasis"), "--ratio", "1"]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def texts(directory: str = "base") -> tuple[Task, list[torch.Tensor]]:
    task = Task.load(directory)
    return task, [task.token_ids(row) for row in map(json.loads, Path("texts.jsonl").read_text().splitlines())]


def test_calibrate_writes_what_python_finds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "b"
    command = ["kv", "calibrate", "base", "--texts", "texts.jsonl", "-o", str(out), "--energy", "0.9"]
    assert run(app, command) == 0
    said = capsys.readouterr()
    task, ids = texts()
    wanted = calibrate(task.model, ids, ratio=None, energy=0.9)
    found = KVBasis.load(out)
    assert all(torch.equal(found.key[n], wanted.key[n]) for n in (0, 1))
    assert found.base == wanted.base != ""
    assert "tokens  90" in said.out
    assert f"ojakv:basis={out}" in said.err
    assert run(app, command) == 1
    assert "exists" in capsys.readouterr().err
    assert run(app, [*command, "--overwrite", "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["tokens"] == 90
    assert plain["key_energy"] >= 0.9
    assert plain["bytes"] == found.nbytes
    assert plain["key_rank"] == max(half.shape[2] for half in found.key.values())


def test_ratio_is_the_default(tmp_path: Path) -> None:
    assert run(app, ["kv", "calibrate", "base", "--texts", "texts.jsonl", "-o", str(tmp_path / "b")]) == 0
    assert KVBasis.load(tmp_path / "b").key[0].shape == (2, 8, 7)


def test_both_ratio_and_energy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["kv", "calibrate", "base", "--texts", "texts.jsonl", "-o", str(tmp_path / "b")]
    assert run(app, [*command, "--ratio", ".8", "--energy", ".9"]) == 1
    assert "both of ratio and energy" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["variant", "variant.kin.safetensors"])
def test_drift(variant: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    basis = tmp_path / "b"
    assert run(app, ["kv", "calibrate", "base", "--texts", "texts.jsonl", "-o", str(basis), "--ratio", "0.5"]) == 0
    capsys.readouterr()
    command = ["kv", "drift", "base", variant, "--basis", str(basis), "--texts", "texts.jsonl"]
    assert run(app, [*command, "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    _, ids = texts()
    for place, name in enumerate(("base", "variant")):
        report = drift(texts(name)[0].model, KVBasis.load(basis), ids)
        assert plain["key"][place] == pytest.approx(report.key_mean, abs=1e-6)
        assert plain["value"][place + 2] == pytest.approx(max(max(row) for row in report.value.values()), abs=1e-6)
    assert run(app, command) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("left out of")
    assert f"{plain['key'][1]:.2%}" in said
    assert "points more of the keys" in said


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    caches = "quant:bits=8,quant:bits=2,recent_tokens=0,ojakv:basis=full.kvbasis,recent_tokens=8,whole_tokens=2"
    command = ["kv", "compare", "base", "--texts", "texts.jsonl", "--cache", caches, "--last", "20"]
    assert run(app, [*command, "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["texts"], plain["tokens"], plain["scored"]) == (2, 90, 35)
    rows = {row["cache"].split(":")[0] + row["cache"][-3:]: row for row in plain["rows"]}
    full, exact, coarse = rows["fullull"], rows["ojakv" + "s=2"], rows["quants=0"]
    assert (full["ratio"], full["agreement"], full["first"], full["next"]) == (1.0, 1.0, 1.0, 1.0)
    assert exact["perplexity"] == pytest.approx(full["perplexity"], rel=1e-4)
    assert (exact["agreement"], exact["residual"]) == (1.0, pytest.approx(0, abs=1e-6))
    assert exact["ratio"] > 1  # positions on top, at full rank
    assert coarse["ratio"] < 0.9
    assert coarse["perplexity"] != full["perplexity"]
    assert [row["ratio"] for row in plain["rows"]] == sorted((row["ratio"] for row in plain["rows"]), reverse=True)
    assert run(app, command) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split()[:3] == ["cache", "bytes", "/"]
    assert "2 of 90 tokens, 35 scored one by one" in said


def test_perplexity_is_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["kv", "compare", "base", "--texts", "texts.jsonl", "--cache", "full", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["rows"][0]["perplexity"]
    task, ids = texts()
    with torch.inference_mode():
        losses = []
        for row in ids:
            table = task.model(row).logits[0].double().log_softmax(-1).numpy()
            losses += [-table[place - 1, int(row[0, place])] for place in range(row.shape[1] // 2, row.shape[1])]
    assert found == pytest.approx(float(torch.tensor(losses).double().mean().exp()), rel=1e-5)


def test_short_prompts_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["kv", "compare", "base", "--texts", "texts.jsonl", "--cache", "ojakv:basis=full.kvbasis"]
    assert run(app, command) == 0
    assert "nothing is compressed" in capsys.readouterr().out


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def said(*command: str) -> str:
        assert run(app, ["kv", *command]) == 1
        return capsys.readouterr().err

    assert "there is no cache `foo`" in said("compare", "base", "--texts", "texts.jsonl", "--cache", "foo")
    (tmp_path / "short.jsonl").write_text('{"input_ids": [1, 2]}')
    assert "a text has 2 tokens" in said("compare", "base", "--texts", str(tmp_path / "short.jsonl"))
    bert().save_pretrained(tmp_path / "bert")
    assert "a causal language model is wanted" in said("compare", str(tmp_path / "bert"), "--texts", "texts.jsonl")
    llama(num_hidden_layers=1).save_pretrained(tmp_path / "other")
    other = ("drift", "base", str(tmp_path / "other"), "--basis", "full.kvbasis", "--texts", "texts.jsonl")
    assert "the basis is for 2 layers" in said(*other)
    assert "holds no KV basis" in said(*other[:2], "variant", "--basis", "base/model.safetensors", *other[5:])
