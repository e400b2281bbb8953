"""Names of a store, as adapters for one base."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM
from vllm_shelf import Shelf, drifted

import kinfold
from kinfold.cli import app
from kinfold.cli.output import run
from kinfold.serve.vllm import variants as module
from kinfold.serve.vllm.adapter import RefusedError
from kinfold.serve.vllm.settings import Settings
from kinfold.serve.vllm.variants import StoredVariants, roads
from kinfold.store import Store
from models import llama


@pytest.fixture
def variants(tmp_path: Path, shelf: Shelf) -> StoredVariants:
    return StoredVariants(Settings(str(shelf.store), cache=tmp_path / "adapters"))


def test_name_becomes_a_folder(shelf: Shelf, variants: StoredVariants) -> None:
    found = variants.adapter(str(shelf.base), "red")
    assert found is not None
    folder, lora = found
    assert (folder / "adapter_model.safetensors").is_file()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == lora.rank
    assert variants.adapter(str(shelf.base), "red") == found


@pytest.mark.parametrize("name", ["duo/amber", "blue", "red@1"])
def test_members_adapters_and_versions(shelf: Shelf, variants: StoredVariants, name: str) -> None:
    assert variants.adapter(str(shelf.base), name) is not None


@pytest.mark.parametrize("name", ["nobody", "red@9", "red:gone", "org/model", "../red", "", "red@@1", "\0"])
def test_names_that_are_not_there_are_left_to_others(shelf: Shelf, variants: StoredVariants, name: str) -> None:
    assert variants.adapter(str(shelf.base), name) is None


def test_a_miss_is_remembered_for_a_while(
    shelf: Shelf, variants: StoredVariants, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "_MISSES", 2)
    asked: list[str] = []
    find = variants.find
    monkeypatch.setattr(variants, "find", lambda name: asked.append(name) or find(name))
    for name in ("nobody", "nobody", "other", "third"):
        assert variants.adapter(str(shelf.base), name) is None
    assert asked == ["nobody", "other", "third"]
    assert len(variants._misses) <= 2
    now[0] += module.MISS_SECONDS + 1
    variants.adapter(str(shelf.base), "third")
    assert asked[-1] == "third"
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dense", "full rank"),
        ("base", "equal to the base"),
        ("duo", "ask for one of `duo/amber`, `duo/red`"),
        ("duo/nobody", "ask for one of"),
        ("red/amber", "no family"),
    ],
)
def test_what_is_there_and_cannot_be_served_says_why(
    shelf: Shelf, variants: StoredVariants, name: str, words: str
) -> None:
    for _ in range(2):
        with pytest.raises(RefusedError, match=words):
            variants.adapter(str(shelf.base), name)


def test_a_refusal_is_remembered(shelf: Shelf, variants: StoredVariants, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError):
        variants.adapter(str(shelf.base), "dense")
    monkeypatch.setattr(variants, "open", lambda *_: pytest.fail("decoded twice"))
    with pytest.raises(RefusedError, match="full rank"):
        variants.adapter(str(shelf.base), "dense")


def test_what_proved_wrong_is_refused(shelf: Shelf, variants: StoredVariants) -> None:
    assert variants.adapter(str(shelf.base), "red") is not None
    variants.refuse(str(shelf.base), "red", "it changes nothing")
    with pytest.raises(RefusedError, match="it changes nothing"):
        variants.adapter(str(shelf.base), "red")


def test_another_base_is_refused(tmp_path: Path, shelf: Shelf, variants: StoredVariants) -> None:
    llama(seed=9, tie_word_embeddings=False).save_pretrained(tmp_path / "other")
    with pytest.raises(RefusedError, match="made from another base"):
        variants.adapter(str(tmp_path / "other"), "red")


def test_base_by_its_own_setting(tmp_path: Path, shelf: Shelf) -> None:
    settings = Settings(str(shelf.store), base=str(shelf.base), cache=tmp_path / "adapters")
    assert StoredVariants(settings).adapter("org/some-name", "red") is not None


def test_base_that_is_nowhere(shelf: Shelf, variants: StoredVariants) -> None:
    with pytest.raises(RefusedError, match="no local directory") as refused:
        variants.adapter("org/some-name", "red")
    assert "KINFOLD_VLLM_BASE" in refused.value.hint


def test_store_that_cannot_be_read(tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(RefusedError, match="`red`: "):
        StoredVariants(Settings(str(tmp_path / "none"), cache=tmp_path / "adapters")).adapter(str(shelf.base), "red")


def test_new_content_has_a_new_folder(tmp_path: Path, shelf: Shelf) -> None:
    """vLLM keeps computed blocks by the adapter's path."""
    store = Store.init(tmp_path / "store")
    store.add(shelf.sources / "red.kin.safetensors", name="it")
    variants = StoredVariants(Settings(str(tmp_path / "store"), cache=tmp_path / "adapters"))
    first = variants.adapter(str(shelf.base), "it")
    store.add(shelf.sources / "blue-adapter", name="it")
    second, again = variants.adapter(str(shelf.base), "it"), variants.adapter(str(shelf.base), "it@1")
    assert first
    assert second
    assert again
    assert first[0] != second[0]
    assert first[0].name.rpartition("-")[2] == again[0].name.rpartition("-")[2]
    higher = StoredVariants(replace(variants.settings, max_rank=32)).adapter(str(shelf.base), "it")
    assert higher
    assert higher[0] != second[0]


def test_roads_say_what_goes_how(tmp_path: Path, shelf: Shelf, variants: StoredVariants) -> None:
    found = {road.name: road for road in roads(variants, str(shelf.base), tmp_path)}
    ways = {name: road.way for name, road in found.items()}
    full = {"full": ways.pop("full")}  # of so small a model, rank 16 is half of the whole
    assert full == {"full": "weights"}
    assert ways == {"red": "lora", "blue": "lora", "duo/amber": "lora", "duo/red": "lora", "dense": "weights"}
    assert "full rank" in found["dense"].why
    assert found["red"].rank >= 2


def test_roads_take_kept_factors_above_the_default(tmp_path: Path, shelf: Shelf) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(shelf.base)
    drifted(model, 5, rank=20).save_pretrained(tmp_path / "wide")
    pack = tmp_path / "wide.kin.safetensors"
    kinfold.pack(
        shelf.base, tmp_path / "wide", pack, codec="truncsvd", budget="rank:20", options={"allocation": "uniform"}
    )
    store = Store.init(tmp_path / "store")
    store.add(pack, name="wide")
    llama(seed=9).save_pretrained(tmp_path / "stranger")
    store.add(tmp_path / "stranger", name="stranger")  # another base: none of ours
    variants = StoredVariants(Settings(str(tmp_path / "store"), cache=tmp_path / "adapters"))
    found = roads(variants, str(shelf.base), tmp_path)
    assert [(road.name, road.way) for road in found] == [("wide", "lora")]
    assert 20 <= found[0].rank <= 32
    with pytest.raises(RefusedError) as refused:
        variants.adapter(str(shelf.base), "wide")
    assert "--max-lora-rank 32" in refused.value.hint


def test_damage_is_told(tmp_path: Path, shelf: Shelf) -> None:
    """Also in a plan, which goes on with the others."""
    shutil.copytree(shelf.store, tmp_path / "store")
    for file in (tmp_path / "store" / "objects").rglob("*"):
        if file.is_file() and file.stat().st_size > 4096:
            file.chmod(0o644)
            file.write_bytes(bytes(file.stat().st_size))
    variants = StoredVariants(Settings(str(tmp_path / "store"), cache=tmp_path / "adapters"))
    with pytest.raises(RefusedError, match="`red`: "):
        variants.adapter(str(shelf.base), "red")
    found = {road.name: road.way for road in roads(variants, str(shelf.base), tmp_path)}
    assert found["red"] == "broken"


def test_plan_prints_the_command(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["vllm", "plan", str(shelf.store), "--base", str(shelf.base)]
    assert run(app, [*command, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ranks = [row["rank"] for row in found["variants"] if row["way"] == "lora"]
    assert len(ranks) == 4
    assert found["max_lora_rank"] == min(flag for flag in (8, 16, 32) if flag >= max(ranks))
    assert f"vllm serve {shelf.base} --enable-lora --max-lora-rank {found['max_lora_rank']}" in found["command"]
    assert found["command"].startswith(f"KINFOLD_STORE={shelf.store} VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
    assert run(app, command) == 0
    shown = capsys.readouterr()
    assert "full rank" in shown.out
    assert "vllm serve" in shown.err


def test_plan_without_any_lora_says_what_to_do(
    tmp_path: Path, shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.init(tmp_path / "store").add(shelf.sources / "dense.kin.safetensors", name="dense")
    assert run(app, ["vllm", "plan", str(tmp_path / "store"), "--base", str(shelf.base)]) == 0
    assert "kinfold restore" in capsys.readouterr().err
    assert run(app, ["vllm", "plan", str(tmp_path / "store"), "--base", str(shelf.base), "--partial"]) == 0
    assert "KINFOLD_VLLM_PARTIAL=1" in capsys.readouterr().err
