"""The adapter: which modules, nothing changed at first, and deltas as PEFT itself merges them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import pooled

from kinfold.errors import ForgetOptionError, MissingExtraError
from kinfold.forget.adapter import attached, candidates
from kinfold.forget.config import ForgetConfig
from kinfold.forget.subject import Subject
from kinfold.forget.tokens import Tokens
from models import Pair, bert, llama

BATCH = [Tokens((5, 9, 3, 40), label=1), Tokens((8, 1, 2), label=0)]
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def subject(llama_pair: Pair) -> Subject:
    return Subject.load(llama_pair.variant)


def test_a_fresh_adapter_leaves_logits_bit_equal(subject: Subject) -> None:
    ids = torch.tensor([[5, 9, 3, 40]])
    with torch.no_grad():
        before = subject.task.model(ids).logits
        with attached(subject, ForgetConfig(), BATCH, 0) as adapter:
            assert adapter.numel == sum(p.numel() for p in adapter.parameters) > 0
            assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.parameters)
            assert torch.equal(subject.task.model(ids).logits, before)
            adapter.parameters[1].data.fill_(0.3)
            assert not torch.equal(subject.task.model(ids).logits, before)
        assert torch.equal(subject.task.model(ids).logits, before)
    assert not any(".lora_" in name or parameter.requires_grad for name, parameter in subject.model.named_parameters())


def test_the_global_generator_is_left_alone_and_the_seed_decides(llama_pair: Pair) -> None:
    drawn = []
    for seed in (3, 3, 4):
        subject = Subject.load(llama_pair.variant)
        state = torch.random.get_rng_state()
        with attached(subject, ForgetConfig(), BATCH, seed) as adapter:
            drawn.append(adapter.parameters[0].detach().clone())
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_all_linear_leaves_tied_and_output_layers_out(subject: Subject, tmp_path: Path) -> None:
    with attached(subject, ForgetConfig(), BATCH, 0) as adapter:
        assert {name.split(".")[-2] for name in adapter.modules} == LINEAR
        assert len(adapter.modules) == 14
    assert not any("lm_head" in name for name in candidates(subject))
    llama(tie_word_embeddings=False).save_pretrained(tmp_path / "untied")
    untied = Subject.load(tmp_path / "untied")
    with attached(untied, ForgetConfig(), BATCH, 0) as adapter:
        assert "lm_head.weight" not in adapter.modules
    with attached(untied, ForgetConfig(target_modules=("lm_head", "layers.1.mlp.up_proj.weight")), BATCH, 0) as adapter:
        assert list(adapter.modules) == ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]


def test_a_classifiers_head_is_adapted(classifier_pair: Pair) -> None:
    subject = Subject.load(classifier_pair.variant)
    with attached(subject, ForgetConfig(), BATCH, 0) as adapter:
        assert "classifier.weight" in adapter.modules
        assert "bert.pooler.dense.weight" in adapter.modules


def test_a_pooler_that_nobody_reads_is_left_alone(bert_pair: Pair, tmp_path: Path) -> None:
    subject = Subject.load(pooled(tmp_path, bert_pair.variant))
    with attached(subject, ForgetConfig(), BATCH, 0) as adapter:
        assert "head.weight" in adapter.modules
        assert not any("pooler" in name for name in adapter.modules)
    with (
        pytest.raises(ForgetOptionError, match="none of the modules"),
        attached(subject, ForgetConfig(target_modules=("pooler.dense",)), BATCH, 0),
    ):
        pass


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_factors_are_what_peft_merges(kind: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = (
        llama() if kind == "llama" else GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2))
    )
    model.save_pretrained(tmp_path / "model")
    subject = Subject.load(tmp_path / "model")
    with attached(subject, ForgetConfig(rank=3, alpha=12.0), BATCH, 0) as adapter:
        for parameter in adapter.parameters:
            parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        factors = adapter.factors()
        adapter.tuner.merge_adapter()
        merged = {
            n: p.detach().clone() for n, p in adapter.tuner.model.named_parameters() if n.endswith("base_layer.weight")
        }
        paths = adapter.modules
    assert factors
    for name, (left, right) in factors.items():
        expected = merged[f"{paths[name]}.base_layer.weight"] - subject.checkpoint.read(name)
        assert left.shape[1] == right.shape[1] == 3
        assert (left @ right.T - expected).norm() < 1e-5 * expected.norm()


def test_modules_that_are_not_there(subject: Subject) -> None:
    with (
        pytest.raises(
            ForgetOptionError, match=r"no linear module `attention` .* model\.layers\.0\.mlp\.down_proj\.weight"
        ),
        attached(subject, ForgetConfig(target_modules=("attention",)), BATCH, 0),
    ):
        pass


def test_a_model_without_a_matrix_to_adapt(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = bert(classes=2)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole = {n: t.to(torch.float8_e4m3fn) if t.dim() == 2 else t for n, t in load_file(path).items()}
    save_file(whole, path, {"format": "pt"})
    subject = Subject.load(tmp_path / "model")
    with (
        pytest.raises(ForgetOptionError, match="no linear module whose weight"),
        attached(subject, ForgetConfig(), BATCH, 0),
    ):
        pass


def test_peft_is_an_extra(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="`peft`"), attached(subject, ForgetConfig(), BATCH, 0):
        pass
