"""Divergences against NumPy in float64 on restored directories; the bare base tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import kinfold
from kinfold.checkpoint import Checkpoint
from kinfold.compare.outputs import Probe, bare_tensors, write_bare
from kinfold.errors import CalibrationError, CheckpointError
from kinfold.pack.source import Sources
from kinfold.tasks import Task
from models import Pair, raw

ROWS = '{"input_ids": [3, 14, 15, 92, 65]}\n{"input_ids": [8, 9], "label": 1}\n'


def rows(folder: Path, text: str = ROWS) -> Path:
    (folder / "rows.jsonl").write_text(text)
    return folder / "rows.jsonl"


def sources(pair: Pair) -> Sources:
    return Sources.open(Checkpoint.open(pair.base), Checkpoint.open(pair.variant))


def answers(kind: Any, directory: Path) -> list[np.ndarray]:
    model = kind.from_pretrained(directory, dtype=torch.float64).eval()
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([ids])) for ids in ([3, 14, 15, 92, 65], [8, 9])]
    return [(f.logits if "logits" in f else f.last_hidden_state)[0].numpy() for f in found]


def test_a_causal_model_diverges_by_its_mean_kl(llama_pair: Pair, tmp_path: Path) -> None:
    probe = Probe.load(llama_pair.variant, rows(tmp_path), seed=0)
    assert "2 rows" in probe.inputs
    own, bare = (answers(transformers.LlamaForCausalLM, folder) for folder in (llama_pair.variant, llama_pair.base))

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    each = []
    for a, b in zip(own, bare, strict=True):
        p, q = log_softmax(a[:-1]), log_softmax(b[:-1])  # the last position has no next token
        each.append((np.exp(p) * (p - q)).sum(-1).mean())
    found = probe.divergence(dict(bare_tensors(sources(llama_pair))))
    assert found == pytest.approx(np.mean(each), rel=1e-3)


def test_an_encoder_diverges_by_the_relative_distance_of_its_mean_states(bert_pair: Pair, tmp_path: Path) -> None:
    probe = Probe.load(bert_pair.variant, rows(tmp_path), seed=0)
    own, bare = (
        [states.mean(0) for states in answers(transformers.BertModel, folder)]
        for folder in (bert_pair.variant, bert_pair.base)
    )
    missed = sum(((a - b) ** 2).sum() for a, b in zip(own, bare, strict=True))
    expected = np.sqrt(missed / sum((a**2).sum() for a in own))
    assert probe.divergence(dict(bare_tensors(sources(bert_pair)))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fixture", ["llama_pair", "bert_pair", "classifier_pair"])
def test_the_variant_does_not_diverge_from_itself(fixture: str, request: pytest.FixtureRequest) -> None:
    variant = Checkpoint.open(request.getfixturevalue(fixture).variant)
    probe = Probe.load(variant.directory, None, seed=0)
    assert probe.divergence({name: variant.read(name) for name in variant.tensors}) == pytest.approx(0, abs=1e-9)


def test_random_rows_are_seeded_and_of_the_vocabulary(llama_pair: Pair) -> None:
    first, again, other = (Probe.load(llama_pair.variant, None, seed).rows.rows for seed in (0, 0, 1))
    assert first == again != other
    assert [len(row["input_ids"]) for row in first] == [32] * 16
    assert {token for row in first for token in row["input_ids"]} <= set(range(99))


def test_bad_rows_are_named(llama_pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="line 1"):
        Probe.load(llama_pair.variant, rows(tmp_path, '{"words": 1}\n'), seed=0)
    with pytest.raises(CalibrationError, match="token 99"):
        Probe.load(llama_pair.variant, rows(tmp_path, '{"input_ids": [99]}\n'), seed=0)


def test_a_model_that_takes_no_tokens_says_so(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match="does not answer rows of token ids"):
        Probe.load(tmp_path / "vit", None, seed=0)


def test_the_bare_base_keeps_what_is_new(classifier_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "variant"
    write_bare(sources(classifier_pair), out)
    found, before, after = raw(out), raw(classifier_pair.base), raw(classifier_pair.variant)
    heads = {name for name in after if name.startswith("classifier.")}
    assert heads
    assert found.keys() == after.keys()
    assert all(found[name] == after[name] for name in heads)
    assert all(found[name] == before[name.removeprefix("bert.")] for name in found.keys() - heads)
    assert (out / "config.json").read_bytes() == (classifier_pair.variant / "config.json").read_bytes()
    transformers.BertForSequenceClassification.from_pretrained(out)


def test_the_bare_base_has_the_rows_of_new_tokens(llama_pair: Pair, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(llama_pair.variant)
    torch.manual_seed(3)
    model.resize_token_embeddings(105, mean_resizing=False)
    model.half().save_pretrained(tmp_path / "grown")
    bare = dict(bare_tensors(sources(Pair(llama_pair.base, tmp_path / "grown"))))
    name = "model.embed_tokens.weight"
    own = Checkpoint.open(tmp_path / "grown").read(name)
    assert torch.equal(bare[name][:99], Checkpoint.open(llama_pair.base).read(name).half())
    assert torch.equal(bare[name][99:], own[99:])


def test_an_alias_follows_what_it_repeats(llama_pair: Pair, tmp_path: Path) -> None:
    untied = transformers.LlamaForCausalLM.from_pretrained(llama_pair.base, tie_word_embeddings=False)
    untied.save_pretrained(tmp_path / "base")
    tensors = {name: tensor + 0.01 for name, tensor in untied.state_dict().items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    untied.save_pretrained(tmp_path / "variant", state_dict=tensors)
    bare = dict(bare_tensors(sources(Pair(tmp_path / "base", tmp_path / "variant"))))
    assert torch.equal(bare["lm_head.weight"], bare["model.embed_tokens.weight"])


def test_a_head_beside_an_encoder_is_asked_too(bert_pair: Pair, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "variant"
    shutil.copytree(bert_pair.variant, folder)
    head = {"head.weight": torch.randn(3, 32), "head.bias": torch.randn(3)}
    save_file(load_file(folder / "model.safetensors") | head, folder / "model.safetensors", {"format": "pt"})
    probe = Probe.load(folder, rows(tmp_path), seed=0)
    assert probe.task.has_logits
    kinfold.pack(bert_pair.base, folder, tmp_path / "p", budget="1/2")
    kinfold.restore(tmp_path / "p", bert_pair.base, tmp_path / "back")
    there = Checkpoint.open(tmp_path / "back")
    expected = Task.load(tmp_path / "back")
    rebuilt = probe.task.rebuilt({name: there.read(name) for name in there.tensors})
    with torch.no_grad():
        assert torch.equal(rebuilt.output({"input_ids": [5, 6]}), expected.output({"input_ids": [5, 6]}))
