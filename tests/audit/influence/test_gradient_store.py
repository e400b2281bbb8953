"""The store on disk: what goes in comes out, grows, resumes, and gives damage away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load_file

from kinfold.audit.influence.scores import influence_scores
from kinfold.audit.influence.store import Block, GradientStore, StoreSpec, row_hash
from kinfold.errors import GradientStoreError

RANDOM = np.random.default_rng(0)
GRADIENTS = (RANDOM.normal(size=(25, 10)) * 10.0 ** RANDOM.integers(-6, 3, (25, 1))).astype(np.float32)
LOSSES = RANDOM.random(25).astype(np.float32)
HASHES = [row_hash({"text": str(number)}) for number in range(25)]
SHARD = 7 * (2 * 10 + 40)  # seven rows


def spec(**changes: Any) -> StoreSpec:
    blocks = [Block(name="a.weight", shape=[3, 4], width=4), Block(name="b.weight", shape=[5, 5], width=6)]
    settings = {"variant": "v", "base": "b", "task": "causal-lm", "reduction": "mean", "tokenizer": ""}
    settings |= {"max_tokens": 512, "mask": "entry"}
    return StoreSpec(**(settings | {"seed": 0, "masks": 1, "coordinates": "c", "blocks": blocks} | changes))


def made(path: Path, rows: int = 25) -> GradientStore:
    store = GradientStore.create(path, spec(), shard_bytes=SHARD)
    store.append(GRADIENTS[:rows], LOSSES[:rows], HASHES[:rows])
    store.flush()
    return store


def whole(store: GradientStore) -> np.ndarray:
    return np.concatenate([shard.gradients for shard in store.shards()])


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_rows_come_back(tmp_path: Path) -> None:
    made(tmp_path / "x.grads")
    store = GradientStore.open(tmp_path / "x.grads")
    assert store.hashes == HASHES
    assert store.rows == 25
    largest = np.abs(GRADIENTS).max(1, keepdims=True)
    assert (np.abs(whole(store) - GRADIENTS) / largest).max() < 1e-3
    assert np.concatenate([shard.losses for shard in store.shards()]).tolist() == LOSSES.tolist()
    assert [len(shard.hashes) for shard in store.shards()] == [7, 7, 7, 4]
    store.verify()


def test_shards_are_safetensors_files(tmp_path: Path) -> None:
    store = made(tmp_path / "x.grads", 5)
    found = load_file(tmp_path / "x.grads" / "rows-00000.safetensors")
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        "gradients": ("float16", (5, 10)),
        "scale": ("float32", (5,)),
        "loss": ("float32", (5,)),
        "row": ("uint8", (5, 32)),
    }
    np.testing.assert_allclose(found["scale"], np.abs(GRADIENTS[:5]).max(1))
    np.testing.assert_allclose(found["gradients"].astype(np.float32) * found["scale"][:, None], whole(store))
    assert bytes(found["row"][3]) == HASHES[3]
    assert store.nbytes == (tmp_path / "x.grads" / "rows-00000.safetensors").stat().st_size


def test_scores_from_disk_are_those_from_memory(tmp_path: Path) -> None:
    even = RANDOM.normal(size=(25, 10)).astype(np.float32) * 1e-5
    store = GradientStore.create(tmp_path / "x.grads", spec())
    store.append(even, LOSSES, HASHES)
    store.flush()
    expected = influence_scores(even, even[:3], size=37, damping=0.3)
    found = influence_scores(whole(store), even[:3], size=37, damping=0.3)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_row_of_zeros(tmp_path: Path) -> None:
    store = GradientStore.create(tmp_path / "x.grads", spec())
    store.append(np.zeros((1, 10)), np.ones(1), HASHES[:1])
    store.flush()
    assert whole(store).tolist() == [[0.0] * 10]


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, shards: int) -> None:
    made(tmp_path / "whole.grads")
    killed = GradientStore.create(tmp_path / "killed.grads", spec(), shard_bytes=SHARD)
    killed.append(GRADIENTS[: 7 * shards + 3], LOSSES[: 7 * shards + 3], HASHES[: 7 * shards + 3])  # no flush
    (tmp_path / "killed.grads" / f"rows-{shards:05}.safetensors").write_bytes(b"half a sh")
    store = GradientStore.open(tmp_path / "killed.grads", shard_bytes=SHARD)
    assert store.rows == 7 * shards
    rest = store.rows
    store.append(GRADIENTS[rest:], LOSSES[rest:], HASHES[rest:])
    store.flush()
    assert contents(tmp_path / "killed.grads") == contents(tmp_path / "whole.grads")


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    store = made(tmp_path / "x.grads")
    file = tmp_path / "x.grads" / "rows-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-50] ^= 1
    file.write_bytes(data)
    with pytest.raises(GradientStoreError, match="is damaged"):
        store.verify()
    with pytest.raises(GradientStoreError, match="rows-00001"):
        GradientStore.open(tmp_path / "x.grads")


@pytest.mark.parametrize("damage", ["truncated", "missing", "longer"])
def test_sizes_are_checked_before_reading(tmp_path: Path, damage: str) -> None:
    made(tmp_path / "x.grads")
    file = tmp_path / "x.grads" / "rows-00000.safetensors"
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[:-1] if damage == "truncated" else data + b"\0")
    with pytest.raises(GradientStoreError, match="bytes, the manifest says"):
        GradientStore.open(tmp_path / "x.grads")


def test_a_shard_whose_header_says_otherwise(tmp_path: Path) -> None:
    made(tmp_path / "x.grads")
    file, manifest = tmp_path / "x.grads" / "rows-00000.safetensors", tmp_path / "x.grads" / "manifest.json"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    content = json.loads(manifest.read_text())
    content["shards"][0]["hash"] = blake3(bytes(data)).hexdigest()
    manifest.write_text(json.dumps(content))
    with pytest.raises(GradientStoreError, match="is damaged"):
        GradientStore.open(tmp_path / "x.grads")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"},
        {"rows": 24},
        {"rows": -1},
        {"more": 1},
        {"shards": [{"rows": 25, "hash": "x"}]},
        {"spec": {}},
    ],
)
def test_manifests_are_read_strictly(tmp_path: Path, change: dict[str, Any]) -> None:
    made(tmp_path / "x.grads")
    manifest = tmp_path / "x.grads" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(GradientStoreError, match="no store of gradients"):
        GradientStore.open(tmp_path / "x.grads")


def test_no_store_and_no_room_for_one(tmp_path: Path) -> None:
    with pytest.raises(GradientStoreError, match="no store of gradients"):
        GradientStore.open(tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(GradientStoreError, match="is there and no store"):
        GradientStore.create(tmp_path / "full", spec())
    (tmp_path / "huge").mkdir()
    with (tmp_path / "huge" / "manifest.json").open("wb") as file:
        file.truncate((1 << 26) + 1)
    with pytest.raises(GradientStoreError, match="more than"):
        GradientStore.open(tmp_path / "huge")


@pytest.mark.parametrize(
    "change", [{"variant": "w"}, {"base": "other"}, {"seed": 1}, {"coordinates": "d"}, {"reduction": "sum"},
               {"tokenizer": "t"}, {"max_tokens": 9}, {"task": "pooled-head"}, {"mask": "neuron"}, {"masks": 2}]
)  # fmt: skip
def test_other_gradients_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    store = made(tmp_path / "x.grads", 3)
    store.require(spec())
    name, value = next(iter(change.items()))
    with pytest.raises(GradientStoreError, match=f"made with {name} .*, not {value}") as caught:
        store.require(spec(**change))
    assert "--gradients" in caught.value.hint


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    store = made(tmp_path / "x.grads", 3)
    for gradients, losses in (
        (GRADIENTS[:2, :9], LOSSES[:2]),
        (GRADIENTS[:2], LOSSES[:1]),
        (GRADIENTS[:3], LOSSES[:3]),
    ):
        with pytest.raises(GradientStoreError, match="each row needs 10 numbers"):
            store.append(gradients, losses, HASHES[:2])
    with pytest.raises(GradientStoreError, match="not finite"):
        store.append(np.full((1, 10), np.nan), LOSSES[:1], HASHES[:1])


def test_a_row_goes_by_its_content() -> None:
    assert row_hash({"a": 1, "b": "é"}) == row_hash({"b": "é", "a": 1})
    assert row_hash({"text": "a"}) == blake3(b'{"text":"a"}').digest()
    assert row_hash({"text": "a"}) != row_hash({"text": "a", "label": 0})
    assert len(row_hash({"text": "\ud800"})) == 32
