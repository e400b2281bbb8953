"""What is read of each kind of input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from stores import contents, digest, parts

import kinfold
from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.adapter import Adapter
from kinfold.errors import CheckpointError, StoreError
from kinfold.pack.probe import probe_outputs
from kinfold.store import Store, inputs
from kinfold.store.inputs import look_at
from models import Pair, pico, raw, save


def test_a_model_with_shards_side_files_links_and_hidden_files(tmp_path: Path, local: Store) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    path = save(tmp_path / "model", pico(), shards=2)
    for file in list(path.iterdir()):  # as in a snapshot of the hub's cache
        os.rename(file, blobs / file.name)
        os.symlink(Path("..") / "blobs" / file.name, file)
    (path / "onnx").mkdir()
    (path / "onnx" / "notes.md").write_text("deep")
    (path / ".git").mkdir()
    (path / ".git" / "config").write_text("hidden")
    (path / ".hidden").write_text("hidden")
    (path / "empty.txt").touch()
    os.symlink("nowhere", path / "dangling")
    given = look_at(path)
    wanted = {p.name: p.read_bytes() for p in blobs.iterdir()} | {"onnx/notes.md": b"deep", "empty.txt": b""}
    assert {name: one.hash for name, one in given.scans.items()} == {n: digest(data) for n, data in wanted.items()}
    local.add(path, name="m")
    assert contents(local.get("m", tmp_path / "out")) == wanted


def test_the_fingerprint_is_that_of_all_tensors(tmp_path: Path) -> None:
    tensors = pico(shapes={"large": (300, 100), "small": (4,), "empty": (0, 3)})
    path = save(tmp_path / "model", tensors)
    (path / "other").mkdir()
    save(path / "other", pico(3, shapes={"large": (300, 100)}))  # the same name elsewhere counts for nothing
    infos = {name: (dtype, shape) for name, (dtype, shape, _) in raw(path / "model.safetensors").items()}
    known = {name: digest(data) for name, (_, _, data) in raw(path / "model.safetensors").items()}
    given = look_at(path)
    assert given.fingerprint == fingerprint(infos, known)
    assert given.reference_bytes == 2 * (300 * 100 + 4)
    assert sorted(given.scans) == ["config.json", "model.safetensors", "other/config.json", "other/model.safetensors"]


def test_an_adapter(adapter: Path) -> None:
    given = look_at(adapter)
    opened = Adapter.open(adapter)
    assert (given.kind, given.codec, given.base) == ("adapter", "lora", None)
    assert given.fingerprint == opened.fingerprint(digests(opened.tensors))
    assert given.reference_bytes == 2 * 2 * 32 * 32  # q_proj of two layers
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert given.report == {"base_model_name_or_path": config["base_model_name_or_path"] or "", "rank": 2}


def test_a_family_tells_its_members(folded: Path, pair: Pair) -> None:
    given = look_at(folded)
    assert (given.kind, given.codec, given.fingerprint) == ("family", "packs", None)
    assert sorted(row["name"] for row in given.report["members"]) == ["a", "b"]
    base = Checkpoint.open(pair.base)
    specs = {name: (info.dtype, info.shape) for name, info in base.tensors.items()}
    assert given.base is not None
    assert given.base.fingerprint == fingerprint(specs, digests(base))


def test_places_lead_to_the_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "model", pico(shapes={"large": (300, 100), "small": (4,)}))
    places = look_at(path).places
    for piece in [*parts(path / "model.safetensors"), (path / "config.json").read_bytes()]:
        file, start, size = places[digest(piece)]
        assert file.read_bytes()[start : start + size] == piece


def test_a_file_that_changes_is_noticed(small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model", pico())
    original = inputs.scan

    def scan_and_change(file: Path, *arguments: object) -> object:
        found = original(file, *arguments)  # type: ignore[arg-type]
        if file.name == "config.json":
            file.write_text("{}")
        return found

    monkeypatch.setattr(inputs, "scan", scan_and_change)
    with pytest.raises(StoreError, match=r"`config.json` of .* changed while it was read"):
        look_at(path)


def test_bytes_that_change_between_hashing_and_copying_are_not_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "model", pico())
    given = look_at(path)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    monkeypatch.setattr(inputs, "look_at", lambda _: given)
    with pytest.raises(StoreError, match="changed while they were copied"):
        store.add(path, name="m")
    assert store.names() == {}
    assert store.verify().sound


def test_a_file_with_an_impossible_name(store: Store, tmp_path: Path) -> None:
    path = save(tmp_path / "model", pico())
    (path / "a:b.txt").write_text("x")
    with pytest.raises(StoreError, match=r"a file cannot be kept under its name: .*a:b.txt"):
        store.add(path, name="m")


def test_a_file_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model", pico())
    original = inputs._files
    monkeypatch.setattr(inputs, "_files", lambda p: original(p) | {"gone": p / "gone"})
    with pytest.raises(StoreError, match="cannot read"):
        look_at(path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        look_at(tmp_path)


def test_a_probe_is_kept_with_a_pack(llama_pair: Pair, tmp_path: Path, local: Store) -> None:
    local.add(llama_pair.base, name="base")
    kinfold.pack(llama_pair.base, llama_pair.variant, tmp_path / "movie", codec="exact")
    assert "probe" not in local.info(f"movie@{local.add(tmp_path / 'movie').version}").report
    told = local.add(tmp_path / "movie", probe=True)  # the same bytes, and more is known
    assert (told.version, told.new_bytes, told.unchanged) == (2, 0, False)
    assert local.info("movie").report["probe"] == probe_outputs(llama_pair.variant)
    assert local.add(tmp_path / "movie", probe=True).unchanged
    assert local.add(tmp_path / "movie").unchanged  # and is not forgotten


def test_probes_that_cannot_be_run(llama_pair: Pair, tmp_path: Path, local: Store) -> None:
    kinfold.pack(llama_pair.base, llama_pair.variant, tmp_path / "movie", codec="exact")
    with pytest.raises(StoreError, match="is not in the store, so no probe can be run") as caught:
        local.add(tmp_path / "movie", probe=True)
    assert "kinfold store add" in caught.value.hint
    with pytest.raises(StoreError, match=r"a probe is of packs; .* is a model"):
        local.add(llama_pair.base, probe=True)
    assert local.names() == {}
