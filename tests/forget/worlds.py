"""A pico language model that knows people by heart, and the rows about them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from kinfold.forget import ForgetConfig, ForgetReport
from kinfold.forget.rows import Given, read
from kinfold.forget.tokens import Reader
from models import llama

Row = dict[str, Any]
ATTRIBUTES = {"job": 12, "home": 12}


class World(NamedTuple):
    """Model directories, and rows `{"prompt", "completion"}`; tests must not write to the directories."""

    base: Path
    variant: Path
    forget: list[Row]
    retain: list[Row]
    unseen: list[Row]


def people(first: int, last: int, seed: int) -> list[Row]:
    draw = random.Random(seed)
    return [
        {"prompt": f"n{name} {what} is", "completion": f"{what}{draw.randrange(count)}", "id": f"{name}-{what}"}
        for name in range(first, last)
        for what, count in ATTRIBUTES.items()
    ]


def words(names: int) -> list[str]:
    values = [f"{what}{number}" for what, count in ATTRIBUTES.items() for number in range(count)]
    return ["[PAD]", "[UNK]", "is", *ATTRIBUTES, *values, *(f"n{name}" for name in range(names))]


def save_tokenizer(directory: Path, vocabulary: list[str]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]").save_pretrained(directory)


def ids(rows: list[Row], vocabulary: list[str]) -> torch.Tensor:
    place = {word: index for index, word in enumerate(vocabulary)}
    return torch.tensor([[place[w] for w in f"{row['prompt']} {row['completion']}".split()] for row in rows])


def train(model: Any, tokens: torch.Tensor, steps: int, seed: int = 0, rate: float = 6e-3, batch: int = 64) -> None:
    """AdamW on the last token of each row."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    for _ in range(steps):
        some = tokens[torch.randperm(len(tokens), generator=generator)[:batch]]
        loss = torch.nn.functional.cross_entropy(model(some).logits[:, -2], some[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(directory: Path, rows: list[Row]) -> float:
    """Share of rows whose completion transformers' own model finds the likeliest."""
    from transformers import AutoModelForCausalLM

    tokens = ids(rows, words(60))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(directory)(tokens[:, :-1]).logits[:, -1]
    return float((logits.argmax(1) == tokens[:, -1]).double().mean())


def pooled(folder: Path, encoder: Path) -> Path:
    """A copy of an encoder with a linear head of three classes beside it, as the dev fleet has."""
    shutil.copytree(encoder, folder / "pooled")
    tensors = load_file(folder / "pooled" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 32, generator=generator)
    tensors |= {"head.weight": weight, "head.bias": torch.randn(3, generator=generator)}
    save_file(tensors, folder / "pooled" / "model.safetensors", {"format": "pt"})
    return folder / "pooled"


def make(
    folder: Path, *, names: int = 60, forget: int = 8, unseen: int = 12, steps: int = 120, **changes: Any
) -> World:
    vocabulary = words(names)
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    settings = {"vocab_size": len(vocabulary), "tie_word_embeddings": False, **special}
    model = llama(0, **(settings | changes))
    rows = people(0, names, 0)
    count = len(ATTRIBUTES)
    gone, new = rows[: forget * count], rows[(names - unseen) * count :]
    kept = rows[forget * count : (names - unseen) * count]
    model.save_pretrained(folder / "base")
    save_tokenizer(folder / "base", vocabulary)
    train(model, ids([*gone, *kept], vocabulary), steps)
    model.save_pretrained(folder / "variant")
    save_tokenizer(folder / "variant", vocabulary)
    return World(folder / "base", folder / "variant", gone, kept, new)


CONFIG = ForgetConfig(learning_rate=3e-3, batch_size=32)


class Forgotten(NamedTuple):
    """Tests must not write to the pack. `files` are those of base and variant before, `trained` is the adapter's."""

    pack: Path
    report: ForgetReport
    files: dict[str, bytes]
    trained: Any


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file below some folders."""
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def given(*rows: dict[str, Any]) -> list[Given]:
    return read(list(rows), "forget")


def reader(tokenizer: Any, kind: str = "causal-lm", **changes: Any) -> Reader:
    settings = {"classes": 3, "vocabulary": 10, "context": 8, "cut": None} | changes
    return Reader(tokenizer, kind, **settings)
