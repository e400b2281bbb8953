"""A base and variants of every kind, with the directories they stand for and what transformers answers on those."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

import kinfold
from adapters import make
from kinfold.pack.member import Base
from kinfold.pack.members import materialise, open_member
from kinfold.serve.catalogue import Paths
from kinfold.serve.engine import ModelEngine
from kinfold.serve.request import Chunk, Sampling
from models import bert, llama, perturbed

T = TypeVar("T")
VOCABULARY = 300  # 256 bytes, merges, an end token, and some that are not used
END = 299
SCALE = 0.05  # of the variants' deltas: their answers differ from the base's


@dataclass
class Fleet:
    """A base and its variants.

    Attributes:
        base: model directory.
        paths: what is served, by name.
        restored: the directory that a name stands for.
    """

    base: Path
    paths: dict[str, Path] = field(default_factory=dict)
    restored: dict[str, Path] = field(default_factory=dict)

    def add(self, name: str, path: Path, restored: Path | None = None) -> None:
        self.paths[name], self.restored[name] = path, restored or path

    def engine(self, paths: Mapping[str, Path] | None = None, **options: Any) -> ModelEngine:
        return ModelEngine.open(self.base, Paths(self.paths if paths is None else paths), name="base", **options)


def once(build: Callable[[Path], Fleet]) -> Callable[[pytest.TempPathFactory], Fleet]:
    """Build a fleet the first time it is asked for in a session; tests must not write to it."""
    built: list[Fleet] = []

    def given(factory: pytest.TempPathFactory) -> Fleet:
        if not built:
            built.append(build(factory.mktemp(build.__name__)))
        return built[0]

    return given


def lively(seed: int = 0, **changes: Any) -> Any:
    """A pico Llama whose greedy answers vary: wide initial weights."""
    settings = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "max_position_embeddings": 96}
    return llama(seed, **(settings | {"eos_token_id": END, "bos_token_id": None, "pad_token_id": None} | changes))


def tuned(model: Any, directory: Path, seed: int, scale: float = SCALE, only: str = "") -> Path:
    """Save a perturbed copy of a model; with `only`, just the tensors whose names hold it differ."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = perturbed({n: p.data for n, p in model.named_parameters() if only in n}, seed, scale)
    with torch.no_grad():
        for name, tensor in changed.items():
            model.get_parameter(name).copy_(tensor)
    model.save_pretrained(directory)
    model.load_state_dict(before)
    return directory


def byte_tokenizer(directory: Path, template: str | None = None) -> None:
    """A byte-level BPE tokenizer: every text can be told, and characters are cut by token borders."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("Ġ", "a"), ("i", "n")]
    words = {word: place for place, word in enumerate([*letters, *(a + b for a, b in merges)])}
    core = Tokenizer(BPE(words, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([f"<extra{n}>" for n in range(END - len(words))])
    core.add_special_tokens(["<end>"])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    made.chat_template = template
    made.save_pretrained(directory)


@once
def causal(folder: Path) -> Fleet:
    """Untied Llama with variants of every kind."""
    model = lively(tie_word_embeddings=False)
    model.save_pretrained(folder / "base")
    byte_tokenizer(folder / "base", "{% for m in messages %}[{{ m.content }}]{% endfor %}>")
    fleet = Fleet(folder / "base")
    for seed, name in enumerate(("full", "packed", "exact", "ash", "birch"), 1):
        tuned(model, folder / name, seed)
    fleet.add("full", folder / "full")
    for name, source, options in (
        ("fold", "packed", {"budget": "1/6"}),
        ("svd", "packed", {"budget": "1/4", "codec": "truncsvd"}),
        ("exact", "exact", {"codec": "exact"}),
    ):
        path = folder / f"{name}.kin.safetensors"
        kinfold.pack(fleet.base, folder / source, path, **options)
        kinfold.restore(path, fleet.base, folder / f"restored-{name}")
        fleet.add(name, path, folder / f"restored-{name}")
    for name, only in (("norms", "norm"), ("embedding", "embed_tokens"), ("head", "lm_head")):
        fleet.add(name, tuned(model, folder / name, 7, 0.5, only))
    adapter = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj", "embed_tokens"]}
    add_adapter(fleet, model, "lora", folder, **adapter)
    family = folder / "trees.kin.safetensors"
    members = {name: folder / name for name in ("ash", "birch")}
    kinfold.fold(members, family, base=fleet.base, low_rank=True, budget="1/2", dominance="off")
    fleet.paths["trees"] = family
    for name in members:
        kinfold.unfold(family, name, folder / f"unfolded-{name}", base=fleet.base)
        fleet.restored[f"trees/{name}"] = folder / f"unfolded-{name}"
    return fleet


def add_adapter(fleet: Fleet, model: Any, name: str, folder: Path, **config: Any) -> None:
    """A PEFT adapter, and the model directory that PEFT itself merges it into."""
    made = make(model, folder / name, 5, **config)
    shutil.copytree(fleet.base, folder / f"merged-{name}")
    made.merge_and_unload().save_pretrained(folder / f"merged-{name}")
    fleet.add(name, folder / name, folder / f"merged-{name}")


@once
def tied(folder: Path) -> Fleet:
    """Llama with tied embeddings: one variant changes them, one parts them, one is packed."""
    model = lively(tie_word_embeddings=True)
    model.save_pretrained(folder / "base")
    byte_tokenizer(folder / "base")
    fleet = Fleet(folder / "base")
    fleet.add("both", tuned(model, folder / "both", 3, 0.1, "embed_tokens"))
    fleet.add("all", tuned(model, folder / "all", 4))
    kinfold.pack(fleet.base, folder / "all", folder / "all.kin.safetensors", codec="truncsvd", budget="1/3")
    kinfold.restore(folder / "all.kin.safetensors", fleet.base, folder / "restored")
    fleet.add("svd", folder / "all.kin.safetensors", folder / "restored")
    apart = lively(tie_word_embeddings=False)
    apart.load_state_dict({**model.state_dict()})
    fleet.add("apart", tuned(apart, folder / "apart", 6, 0.5, "lm_head"))
    make(model, folder / "parting", 5, r=4, lora_alpha=16, target_modules=["lm_head", "q_proj"])
    materialise(open_member(folder / "parting", Base.open(fleet.base)), folder / "parted")
    fleet.add("parting", folder / "parting", folder / "parted")
    return fleet


@once
def encoders(folder: Path) -> Fleet:
    """A bare BERT: a full fine-tune, one with our linear head, one with transformers' classifier, and packs of them."""
    from safetensors.torch import load_file, save_file

    model = bert(initializer_range=0.2)
    model.save_pretrained(folder / "base")
    fleet = Fleet(folder / "base")
    fleet.add("full", tuned(model, folder / "full", 1))
    tuned(model, folder / "headed", 2)
    generator = torch.Generator().manual_seed(0)
    head = {"head.weight": torch.randn(3, 32, generator=generator), "head.bias": torch.randn(3, generator=generator)}
    file = folder / "headed" / "model.safetensors"
    save_file(load_file(file) | head, file, {"format": "pt"})
    fleet.add("headed", folder / "headed")
    classifier = bert(classes=4, initializer_range=0.2)
    classifier.bert.load_state_dict(model.state_dict())
    classifier.config.id2label = {n: f"label {n}" for n in range(4)}
    fleet.add("classifier", tuned(classifier, folder / "classifier", 3))
    for name in ("headed", "classifier"):
        path = folder / f"{name}.kin.safetensors"
        kinfold.pack(fleet.base, folder / name, path, budget="1/4")
        kinfold.restore(path, fleet.base, folder / f"restored-{name}")
        fleet.add(f"{name}-pack", path, folder / f"restored-{name}")
    return fleet


def prompt(name: str, length: int) -> list[int]:
    """Some ids, other ones for every name."""
    start = sum(name.encode())
    return [(start + 37 * place * (place + 3)) % 256 for place in range(length)]


@cache
def loaded(directory: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def expected(directory: Path, ids: Sequence[int], count: int) -> list[int]:
    """Greedy tokens by transformers' own generate, alone; an end token ends them and is left out."""
    return expected_of(loaded(directory), ids, count, END)


def expected_of(model: Any, ids: Sequence[int], count: int, end: int) -> list[int]:
    given = torch.tensor([list(ids)])
    made = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    found = made[0, len(ids) :].tolist()
    return found[: found.index(end)] if end in found else found


def greedy(count: int, **changes: Any) -> Sampling:
    return Sampling(max_tokens=count, temperature=0, **changes)


async def chunks(engine: ModelEngine, name: str, ids: Sequence[int], sampling: Sampling) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(name, ids, sampling)]


async def tokens(engine: ModelEngine, name: str, ids: Sequence[int], sampling: Sampling) -> list[int]:
    return [chunk.token for chunk in await chunks(engine, name, ids, sampling) if chunk.token is not None]


def run(work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
    """Run a coroutine to its end; what hangs fails."""
    return asyncio.run(asyncio.wait_for(work, seconds))


def edit_config(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory
