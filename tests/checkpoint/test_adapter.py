"""Adapter folders: what is read is what PEFT computes, and what is no plain LoRA is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapters import WEIGHTS, gpt2, make, rewrite
from kinfold.checkpoint.adapter import Adapter, is_adapter, peft_tensors
from kinfold.checkpoint.adapter_config import write_config
from kinfold.errors import AdapterError
from models import llama

ATTENTION = "base_model.model.layers.0.attn"


class Net(nn.Module):
    """One of each layer that LoRA knows, without transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3)
        self.point = nn.Conv2d(8, 6, 1)
        self.line = nn.Conv1d(6, 5, 3)
        self.table = nn.Embedding(20, 12)
        self.flat = nn.Linear(12, 9)


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """Rank 2, alpha 6, one Linear of (5, 4), written without PEFT."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["attn"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    pair = {"A": torch.randn(2, 4, generator=generator), "B": torch.randn(5, 2, generator=generator)}
    save_file({f"{ATTENTION}.lora_{side}.weight": tensor for side, tensor in pair.items()}, folder / WEIGHTS)
    return folder


def dense(adapter: Adapter, module: str) -> torch.Tensor:
    lora = adapter.loras[module]
    a, c = adapter.factors(lora)
    assert a.dtype == c.dtype == torch.float64
    return (a @ c.T).reshape(lora.shape)


def test_factors_are_numpys(by_hand: Path) -> None:
    tensors = {key[-8:-7]: tensor.double().numpy() for key, tensor in load_file(by_hand / WEIGHTS).items()}
    adapter = Adapter.open(by_hand)
    assert adapter.loras.keys() == {"layers.0.attn"}
    assert adapter.settings.base == ""  # an adapter need not name its base
    np.testing.assert_allclose(dense(adapter, "layers.0.attn"), 3.0 * tensors["B"] @ tensors["A"], atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_every_layer_is_read_as_peft_computes_it(tmp_path: Path, rslora: bool) -> None:
    targets = ["wide", "point", "line", "table", "flat"]
    ranks = {"wide": 3, "flat": 5}
    adapted = make(
        Net(),
        tmp_path / "a",
        target_modules=targets,
        r=4,
        lora_alpha=7,
        rank_pattern=ranks,
        alpha_pattern={"li.e": 2},
        use_rslora=rslora,
    )
    adapter = Adapter.open(tmp_path / "a")
    assert list(adapter.loras) == sorted(targets)
    for module in targets:
        expected = adapted.base_model.model.get_submodule(module).get_delta_weight("default")
        assert adapter.loras[module].rank == ranks.get(module, 4)
        torch.testing.assert_close(dense(adapter, module).float(), expected, atol=1e-6, rtol=0)


def test_a_transposed_layer_is_read_the_way_round_it_computes(tmp_path: Path) -> None:
    adapted = make(gpt2(), tmp_path / "a", target_modules=["c_fc"], r=2, fan_in_fan_out=True)
    adapter = Adapter.open(tmp_path / "a")
    module = "transformer.h.0.mlp.c_fc"
    expected = adapted.base_model.model.get_submodule(module).get_delta_weight("default")
    torch.testing.assert_close(dense(adapter, module).float().T, expected, atol=1e-6, rtol=0)
    assert adapter.settings.transposed


def test_lora_bias_is_scaled(tmp_path: Path) -> None:
    adapted = make(Net(), tmp_path / "a", target_modules=["flat"], r=2, lora_alpha=5, lora_bias=True)
    adapter = Adapter.open(tmp_path / "a")
    expected = adapted.base_model.model.flat.lora_B["default"].bias * 2.5
    torch.testing.assert_close(adapter.bias(adapter.loras["flat"]), expected.detach(), atol=1e-7, rtol=0)


def test_modules_to_save_biases_and_copies_are_told_apart(tmp_path: Path) -> None:
    make(Net(), tmp_path / "a", target_modules=["flat"], r=2, bias="lora_only", modules_to_save=["table"])
    adapter = Adapter.open(tmp_path / "a")
    assert adapter.saved.keys() == {"table.weight", "flat.bias"}
    make(llama(), tmp_path / "b", target_modules=["embed_tokens"], r=2)
    adapter = Adapter.open(tmp_path / "b")
    assert adapter.copies.keys() == {"model.embed_tokens.weight"}
    assert not adapter.saved


def test_keys_may_carry_the_adapters_name(by_hand: Path) -> None:
    before = dense(Adapter.open(by_hand), "layers.0.attn")

    def named(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {key.replace(".weight", ".default.weight"): tensor for key, tensor in tensors.items()}
        return renamed | {"base_model.model.score.modules_to_save.default.weight": torch.ones(2, 4)}

    adapter = Adapter.open(rewrite(by_hand, edit=named))
    assert adapter.saved.keys() == {"score.weight"}
    assert torch.equal(dense(adapter, "layers.0.attn"), before)


def test_the_fingerprint_names_tensors_and_scaling(by_hand: Path, tmp_path: Path) -> None:
    def mark(folder: Path) -> str:
        adapter = Adapter.open(folder)
        return adapter.fingerprint(adapter.digests())

    twin = shutil.copytree(by_hand, tmp_path / "twin")
    assert mark(twin) == mark(by_hand)
    assert mark(rewrite(twin, config={"lora_alpha": 7})) != mark(by_hand)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"fc": ((7, 5), ()), "deep.fc": ((6, 5), ()), "conv": ((4, 3, 2, 2), (2, 2))}
    pairs = {
        name: (
            torch.randn(shape[0], k, generator=generator),
            torch.randn(int(np.prod(shape[1:])), k, generator=generator),
        )
        for k, (name, (shape, _)) in enumerate(shapes.items(), 1)
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, (a, c) in pairs.items():
        tensors |= peft_tensors(name, a, c, kernel=shapes[name][1])
    table = torch.randn(9, 3, generator=generator), torch.randn(4, 3, generator=generator)
    tensors |= peft_tensors("table", *table, embedding=True)
    save_file(tensors, tmp_path / WEIGHTS)
    ranks = {"fc": 1, "deep.fc": 2, "conv": 3, "table": 3}
    write_config(tmp_path, "base", ranks, saved=[], bias=False, transposed=False)
    adapter = Adapter.open(tmp_path)
    for name, (a, c) in {**pairs, "table": table}.items():
        read = adapter.factors(adapter.loras[name])
        assert torch.equal(read[0], a.double())
        assert torch.equal(read[1], c.double())
    assert is_adapter(tmp_path)
    assert not is_adapter(tmp_path.parent)


def config(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: void(rewrite(folder, config=entries))


def tensors(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda folder: void(rewrite(folder, edit=edit))


def void(_: object) -> None:
    pass


A, B = f"{ATTENTION}.lora_A.weight", f"{ATTENTION}.lora_B.weight"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "cannot read"),
    "no JSON": (lambda folder: void((folder / "adapter_config.json").write_text("{")), "cannot read"),
    "a list": (lambda folder: void((folder / "adapter_config.json").write_text("[]")), "no JSON object"),
    "other type": (config(peft_type="IA3"), "type IA3"),
    "no type": (config(peft_type=None), "type None"),
    "dora": (config(use_dora=True), "use_dora"),
    "replication": (config(layer_replication=[[0, 2]]), "layer_replication"),
    "token rows": (config(trainable_token_indices=[1]), "trainable_token_indices"),
    "parameters": (config(target_parameters=["w"]), "target_parameters"),
    "alora": (config(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "qalora": (config(use_qalora=True), "use_qalora"),
    "bdlora": (config(use_bdlora={"nblocks": 2}), "use_bdlora"),
    "arrow": (config(arrow_config={"top_k": 3}), "arrow_config"),
    "kasa": (config(kasa_config={"beta": 1.0}), "kasa_config"),
    "monteclora": (config(monteclora_config={"num_samples": 2}), "monteclora_config"),
    **{name: (config(init_lora_weights=name), name) for name in ("pissa", "olora", "corda", "loftq", "lora_ga")},
    "pissa by steps": (config(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
    "rank 0": (config(r=0), "positive integer"),
    "rank pattern": (config(rank_pattern={"attn": "4"}), "positive integer"),
    "pattern list": (config(rank_pattern=["attn"]), "rank_pattern must map"),
    "no regex": (config(alpha_pattern={"(": 1}), "no valid LoRA config"),
    "alpha": (config(lora_alpha="16"), "finite number"),
    "modules": (config(modules_to_save="score"), "list of names"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "pickle": (lambda folder: void((folder / WEIGHTS).rename(folder / "adapter_model.bin")), "a pickle"),
    "truncated": (lambda folder: void((folder / WEIGHTS).write_bytes(b"12")), "no valid safetensors"),
    "nothing": (tensors(lambda _: {}), "no lora_A and lora_B"),
    "one side": (tensors(lambda t: {A: t[A]}), "no `lora_B`"),
    "other rank": (config(r=3), "rank 3 needs"),
    "unsharded": (tensors(lambda t: t | {B: torch.zeros(0, 2)}), "rank 2 needs"),
    "flat": (tensors(lambda t: t | {B: t[B].reshape(-1)}), "rank 2 needs"),
    "bias": (tensors(lambda t: t | {f"{ATTENTION}.lora_B.bias": torch.zeros(4)}), r"is \[4\], not \[5\]"),
    "integers": (tensors(lambda t: t | {A: t[A].int()}), "is I32"),
    "NaN": (tensors(lambda t: t | {A: t[A] * float("nan")}), "NaN or infinity"),
    "infinity": (tensors(lambda t: t | {B: t[B] / 0.0}), "NaN or infinity"),
    "magnitude": (tensors(lambda t: t | {f"{ATTENTION}.lora_magnitude_vector": torch.ones(5)}), "no plain LoRA"),
    "two adapters": (
        tensors(lambda t: {f"{ATTENTION}.lora_A.x.weight": t[A], f"{ATTENTION}.lora_B.y.weight": t[B]}),
        "several adapters: x, y",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_plain_lora_is_refused(by_hand: Path, case: str) -> None:
    spoil, match = BAD[case]
    spoil(by_hand)
    with pytest.raises(AdapterError, match=match):
        Adapter.open(by_hand)


def test_dora_names_the_way_out(tmp_path: Path) -> None:
    make(Net(), tmp_path / "a", target_modules=["flat"], r=2, use_dora=True)
    with pytest.raises(AdapterError) as caught:
        Adapter.open(tmp_path / "a")
    assert "merge_and_unload" in caught.value.hint
