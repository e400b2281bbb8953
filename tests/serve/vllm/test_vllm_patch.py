"""Whole variants in place, on a worker that holds plain tensors; expected ones are read from the variants' files."""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from vllm_shelf import Shelf

import kinfold
from kinfold.errors import ServeError
from kinfold.serve.vllm.patch import KinfoldWorker, apply, put_back
from models import llama


class Model(torch.nn.Module):
    """Takes checkpoint tensors under the checkpoint's names; says what it took, as vLLM's models do."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.held = load_file(directory / "model.safetensors")
        self.rest = torch.nn.Parameter(torch.zeros(1))
        self.deaf: set[str] = set()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        taken = set()
        for name, tensor in weights:
            if name not in self.deaf:
                assert tensor.shape == self.held[name].shape
                self.held[name] = tensor.clone()
                taken.add(name.replace("q_proj", "qkv_proj").replace("k_proj", "qkv_proj"))
        return taken


class Worker(KinfoldWorker):
    def __init__(self, directory: Path) -> None:
        self.model = Model(directory)
        self.model_runner = SimpleNamespace(get_model=lambda: self.model)
        self.vllm_config = SimpleNamespace(quant_config=None)
        self.reloads = 0

    def reload_weights(self, weights_iterator: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.reloads += 1
        assert self.model.load_weights(weights_iterator)


class Engine:
    """A `vllm.LLM` of one worker."""

    def __init__(self, directory: Path) -> None:
        self.worker = Worker(directory)
        self.stale = False

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        self.stale = True
        return [getattr(self.worker, method)(*args)]

    def reset_prefix_cache(self) -> None:
        self.stale = False

    def generate(self, prompts: list[Any], sampling: Any, use_tqdm: bool) -> list[Any]:
        assert not self.stale, "cached blocks are of other weights"
        value = float(sum(tensor.double().abs().sum() for tensor in self.worker.model.held.values()))
        answer = SimpleNamespace(outputs=[SimpleNamespace(logprobs=[{7: SimpleNamespace(logprob=value)}])])
        return [answer for _ in prompts]


@pytest.fixture
def engine(shelf: Shelf, fake_vllm: Any, monkeypatch: pytest.MonkeyPatch) -> Engine:
    Patch = namedtuple("Patch", "name shape dtype values indices", defaults=[None])

    def load(model: Model, patches: list[Any]) -> set[str]:
        assert all(patch.values.dim() == 1 for patch in patches)
        return model.load_weights([(patch.name, patch.values.to(patch.dtype).view(patch.shape)) for patch in patches])

    names = ("vllm.model_executor", "vllm.model_executor.model_loader")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    loader = ModuleType(f"{names[1]}.checkpoint_weight_patch")
    loader.CheckpointWeightPatch, loader.load_checkpoint_weight_patches = Patch, load  # type: ignore[attr-defined]
    sys.modules[names[1]].checkpoint_weight_patch = loader  # type: ignore[attr-defined]
    sys.modules["vllm"].SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    return Engine(shelf.base)


def holds(engine: Engine, directory: Path) -> None:
    wanted = load_file(directory / "model.safetensors")
    assert engine.worker.model.held.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(engine.worker.model.held[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("emptied", [False, True])
def test_there_and_on_and_back(shelf: Shelf, engine: Engine, tmp_path: Path, emptied: bool) -> None:
    if emptied:
        engine.worker.model.rest = torch.nn.Parameter(torch.zeros(0))
    kinfold.restore(shelf.sources / "red.kin.safetensors", shelf.base, tmp_path / "red")
    applied = apply(engine, shelf.sources / "full.kin.safetensors", base=shelf.base)
    holds(engine, shelf.sources / "full")
    assert applied.way == ("swap" if emptied else "patch")
    assert applied.tensors == 21
    again = apply(engine, shelf.sources / "red.kin.safetensors", base=shelf.base)
    holds(engine, tmp_path / "red")  # and what only the one before had changed is the base's again
    back = put_back(engine, base=shelf.base)
    holds(engine, shelf.base)
    assert back.after == applied.before
    assert again.before == applied.after
    assert engine.worker.reloads == (3 if emptied else 0)
    if emptied:
        assert "CPU" in applied.why
    else:
        assert again.tensors == 21
        assert back.tensors == 14  # red's alone
        assert applied.parameters == 19  # two layers' k_proj share q_proj's


def test_family_and_adapter(shelf: Shelf, engine: Engine, tmp_path: Path) -> None:
    apply(engine, shelf.sources / "duo.kin.safetensors", base=shelf.base, member="amber")
    holds(engine, shelf.sources / "amber-unfolded")
    apply(engine, shelf.sources / "blue-adapter", base=shelf.base)
    wanted = load_file(shelf.sources / "blue" / "model.safetensors")
    for name, tensor in engine.worker.model.held.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["quantised", "experts"])
def test_weights_that_were_laid_out_anew_are_swapped(shelf: Shelf, engine: Engine, kind: str) -> None:
    if kind == "quantised":
        engine.worker.vllm_config.quant_config = "fp8"
    else:
        engine.worker.model.experts = type("FusedMoE", (torch.nn.Module,), {})()
    assert apply(engine, shelf.sources / "red", base=shelf.base).way == "swap"
    holds(engine, shelf.sources / "red")


def test_tensor_that_the_model_does_not_take_is_named(shelf: Shelf, engine: Engine) -> None:
    engine.worker.model.deaf = {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(ServeError, match=r"took 13 of 14 tensors.*model\.layers\.1\.mlp\.up_proj\.weight") as refused:
        apply(engine, shelf.sources / "red", base=shelf.base)
    assert "restart" in refused.value.hint
    engine.worker.model.deaf = set()
    put_back(engine, base=shelf.base)
    holds(engine, shelf.base)


def test_loader_that_fails_is_told(shelf: Shelf, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> set[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.worker.model, "load_weights", fail)
    with pytest.raises(ServeError, match="could not load the weights: out of memory"):
        apply(engine, shelf.sources / "red", base=shelf.base)


def test_answers_as_before_are_an_error(shelf: Shelf, engine: Engine) -> None:
    apply(engine, shelf.sources / "red", base=shelf.base)
    with pytest.raises(ServeError, match="answers as before"):
        apply(engine, shelf.sources / "red", base=shelf.base)


def test_config_of_its_own_is_refused(shelf: Shelf, engine: Engine, tmp_path: Path) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(shelf.base)
    model.config.rms_norm_eps = 0.1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ServeError, match="rms_norm_eps differ"):
        apply(engine, tmp_path / "other", base=shelf.base)
    holds(engine, shelf.base)


@pytest.mark.parametrize("change", ["resized", "absent"])
def test_tensors_that_do_not_fit_are_refused(shelf: Shelf, engine: Engine, tmp_path: Path, change: str) -> None:
    model = LlamaForCausalLM.from_pretrained(shelf.base)
    model.save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    tensors = load_file(file)
    if change == "resized":
        tensors["lm_head.weight"] = torch.zeros(101, 32)
    else:
        del tensors["lm_head.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ServeError, match=r"no room for, new, resized or absent: lm_head\.weight"):
        apply(engine, tmp_path / "other", base=shelf.base)


def test_texts_of_its_own_are_told(shelf: Shelf, engine: Engine, tmp_path: Path) -> None:
    llama(seed=5, tie_word_embeddings=False).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat_template.jinja" in apply(engine, tmp_path / "other", base=shelf.base).notes[0]


def test_what_is_not_there_is_told_as_ever(shelf: Shelf, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="there is no"):
        apply(engine, tmp_path / "nothing", base=shelf.base)
