"""Pico models and checkpoints, built in code; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import deserialize
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Raw = dict[str, tuple[str, tuple[int, ...], bytes]]


class Pair(NamedTuple):
    """Model directories of a base and its fine-tune; tests must not write to them."""

    base: Path
    variant: Path


PICO = {  # no tensor name here stands for an architecture: it is a checkpoint like any other
    "embed.weight": (64, 48),
    "layer.0.weight": (96, 64),
    "layer.0.bias": (96,),
    "layer.1.weight": (64, 96),
    "layer.1.bias": (64,),
    "norm.weight": (64,),
}

MIDDLING = {  # enough weights for a budget of 1/100 to make sense: 2.5 million
    "embed.weight": (2000, 192),
    **{f"layer.{n}.attn.weight": (192, 192) for n in range(2)},
    **{f"layer.{n}.up.weight": (768, 192) for n in range(2)},
    **{f"layer.{n}.down.weight": (192, 768) for n in range(2)},
    **{f"layer.{n}.norm.weight": (192,) for n in range(4)},
    "conv.weight": (64, 32, 3, 3),
}


def pico(seed: int = 0, dtype: torch.dtype = torch.float32, shapes: Mapping[str, Sequence[int]] = PICO) -> Tensors:
    """Random tensors of the given shapes, standard deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(tuple(shape), generator=generator) * 0.02).to(dtype) for name, shape in shapes.items()}


def perturbed(tensors: Tensors, seed: int = 1, scale: float = 2e-3) -> Tensors:
    """A fine-tune of `tensors`: a delta of rank 2 and a little noise on each matrix, noise on the rest."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in tensors.items():
        delta = torch.randn(tensor.shape, generator=generator) * (scale / 8 if tensor.dim() > 1 else scale)
        if tensor.dim() > 1:
            flat = tensor.reshape(tensor.shape[0], -1)
            left, right = (torch.randn(side, 2, generator=generator) for side in flat.shape)
            delta += (left @ right.T * scale).reshape(tensor.shape)
        result[name] = (tensor.double() + delta).to(tensor.dtype)
    return result


def save(directory: Path, tensors: Tensors, config: Mapping[str, Any] | None = None, shards: int = 1) -> Path:
    """A model directory written by the safetensors library, in `shards` files with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "pico", **(config or {})}))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return directory
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def raw(directory: Path) -> Raw:
    """(dtype, shape, bytes) of each tensor of a directory or file, by the safetensors library's own parser."""
    files = [directory] if directory.is_file() else sorted(directory.glob("*.safetensors"))
    found: Raw = {}
    for file in files:
        for name, entry in deserialize(file.read_bytes()):
            found[name] = (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
    return found


def beside(path: Path) -> list[str]:
    """Names of everything in the folder that `path` lies in, hidden files too."""
    return sorted(entry.name for entry in path.parent.iterdir())


def reference_bytes(base: Path, variant: Path) -> int:
    """2 bytes for every weight in a tensor whose bytes differ from the base's."""
    there = raw(base)
    total = 0
    for name, (dtype, shape, data) in raw(variant).items():
        if there.get(name) != (dtype, shape, data):
            total += 2 * int(torch.Size(shape).numel())
    return total


def llama(seed: int = 0, **changes: Any) -> Any:
    """A pico Llama with tied embeddings: hidden 32, 2 layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 144,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def bert(seed: int = 0, *, classes: int = 0, **changes: Any) -> Any:
    """A pico BERT: hidden 32, 2 layers; with `classes`, a sequence classifier."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    settings = {
        "vocab_size": 160,
        "hidden_size": 32,
        "intermediate_size": 144,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "num_labels": classes or 2,
    }
    torch.manual_seed(seed)
    return (BertForSequenceClassification if classes else BertModel)(BertConfig(**(settings | changes))).eval()


def finetuned(model: Any, directory: Path, seed: int = 1, scale: float = 1e-2) -> Path:
    """Save a perturbed copy of a transformers model; the model itself stays as it is."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in perturbed({n: p.data for n, p in model.named_parameters()}, seed, scale).items():
            model.get_parameter(name).copy_(tensor)
    model.save_pretrained(directory)
    model.load_state_dict(before)
    return directory


def tokenizer(directory: Path) -> None:
    """Save a word-level tokenizer of 26 letters into a model directory."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["[UNK]", *"abcdefghijklmnopqrstuvwxyz"])}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]").save_pretrained(directory)
