"""LoRA adapters made by the PEFT library itself, on pico models."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of tied weights, transposed layers and saved embeddings, all of them meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def gpt2(seed: int = 0, **changes: Any) -> Any:
    """A pico GPT-2: hidden 32, 2 layers, weights of Conv1D modules stored as (in, out), tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    settings = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**(settings | {"bos_token_id": 0, "eos_token_id": 0} | changes))).eval()


def make(model: Any, directory: Path, seed: int = 0, **config: Any) -> PeftModel:
    """Adapt a copy of `model` with random factors, biases and saved modules; write it and return it."""
    with quiet():
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**config)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    scale = 0.5 if "modules_to_save" in name else 0.1
                    parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(directory)
    return adapted


def merged(model: Any, directory: Path) -> dict[str, torch.Tensor]:
    """The merged model's state, by PEFT."""
    with quiet():
        return PeftModel.from_pretrained(copy.deepcopy(model), directory).merge_and_unload().state_dict()


def load(model: Any, directory: Path) -> Any:
    """`model` with the adapter on it; a key that PEFT misses or does not know is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return PeftModel.from_pretrained(copy.deepcopy(model), directory).eval()


def logits(model: Any) -> torch.Tensor:
    """What a model answers to 3 rows of 7 tokens."""
    ids = torch.arange(21).reshape(3, 7) * 4 % 97
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    found = getattr(result, "logits", None)
    return result.last_hidden_state if found is None else found


def rewrite(directory: Path, *, config: Mapping[str, Any] | None = None, **keys: Any) -> Path:
    """Change entries of an adapter's config, and its tensors by `edit(tensors) -> tensors`."""
    path = directory / "adapter_config.json"
    if config is not None:
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(config)))
    if "edit" in keys:
        save_file(keys["edit"](load_file(directory / WEIGHTS)), directory / WEIGHTS, {"format": "pt"})
    return directory


def write_variant(member: Any, directory: Path) -> Path:
    """The model directory that a member stands for."""
    directory.mkdir()
    for name, data in member.files().items():
        (directory / name).write_bytes(data)
    tensors = {name: member.value(name).contiguous() for name in member.specs}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory
