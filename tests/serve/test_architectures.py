"""Other model classes than the pico Llama, against transformers on each variant's directory."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Fleet, expected_of, greedy, prompt, run, tokens, tuned

from adapters import gpt2, make
from kinfold.errors import CheckpointError, ServeError
from kinfold.serve.live import LiveModel
from models import save


def causal_models() -> dict[str, Any]:
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

    pico: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 98,
        "bos_token_id": 1,
    }
    torch.manual_seed(0)
    return {
        "gpt2": gpt2(initializer_range=0.3, eos_token_id=98, bos_token_id=1),  # Conv1D, learned positions, LayerNorm
        "mistral": MistralForCausalLM(MistralConfig(**pico, sliding_window=6)),
        "gemma2": Gemma2ForCausalLM(Gemma2Config(**pico, head_dim=8, sliding_window=6)),  # scaled embeddings, 1 + norm
    }


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
def test_causal_models(name: str, tmp_path: Path) -> None:
    model = causal_models()[name].eval()
    model.save_pretrained(tmp_path / "base")
    fleet = Fleet(tmp_path / "base")
    fleet.add("one", tuned(model, tmp_path / "one", 1, 0.1))
    fleet.add("two", tuned(model, tmp_path / "two", 2, 0.1))
    if name == "gpt2":
        made = make(model, tmp_path / "lora", 5, r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
        shutil.copytree(tmp_path / "base", tmp_path / "merged")
        made.merge_and_unload().save_pretrained(tmp_path / "merged")
        fleet.add("lora", tmp_path / "lora", tmp_path / "merged")

    async def work() -> dict[str, list[int]]:
        engine = fleet.engine()
        names = ["base", *fleet.restored]
        asked = [tokens(engine, each, ids(each, place), greedy(14)) for place, each in enumerate(names)]
        found = await asyncio.gather(*asked)
        await engine.close()
        return dict(zip(names, found, strict=True))

    def ids(each: str, place: int) -> list[int]:
        return [token % 97 for token in prompt(each, 4 + 5 * place)]

    homes = {"base": fleet.base, **fleet.restored}
    for place, (each, found) in enumerate(run(work()).items()):
        reference = type(model).from_pretrained(homes[each], dtype=torch.float32).eval()
        assert found == expected_of(reference, ids(each, place), 14, end=98), each


def test_roberta(tmp_path: Path) -> None:
    """Positions begin behind that of padding; the classifier has two layers and takes the first token."""
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

    config = RobertaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=34,
        pad_token_id=1,
        initializer_range=0.2,
        num_labels=3,
    )
    torch.manual_seed(0)
    classifier = RobertaForSequenceClassification(config).eval()
    RobertaModel(config, add_pooling_layer=False).eval()
    classifier.roberta.save_pretrained(tmp_path / "base")
    fleet = Fleet(tmp_path / "base")
    fleet.add("one", tuned(classifier, tmp_path / "one", 1))
    fleet.add("two", tuned(classifier, tmp_path / "two", 2))
    inputs = [[token % 90 + 5 for token in prompt("r", length)] for length in (32, 3, 11)]

    async def work() -> list[list[dict[str, float]]]:
        engine = fleet.engine()
        assert engine.max_tokens == 32
        found = await asyncio.gather(*(engine.classify(name, inputs) for name in ("one", "two")))
        with pytest.raises(ServeError, match="33 tokens"):
            await engine.embed("base", [[5] * 33])
        await engine.close()
        return found

    for name, found in zip(("one", "two"), run(work()), strict=True):
        model = RobertaForSequenceClassification.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for ids, chances in zip(inputs, found, strict=True):
            with torch.inference_mode():
                wanted = model(torch.tensor([ids])).logits[0].softmax(0)
            assert list(chances.values()) == pytest.approx(wanted.tolist(), abs=1e-5)


def test_what_is_not_served(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    small = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "t5")
    with pytest.raises(ServeError, match="an encoder and a decoder"):
        LiveModel.open(tmp_path / "t5")
    save(tmp_path / "pico", {"a.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        LiveModel.open(tmp_path / "pico")
