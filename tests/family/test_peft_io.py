"""Adapters out: PEFT, on the base and what we wrote, answers as the variant does."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kinfold
from adapters import WEIGHTS, gpt2, load, logits, make, quiet
from kinfold.errors import AdapterError, FamilyError, OutputError
from kinfold.family import peft_io, peft_plan
from kinfold.family.peft_io import export
from kinfold.pack.member import Base
from kinfold.pack.members import open_member
from models import Pair, bert, finetuned, llama, perturbed, pico, save


def drift(model: Any, *parts: str, seed: int = 3) -> Any:
    """A fine-tune: a delta of exactly rank 2 on each matrix, noise on the rest, where a name holds one of `parts`."""
    variant = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in variant.named_parameters():
            flat = parameter.reshape(parameter.shape[0], -1)
            if parameter.dim() > 1:
                left, right = (torch.randn(side, 2, generator=generator) for side in flat.shape)
                delta = 0.05 * (left @ right.T).reshape(parameter.shape)
            else:
                delta = 0.2 * torch.randn(parameter.shape, generator=generator)
            if not parts or any(part in name for part in parts):
                parameter += delta
    return variant


def two(tmp_path: Path, model: Any, variant: Any) -> tuple[Path, Path]:
    model.save_pretrained(tmp_path / "base")
    variant.save_pretrained(tmp_path / "variant")
    return tmp_path / "base", tmp_path / "variant"


def untied() -> Any:
    return llama(tie_word_embeddings=False)


OUT: dict[str, tuple[Any, tuple[str, ...]]] = {
    "linear and norms": (untied, ("proj", "norm")),
    "embedding and head": (untied, ("embed_tokens", "lm_head", "q_proj")),
    "tied embedding": (llama, ("embed_tokens", "q_proj")),
    "all of a causal LM": (llama, ()),
    "conv1d": (gpt2, ("c_attn.weight", "c_proj.weight", "c_fc.weight")),
    "conv1d with biases, norms, embeddings": (gpt2, ()),
    "lora_bias": (bert, ("encoder", "pooler")),
    "bias without its weight": (bert, ("output.dense.weight", "intermediate.dense.bias")),
    "embeddings only": (bert, ("word_embeddings", "position_embeddings")),
    "norms only": (bert, ("LayerNorm",)),
    "classifier": (lambda: bert(classes=3), ("encoder", "classifier")),
    "biases and embeddings": (lambda: bert(classes=3), ()),
}


@pytest.mark.parametrize("case", OUT)
def test_peft_answers_as_the_variant(tmp_path: Path, case: str) -> None:
    build, parts = OUT[case]
    model = build()
    variant = drift(model, *parts)
    base, directory = two(tmp_path, model, variant)
    report = export(directory, tmp_path / "out", base=base, rank=4)
    torch.testing.assert_close(logits(load(model, tmp_path / "out")), logits(variant), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(model), logits(variant), atol=1e-2)
    assert report.error < 1e-5
    assert not report.left_out
    assert report.rank == max([row.rank for row in report.tensors], default=1) <= 4
    assert report.bytes == (tmp_path / "out" / WEIGHTS).stat().st_size


def test_convolutions_travel_as_factors(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTModel(ViTConfig(image_size=16, patch_size=4, **settings)).eval()
    variant = drift(model, "projection", "cls_token")
    base, directory = two(tmp_path, model, variant)
    with pytest.raises(AdapterError, match=r"`embeddings.cls_token`: it lies in no module of its own") as caught:
        export(directory, tmp_path / "out", base=base, rank=2)
    assert "--partial" in caught.value.hint
    report = export(directory, tmp_path / "out", base=base, rank=2, partial=True)
    assert [row.name for row in report.left_out] == ["embeddings.cls_token"]
    with torch.no_grad():
        variant.embeddings.cls_token.copy_(model.embeddings.cls_token)
        image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        answers = [m(image).last_hidden_state for m in (load(model, tmp_path / "out"), variant)]
    torch.testing.assert_close(*answers, atol=1e-5, rtol=0)


IN: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (bert, {"target_modules": ["query", "dense"], "lora_alpha": 9}),
    "rslora, mixed ranks": (
        untied,
        {"target_modules": ["q_proj", "lm_head"], "use_rslora": True, "rank_pattern": {"1.self_attn.q_proj": 2}},
    ),
    "embedding": (untied, {"target_modules": ["embed_tokens"], "alpha_pattern": {"embed_tokens": 3}}),
    "tied": (llama, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "parted": (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj", "wte"]}),
    "lora_bias": (bert, {"target_modules": ["dense"], "lora_bias": True}),
    "modules_to_save": (untied, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
}


@pytest.mark.parametrize("case", IN)
def test_in_and_out_and_in_again_gives_equal_factors(tmp_path: Path, case: str) -> None:
    build, config = IN[case]
    model = build()
    model.save_pretrained(tmp_path / "base")
    adapted = make(model, tmp_path / "adapter", r=4, **config)
    for source, out in (("adapter", "out"), ("out", "again")):
        export(tmp_path / source, tmp_path / out, base=tmp_path / "base")
    base = Base.open(tmp_path / "base")
    first, second = (open_member(tmp_path / name, base) for name in ("adapter", "out"))
    assert set(first.changed) == set(second.changed)
    for name in first.changed:
        pairs = first.factors(name), second.factors(name)
        if pairs[0] is not None and pairs[1] is not None:
            assert all(torch.equal(one, two) for one, two in zip(*pairs, strict=True))
        else:
            assert torch.equal(first.delta(name), second.delta(name))
    written = [(tmp_path / out / WEIGHTS).read_bytes() for out in ("out", "again")]
    assert written[0] == written[1]
    torch.testing.assert_close(logits(load(model, tmp_path / "out")), logits(adapted), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """An untied causal LM and a fine-tune of rank 2 and noise on every tensor."""
    folder = tmp_path_factory.mktemp("causal")
    model = untied()
    model.save_pretrained(folder / "base")
    return Pair(folder / "base", finetuned(model, folder / "variant"))


def deltas(pair: Pair) -> dict[str, np.ndarray]:
    before, after = (load_file(folder / "model.safetensors") for folder in pair)
    return {name: after[name].double().numpy() - before[name].double().numpy() for name in before}


def test_the_loss_is_the_tail_of_the_spectrum(causal: Pair, tmp_path: Path) -> None:
    report = export(causal.variant, tmp_path / "out", base=causal.base, rank=3)
    lost = energy = 0.0
    rows = {row.name: row for row in report.tensors}
    for name, delta in deltas(causal).items():
        energy += float((delta**2).sum())
        if name in rows:
            s = np.linalg.svd(delta, compute_uv=False)
            lost += float((s[3:] ** 2).sum())
            assert rows[name].rank == 3
            assert rows[name].error == pytest.approx(math.sqrt((s[3:] ** 2).sum() / (s**2).sum()), rel=1e-5)
    assert report.error == pytest.approx(math.sqrt(lost / energy), rel=1e-5)


def test_the_config_is_plain(causal: Pair, tmp_path: Path) -> None:
    report = export(causal.variant, tmp_path / "out", base=causal.base, rank=3)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert not config["use_rslora"]
    assert config["base_model_name_or_path"] == str(causal.base)
    assert "model.layers.0.self_attn.q_proj" in config["target_modules"]
    assert "model.layers.1.input_layernorm" in config["modules_to_save"] == report.whole


def test_packs_keep_their_factors(causal: Pair, tmp_path: Path) -> None:
    pack = tmp_path / "v.kin.safetensors"
    kinfold.pack(causal.base, causal.variant, pack, codec="truncsvd", budget="rank:4")
    export(pack, tmp_path / "out", base=causal.base, rank=32)  # small matrices of the pack are no factors
    restored = kinfold.load(pack, causal.base)
    torch.testing.assert_close(logits(load(untied(), tmp_path / "out")), logits(restored), atol=1e-5, rtol=0)
    member = open_member(pack, Base.open(causal.base))
    name = "model.layers.0.mlp.up_proj.weight"
    pair = member.factors(name)
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert pair is not None
    assert torch.equal(written["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"], pair[0].float())
    assert torch.equal(written["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"], pair[1].float().T)
    report = export(pack, tmp_path / "less", base=causal.base, rank=2)
    s = np.linalg.svd((pair[0] @ pair[1].T).numpy(), compute_uv=False)
    row = next(row for row in report.tensors if row.name == name)
    assert row.rank == 2
    assert row.error == pytest.approx(math.sqrt((s[2:] ** 2).sum() / (s**2).sum()), rel=1e-6)


def test_mixed_ranks_are_written_as_patterns(tmp_path: Path) -> None:
    model = untied()
    variant = drift(model, "self_attn")
    with torch.no_grad():
        parameter = variant.model.layers[0].self_attn.q_proj.weight
        parameter.copy_(model.model.layers[0].self_attn.q_proj.weight)
        parameter[3] += 0.5  # rank 1
    base, directory = two(tmp_path, model, variant)
    report = export(directory, tmp_path / "out", base=base, rank=2)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.0.self_attn.q_proj": 1}
    assert report.rank == 2
    torch.testing.assert_close(logits(load(model, tmp_path / "out")), logits(variant), atol=1e-5, rtol=0)


def test_modules_that_a_short_name_would_catch_go_along(tmp_path: Path) -> None:
    """PEFT keeps every module whose name ends in `norm`: of a bare Llama that is all of them."""
    from transformers import LlamaModel

    model = LlamaModel(llama().config).eval()
    variant = drift(model, "q_proj")
    with torch.no_grad():
        variant.norm.weight += 0.3
    base, directory = two(tmp_path, model, variant)
    report = export(directory, tmp_path / "out", base=base, rank=2)
    assert "layers.0.input_layernorm" in report.whole
    torch.testing.assert_close(logits(load(model, tmp_path / "out")), logits(variant), atol=1e-5, rtol=0)


def test_vllm_gets_what_it_takes(causal: Pair, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"5 changed tensors of `variant`, .*takes whole modules only"):
        export(causal.variant, tmp_path / "out", base=causal.base, rank=3, engine="vllm")
    report = export(causal.variant, tmp_path / "out", base=causal.base, rank=3, engine="vllm", partial=True)
    found = deltas(causal)
    energy = sum(float((delta**2).sum()) for delta in found.values())
    norms = {name for name in found if "norm" in name}
    assert {row.name for row in report.left_out} == norms
    for row in report.left_out:
        assert row.share == pytest.approx(float((found[row.name] ** 2).sum()) / energy, rel=1e-4)
    assert report.max_lora_rank == 8
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert config["modules_to_save"] is None
    assert not config["lora_bias"]
    assert all(".lora_" in key for key in load_file(tmp_path / "out" / WEIGHTS))
    card = (tmp_path / "out" / "KINFOLD.md").read_text("utf-8")
    assert all(f"`{name}`" in card for name in norms)


def test_vllm_takes_no_biases_embeddings_or_other_layers(tmp_path: Path) -> None:
    model = bert(classes=3)
    base, directory = two(tmp_path, model, drift(model))
    report = export(directory, tmp_path / "out", base=base, rank=2, engine="vllm", partial=True)
    left = {row.name: row.why for row in report.left_out}
    assert "lora_bias" in left["bert.encoder.layer.0.attention.self.query.bias"]
    assert "embeddings" in left["bert.embeddings.word_embeddings.weight"]
    assert "classifier.weight" not in left
    assert report.whole == ["classifier"]
    model = gpt2()
    base, directory = two(tmp_path / "gpt2", model, drift(model, "c_fc.weight", "c_proj.weight", "ln_f"))
    with pytest.raises(AdapterError, match="does not differ"):
        export(directory, tmp_path / "gpt2" / "out", base=base, rank=2, engine="vllm", partial=True)


def test_vllm_refuses_large_vocabularies_and_ranks(
    causal: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_plan, "_VLLM_VOCABULARY", 98)
    with pytest.raises(AdapterError, match="vocabulary over 98"):
        export(causal.variant, tmp_path / "out", base=causal.base, rank=3, engine="vllm")
    monkeypatch.setattr(peft_io, "VLLM_RANKS", (1, 2))
    with pytest.raises(AdapterError, match="ranks up to 2, not 3"):
        export(causal.variant, tmp_path / "out", base=causal.base, rank=3, engine="vllm", partial=True)
    assert export(causal.variant, tmp_path / "out", base=causal.base, rank=3).max_lora_rank is None


def test_a_noisy_pack_is_exported_with_a_warning(causal: Pair, tmp_path: Path) -> None:
    pack = tmp_path / "v.kin.safetensors"
    kinfold.pack(causal.base, causal.variant, pack, codec="dare", budget="24kB")
    report = export(pack, tmp_path / "out", base=causal.base)
    assert any("noise" in note for note in report.notes)


def test_a_class_that_transformers_does_not_know(tmp_path: Path) -> None:
    tensors = pico()
    base, variant = save(tmp_path / "base", tensors), save(tmp_path / "variant", perturbed(tensors))
    report = export(variant, tmp_path / "out", base=base, rank=2)
    assert report.model is None
    assert "taken for Linear" in report.notes[0]
    assert report.whole == ["norm"]
    assert report.biases == 2
    assert report.modules == 3


def test_a_tensor_that_the_class_lacks_is_left_out(tmp_path: Path, bert_pair: Pair) -> None:
    tensors = load_file(bert_pair.variant / "model.safetensors") | {"head.weight": torch.ones(3, 32)}
    config = json.loads((bert_pair.variant / "config.json").read_text("utf-8"))
    variant = save(tmp_path / "variant", tensors, config)
    with pytest.raises(AdapterError, match=r"`head\.weight` \(new\): the model's class has no such tensor"):
        export(variant, tmp_path / "out", base=bert_pair.base)
    report = export(variant, tmp_path / "out", base=bert_pair.base, rank=4, partial=True)
    assert [(row.name, row.share) for row in report.left_out] == [("head.weight", None)]


def test_a_new_head_travels_whole(classifier_pair: Pair, tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    report = export(classifier_pair.variant, tmp_path / "out", base=classifier_pair.base, rank=8)
    assert report.model == "BertForSequenceClassification"
    assert "classifier" in report.whole
    variant = BertForSequenceClassification.from_pretrained(classifier_pair.variant).eval()
    with quiet():
        start = BertForSequenceClassification.from_pretrained(classifier_pair.base, num_labels=3).eval()
    head = load(start, tmp_path / "out").base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(head.weight, variant.classifier.weight)


def test_the_same_twice_gives_the_same_bytes(causal: Pair, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(causal.variant, tmp_path / name, base=causal.base, rank=3)
    for file in (WEIGHTS, "adapter_config.json", "KINFOLD.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_impossible_requests_are_refused(causal: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FamilyError, match="is no family"):
        export(causal.variant, out, base=causal.base, member="movie")
    with pytest.raises(AdapterError, match="rank 0 is impossible"):
        export(causal.variant, out, base=causal.base, rank=0)
    with pytest.raises(AdapterError, match="cannot export to `gguf`"):
        export(causal.variant, out, base=causal.base, to="gguf")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="does not differ"):
        export(causal.base, out, base=causal.base)
    with pytest.raises(AdapterError, match="no module beside those kept whole"):
        export(causal.variant, out, base=causal.base, rank=99)
    with pytest.raises(OutputError, match="is what the adapter is made from"):
        export(causal.variant, causal.base, base=causal.base, overwrite=True)
    out.mkdir()
    with pytest.raises(OutputError, match="exists"):
        export(causal.variant, out, base=causal.base)
    assert not [*out.iterdir()]
