"""A model's modules from its config: names and types are those of the model itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from adapters import gpt2
from kinfold.pack.skeleton import Skeleton, _of, skeleton
from models import bert, llama


def of(model: Any) -> Skeleton:
    found = skeleton(json.dumps(model.config.to_dict() | {"architectures": [type(model).__name__]}).encode())
    assert found is not None
    return found


@pytest.mark.parametrize("build", [llama, bert, gpt2, lambda: bert(classes=3)])
def test_names_are_the_models(build: Any) -> None:
    model = build()
    found = of(model)
    assert found.model == type(model).__name__
    assert found.tensors == set(model.state_dict())
    assert found.kinds.keys() == {name for name, _ in model.named_modules()}


def test_types_of_modules() -> None:
    assert of(llama()).kind("model.embed_tokens.weight") == "embedding"
    assert of(llama()).kind("model.layers.0.mlp.up_proj.weight") == "linear"
    assert of(gpt2()).kinds["transformer.h.1.attn.c_proj"] == "conv1d"
    assert of(bert()).kinds["encoder.layer.0.output.LayerNorm"] == "other"
    assert of(bert()).kinds["encoder.layer.0.output"] == "parent"


def test_a_table_with_a_forward_of_its_own_is_no_plain_embedding() -> None:
    from transformers import OPTConfig, OPTModel

    sizes = {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1}
    opt = OPTModel(OPTConfig(vocab_size=20, num_attention_heads=2, max_position_embeddings=8, pad_token_id=1, **sizes))
    assert of(opt).kind("decoder.embed_positions.weight") == "other"
    assert of(opt).kind("decoder.embed_tokens.weight") == "embedding"


def test_one_module_under_two_names_is_shared() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.two = nn.Linear(2, 2)
            self.deep = nn.Conv2d(4, 4, 1, groups=2)

    found = _of(Twins())
    assert found.kinds == {"": "parent", "one": "shared", "two": "shared", "deep": "other"}  # groups mix no channels
    assert found.tied["one.weight"] == ("one.weight", "two.weight")


def test_convolutions_are_known() -> None:
    from transformers import ViTConfig, ViTModel

    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    assert of(vit).kind("embeddings.patch_embeddings.projection.weight") == "convolution"


def test_tied_names_belong_together() -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    assert of(llama()).tied == dict.fromkeys(names, names)
    assert not of(llama(tie_word_embeddings=False)).tied


def test_names_are_found_with_and_without_the_prefix() -> None:
    found = of(bert(classes=3))
    assert found.spell("encoder.layer.0.output.dense.bias") == "bert.encoder.layer.0.output.dense.bias"
    assert of(bert()).spell("bert.pooler.dense.bias") == "pooler.dense.bias"
    assert found.spell("head.weight") is None
    assert found.kind("head.weight") is None


def test_a_config_that_makes_no_model_gives_none() -> None:
    assert skeleton(b'{"model_type": "pico"}') is None
    assert skeleton(b"no JSON") is None
    remote = {"model_type": "pico", "auto_map": {"AutoConfig": "code.Config"}}
    assert skeleton(json.dumps(remote).encode()) is None
    assert skeleton(json.dumps({"model_type": "llama", "hidden_size": "wide"}).encode()) is None


def test_nothing_is_allocated() -> None:
    """Its embedding alone would take 275 GB."""
    config = llama().config.to_dict() | {"hidden_size": 1 << 16, "num_attention_heads": 64, "vocab_size": 1 << 20}
    found = skeleton(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}).encode())
    assert found is not None
