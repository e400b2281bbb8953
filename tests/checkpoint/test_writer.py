"""Streaming writes, read back by the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from kinfold.checkpoint import DTYPES, CheckpointWriter
from kinfold.errors import CheckpointError
from models import raw

TENSORS = {
    "b": torch.randn(10, 8),
    "a": torch.arange(12, dtype=torch.int64).reshape(3, 4),
    "scalar": torch.tensor(1.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "tiny": torch.randn(5).to(torch.float8_e5m2),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SPECS = [(name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def test_any_order_gives_the_same_file(tmp_path: Path) -> None:
    for folder, names in (("one", list(TENSORS)), ("two", list(TENSORS)[::-1])):
        (tmp_path / folder).mkdir()
        with CheckpointWriter(tmp_path / folder, SPECS if folder == "one" else SPECS[::-1]) as writer:
            for name in names:
                writer.write(name, TENSORS[name])
    one, two = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "two"))
    assert one == two
    with safe_open(tmp_path / "one" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found.float(), tensor.float())


def test_a_tensor_may_come_in_blocks_of_rows_and_not_contiguous(tmp_path: Path) -> None:
    turned = torch.randn(8, 10).T
    with CheckpointWriter(tmp_path, [("b", "F32", (10, 8))], metadata={"k": "v"}) as writer:
        writer.write("b", turned[6:], first_row=6, last=False)
        writer.write("b", turned[:6], first_row=0)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("b"), turned)
        assert file.metadata() == {"k": "v"}


def test_shards_and_index(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, SPECS, shard_bytes=330) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    # in order of name: a takes 96 bytes, b 320, the rest 15
    assert files == ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", files[2]]
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as opened:
            assert torch.equal(opened.get_tensor(name).float(), TENSORS[name].float())
    assert index["weight_map"].keys() == TENSORS.keys()
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in raw(tmp_path).values())


def test_a_tensor_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, [(n, "U8", (100,)) for n in "abc"], shard_bytes=10) as writer:
        for name in "abc":
            writer.write(name, torch.zeros(100, dtype=torch.uint8))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("z", torch.zeros(10, 8), "`z` was not announced"),
        ("b", torch.zeros(10, 8).half(), "is torch.float16[10, 8], announced as F32[10, 8]"),
        ("b", torch.zeros(10, 7), "is torch.float32[10, 7], announced as F32[10, 8]"),
        ("b", torch.zeros(11, 8), "announced as F32[10, 8]"),
        ("scalar", torch.zeros(1, dtype=torch.float64), "announced as F64[]"),
    ],
)
def test_what_was_not_announced_is_refused(tmp_path: Path, name: str, tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(CheckpointError) as caught, CheckpointWriter(tmp_path, SPECS) as writer:
        writer.write(name, tensor)
    assert words in str(caught.value)


def test_a_block_may_not_reach_beyond_the_last_row(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="announced as"),
        CheckpointWriter(tmp_path, [("b", "F32", (10, 8))]) as writer,
    ):
        writer.write("b", torch.zeros(4, 8), first_row=7)


def test_a_tensor_that_never_came_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 tensors were never written, among them `b`"):  # noqa: SIM117, PT012
        with CheckpointWriter(tmp_path, [(n, "U8", (1,)) for n in "abc"]) as writer:
            writer.write("a", torch.zeros(1, dtype=torch.uint8))
            writer.write("b", torch.zeros(1, dtype=torch.uint8), last=False)
