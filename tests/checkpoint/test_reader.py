"""Reading model directories, sound and otherwise."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinfold.checkpoint import Checkpoint
from kinfold.errors import CheckpointError
from models import pico, raw, save

KINDS = {
    "f64": torch.randn(3, 5, dtype=torch.float64),
    "bf16": torch.randn(4, 2).bfloat16(),
    "i64": torch.arange(7),
    "bool": torch.tensor([True, False, True]),
    "f8": torch.randn(6).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_the_librarys(tmp_path: Path, shards: int) -> None:
    directory = save(tmp_path / "m", KINDS, shards=shards)
    checkpoint = Checkpoint.open(directory)
    assert list(checkpoint.tensors) == sorted(KINDS)
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.nbytes == sum(len(data) for _, _, data in raw(directory).values())
    for name, (dtype, shape, data) in raw(directory).items():
        tensor = checkpoint.read(name)
        assert (checkpoint.tensors[name].dtype, tuple(tensor.shape)) == (dtype, shape)
        assert tensor.dtype == KINDS[name].dtype
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == data
        assert b"".join(checkpoint.blocks(name)) == data


def test_first_rows_only(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save(tmp_path / "m", KINDS))
    assert torch.equal(checkpoint.read("f64", rows=(1, 3)), KINDS["f64"][1:3])
    assert checkpoint.read("f64", rows=(2, 2)).shape == (0, 5)


def test_blocks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinfold.checkpoint.reader.BLOCK", 32)
    checkpoint = Checkpoint.open(save(tmp_path / "m", KINDS))
    assert [len(block) for block in checkpoint.blocks("f64")] == [32, 32, 32, 24]


def test_side_files_are_told_apart(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", KINDS, shards=2)
    for name in ("vocab.txt", "chat_template.jinja", "modeling.py", "1_Pooling/config.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("x")
    for name in ("README.md", "optimizer.pt", "runs/events.log", ".hidden.json", ".cache/a.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("x")
    kept, left = Checkpoint.open(directory).side_files()
    assert kept == ["1_Pooling/config.json", "chat_template.jinja", "config.json", "modeling.py", "vocab.txt"]
    assert left == ["README.md", "optimizer.pt", "runs/events.log"]


def test_a_side_file_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinfold.checkpoint.reader.MAX_SIDE_FILE", 100)
    directory = save(tmp_path / "m", KINDS)
    (directory / "vocab.txt").write_text("x" * 101)
    assert Checkpoint.open(directory).side_files() == (["config.json"], ["vocab.txt"])


def refused(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return caught.value


def test_a_missing_directory(tmp_path: Path) -> None:
    assert "does not exist" in str(refused(tmp_path / "nowhere"))


def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    assert "is a file" in str(refused(tmp_path / "f"))


def test_an_empty_directory(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert "holds no *.safetensors file" in str(error)
    assert error.hint == f"ls {tmp_path}"


def test_weights_without_a_tensor(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    assert "hold no tensor" in str(refused(tmp_path))


@pytest.mark.parametrize("folder", ["plain", "with space", "it's", 'quo"te$HOME'])
def test_a_pickle_is_not_read_and_the_hint_converts_it(tmp_path: Path, folder: str) -> None:
    directory = tmp_path / folder
    directory.mkdir()
    tensors = {"encoder.weight": torch.randn(3, 4).T, "classifier.weight": torch.randn(2, 2)}
    torch.save(tensors, directory / "pytorch_model.bin")
    error = refused(directory)
    assert "pytorch_model.bin" in str(error)
    assert "safetensors is wanted" in str(error)
    words = shlex.split(error.hint)
    assert words[:2] == ["python", "-c"]
    assert len(words) == 3
    code = compile(words[2], "hint", "exec")
    exec(code, {})  # what the user is told to run, without the price of another process
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", pico(), shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    error = refused(directory)
    assert "names `model-00002-of-00003.safetensors`, which is not there (1 of 3 missing)" in str(error)
    assert "finish the download" in error.hint


def test_an_index_that_puts_a_tensor_into_the_wrong_shard(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", pico(), shards=2)
    index(directory, {"norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"})
    assert "which does not hold it" in str(refused(directory))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_that_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    directory = save(tmp_path / "m", pico())
    index(directory, {"norm.weight": name})
    assert "outside its directory" in str(refused(directory))


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    directory = save(tmp_path / "m", pico())
    (directory / "model.safetensors.index.json").write_text(text)
    assert "index" in str(refused(directory))


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    error = refused(tmp_path)
    assert "`x` is in two weight files" in str(error)
    assert "stale" in error.hint


def test_a_truncated_weight_file(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", pico())
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1])
    assert "is no valid safetensors file" in str(refused(directory))


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", pico())
    checkpoint = Checkpoint.open(directory)
    last = max(checkpoint.tensors.values(), key=lambda info: info.start)
    (directory / "model.safetensors").write_bytes(b"x" * (last.start + 1))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.read(last.name)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        list(checkpoint.blocks(last.name))


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", pico())
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json` is no valid JSON"):
        _ = Checkpoint.open(directory).config
    (directory / "config.json").unlink()
    assert Checkpoint.open(directory).config == {}
