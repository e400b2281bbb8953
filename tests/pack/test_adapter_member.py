"""An adapter as a member: its deltas are what PEFT merges, its variant answers as the adapted model does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import gpt2, load, logits, make, merged, rewrite, write_variant
from kinfold.errors import AdapterError, CheckpointError
from kinfold.pack.member import Base, Member
from kinfold.pack.members import open_member, open_members
from models import bert, llama, pico, save

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (bert, {"target_modules": ["query", "dense"], "r": 4, "lora_alpha": 9}),
    "rslora, mixed ranks": (
        lambda: llama(tie_word_embeddings=False),
        {
            "target_modules": ["q_proj", "up_proj", "lm_head"],
            "r": 4,
            "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"up_proj": 3},
        },
    ),
    "embedding": (lambda: llama(tie_word_embeddings=False), {"target_modules": ["embed_tokens"], "r": 3}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 4}),
    "conv1d, square only": (gpt2, {"target_modules": ["attn.c_proj"], "r": 4}),
    "lora_bias": (bert, {"target_modules": ["dense"], "r": 2, "lora_bias": True, "lora_alpha": 5}),
    "trained biases": (bert, {"target_modules": ["dense"], "r": 2, "bias": "all"}),
    "modules_to_save": (
        lambda: bert(classes=3),
        {"target_modules": ["value"], "r": 2, "task_type": "SEQ_CLS", "modules_to_save": ["LayerNorm"]},
    ),
}
TIED: dict[str, dict[str, Any]] = {
    "embedding alone": {"target_modules": ["q_proj", "embed_tokens"]},
    "head alone": {"target_modules": ["q_proj", "lm_head"]},
    "both, apart": {"target_modules": ["embed_tokens", "lm_head"]},
    "both, together": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "whole, apart": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "whole, embedding alone": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


def member_of(model: Any, folder: Path, **config: Any) -> tuple[Member, Any]:
    model.save_pretrained(folder / "base")
    adapted = make(model, folder / "adapter", **config)
    return open_member(folder / "adapter", Base.open(folder / "base")), adapted


@pytest.mark.parametrize("case", CASES)
def test_deltas_are_what_peft_merges(tmp_path: Path, case: str) -> None:
    build, config = CASES[case]
    model = build()
    member, adapted = member_of(model, tmp_path, **config)
    after, before = merged(model, tmp_path / "adapter"), model.state_dict()
    assert member.kind == "adapter"
    assert not member.absent
    changed = []
    for name in member.own:
        expected = after[name] - before[name]
        torch.testing.assert_close(member.delta(name), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(member.value(name), after[name], atol=1e-6, rtol=0)
        changed += [name] if bool(expected.any()) else []
    assert changed == member.changed
    variant = type(model).from_pretrained(write_variant(member, tmp_path / "variant")).eval()
    torch.testing.assert_close(logits(variant), logits(adapted), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(variant), logits(model), atol=1e-2)


@pytest.mark.parametrize("case", TIED)
def test_tied_tensors_stay_one_or_part(tmp_path: Path, case: str) -> None:
    """PEFT's merge writes both factors into the one tied tensor; what counts is what the adapted model answers."""
    model = llama()
    member, adapted = member_of(model, tmp_path, r=4, **TIED[case])
    variant = type(model).from_pretrained(write_variant(member, tmp_path / "variant")).eval()
    torch.testing.assert_close(logits(variant), logits(adapted), atol=1e-5, rtol=0)
    together = case == "both, together"
    assert member.whole == ([] if together else ["lm_head.weight"])
    assert json.loads(member.files()["config.json"])["tie_word_embeddings"] is together


def test_factors_are_the_deltas(tmp_path: Path) -> None:
    member, _ = member_of(gpt2(), tmp_path, target_modules=["c_attn", "c_proj"], r=3)
    assert len(member.changed) == 6
    for name in member.changed:
        pair = member.factors(name)
        assert pair is not None
        a, c = pair
        assert a.dtype == c.dtype == torch.float64
        assert (a.shape[1], c.shape[1]) == (3, 3)
        torch.testing.assert_close((a @ c.T).float(), member.delta(name), atol=1e-7, rtol=0)
    unchanged = next(name for name in member.same if name.endswith("ln_1.weight"))
    assert member.factors(unchanged) is None
    assert not member.delta(unchanged).any()


def test_a_bare_base_gets_the_deltas_of_a_prefixed_adapter(tmp_path: Path) -> None:
    model = bert(classes=3)
    model.bert.save_pretrained(tmp_path / "base")
    make(model, tmp_path / "a", target_modules=["query", "pooler.dense"], r=2, modules_to_save=["classifier"])
    member = open_member(tmp_path / "a", Base.open(tmp_path / "base"))
    after, before = merged(model, tmp_path / "a"), model.state_dict()
    assert len(member.changed) == 3
    for name in member.changed:
        torch.testing.assert_close(
            member.delta(name), after[f"bert.{name}"] - before[f"bert.{name}"], atol=1e-6, rtol=0
        )
    assert member.whole == ["classifier.bias", "classifier.weight"]
    assert torch.equal(member.value("classifier.weight"), after["classifier.weight"])


def test_a_prefixed_base_gets_the_deltas_of_a_bare_adapter(tmp_path: Path) -> None:
    model = bert(classes=3)
    model.save_pretrained(tmp_path / "base")
    make(model.bert, tmp_path / "a", target_modules=["query"], r=2)
    member = open_member(tmp_path / "a", Base.open(tmp_path / "base"))
    assert member.changed == [f"bert.encoder.layer.{n}.attention.self.query.weight" for n in range(2)]


def test_a_resized_embedding_is_whole(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "base")
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(103)
    make(larger, tmp_path / "a", target_modules=["q_proj"], r=2, modules_to_save=["embed_tokens"])
    member = open_member(tmp_path / "a", Base.open(tmp_path / "base"))
    assert member.whole == ["model.embed_tokens.weight"]
    assert member.value("model.embed_tokens.weight").shape == (103, 32)


def test_a_saved_module_that_did_not_change_is_the_same(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "base")
    make(model, tmp_path / "a", target_modules=["query"], r=2, modules_to_save=["pooler"])
    state = model.state_dict()
    rewrite(tmp_path / "a", edit=lambda t: {k: state.get(k.removeprefix("base_model.model."), v) for k, v in t.items()})
    member = open_member(tmp_path / "a", Base.open(tmp_path / "base"))
    assert {"pooler.dense.weight", "pooler.dense.bias"} <= member.same
    assert all(name.endswith("query.weight") for name in member.changed)


def test_types_are_kept_and_added_once(tmp_path: Path) -> None:
    model = llama().to(torch.bfloat16)
    member, _ = member_of(model, tmp_path, target_modules=["q_proj"], r=2)
    name = member.changed[0]
    exactly = model.state_dict()[name].float() + member.delta(name)
    assert torch.equal(member.value(name), exactly.to(torch.bfloat16))


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    """Names and shapes are enough, and `fan_in_fan_out` says which way round a square weight lies."""
    base = save(tmp_path / "base", pico(shapes={"up.weight": (6, 6), "up.bias": (6,)}))
    a, b = torch.randn(2, 6), torch.randn(6, 2)
    for transposed in (False, True):
        folder = tmp_path / f"{transposed}"
        folder.mkdir()
        save_file({"up.lora_A.weight": a, "up.lora_B.weight": b}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": transposed}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        delta = open_member(folder, Base.open(base)).delta("up.weight")
        torch.testing.assert_close(delta, (b @ a).T if transposed else b @ a, atol=1e-6, rtol=0)


def test_a_list_of_members_may_hold_adapters(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "base")
    make(model, tmp_path / "movie", target_modules=["query"], r=2)
    model.save_pretrained(tmp_path / "copy")
    members = open_members([tmp_path / "movie", tmp_path / "copy"], Base.open(tmp_path / "base"))
    assert [(m.name, m.kind) for m in members] == [("movie", "adapter"), ("copy", "model")]
    assert members[0].fingerprint != members[1].fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = bert()
    model.save_pretrained(tmp_path / "base")
    make(model, tmp_path / "a", target_modules=["query", "pooler.dense"], r=2)
    return tmp_path


def refused(folder: Path, match: str, base: Path | None = None) -> None:
    with pytest.raises(AdapterError, match=match):
        open_member(folder / "a", Base.open(base or folder / "base"))


def test_a_base_of_another_size_is_refused(folder: Path) -> None:
    bert(hidden_size=16).save_pretrained(folder / "other")
    refused(folder, r"is \[32, 32\].*is \[16, 16\]", folder / "other")


def test_factors_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    make(gpt2(), tmp_path / "a", target_modules=["c_fc"], r=2)
    swap = {"lora_A": "lora_B", "lora_B": "lora_A"}

    def turned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            key.replace(side, swap[side]): t.T.contiguous()
            for side in swap
            for key, t in tensors.items()
            if side in key
        }

    rewrite(tmp_path / "a", edit=turned)
    refused(tmp_path, r"is \[32, 128\].*is \[32, 128\]")


def test_an_unknown_module_is_refused(folder: Path) -> None:
    rewrite(folder / "a", edit=lambda t: {key.replace("query", "request"): tensor for key, tensor in t.items()})
    refused(folder, "has no `encoder.layer.0.attention.self.request.weight`")


def test_a_whole_tensor_of_no_module_is_refused(folder: Path) -> None:
    rewrite(folder / "a", edit=lambda t: t | {"base_model.model.stranger.weight": torch.ones(2)})
    refused(folder, "`stranger.weight`, which neither")


def test_a_tensor_both_adapted_and_replaced_is_refused(folder: Path) -> None:
    key = "base_model.model.pooler.dense.weight"
    rewrite(folder / "a", edit=lambda t: t | {key: torch.ones(32, 32)})
    refused(folder, "both adapts")


def test_a_bias_without_a_place_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    make(llama(), tmp_path / "a", target_modules=["q_proj"], r=2, lora_bias=True)
    refused(tmp_path, "has a bias for")


def test_quantised_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "base" / "model.safetensors")
    weights["pooler.dense.weight"] = weights["pooler.dense.weight"].to(torch.int8)
    save_file(weights, folder / "base" / "model.safetensors")
    refused(folder, "is I8")


def test_another_bases_embedding_beside_the_factors_is_refused(tmp_path: Path) -> None:
    llama(seed=1).save_pretrained(tmp_path / "base")
    make(llama(seed=0), tmp_path / "a", target_modules=["embed_tokens"], r=2)
    refused(tmp_path, "carries its base's `model.embed_tokens.weight`")


def test_weights_shared_by_more_than_two_must_change_alike(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    settings = {"vocab_size": 40, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**settings)).eval()
    model.save_pretrained(tmp_path / "base")
    make(model, tmp_path / "a", target_modules=["q", "shared"], r=2)
    refused(tmp_path, "shares with")


def test_a_model_directory_is_not_an_adapter(folder: Path) -> None:
    from kinfold.checkpoint import Checkpoint

    with pytest.raises(CheckpointError, match="is a PEFT adapter") as caught:
        Checkpoint.open(folder / "a")
    assert "kinfold export" in caught.value.hint
    assert load(bert(), folder / "a") is not None
