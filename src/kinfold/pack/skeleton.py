"""The modules of a model by name and type, from its config alone: nothing is loaded and no memory taken."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kinfold.tasks import model_class, quiet_transformers

# `linear` (out, in), `conv1d` (in, out) as GPT-2 stores it, `convolution` (out, in, *kernel); `other` is any leaf
# with tensors of its own, `shared` a module that the model holds under two names, `parent` holds other modules
Kind = Literal["linear", "conv1d", "embedding", "convolution", "other", "shared", "parent"]


@dataclass(frozen=True)
class Skeleton:
    """A model class without its weights.

    Attributes:
        model: name of the class.
        kinds: type of each module, by its full name.
        tensors: names of all parameters and saved buffers; tied ones under each of their names.
        tied: all names of a parameter that has several, by each of them.
        prefix: that of the base model inside, such as `bert.`.
    """

    model: str
    kinds: Mapping[str, Kind]
    tensors: frozenset[str]
    tied: Mapping[str, tuple[str, ...]]
    prefix: str

    def spell(self, name: str) -> str | None:
        """The class's own name for a tensor of a checkpoint, with or without the prefix of the base model."""
        spellings = (name, name.removeprefix(self.prefix), self.prefix + name)
        return next((spelling for spelling in spellings if spelling in self.tensors), None)

    def kind(self, name: str) -> Kind | None:
        """The type of the module that a tensor of a checkpoint belongs to."""
        spelt = self.spell(name)
        return None if spelt is None else self.kinds[spelt.rpartition(".")[0]]


@lru_cache(maxsize=8)
def skeleton(config: bytes) -> Skeleton | None:
    """The skeleton of the class that a `config.json` names; None where transformers cannot build it from this alone.

    No code of the model's own is run.
    """
    import transformers

    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder, quiet_transformers():
        (Path(folder) / "config.json").write_bytes(config)
        try:
            settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kind: Any = model_class(settings)
            with torch.device("meta"):
                model = kind.from_config(settings) if kind is transformers.AutoModel else kind(settings)
        except Exception:  # whatever a config of unknown origin makes a class raise
            return None
    return _of(model)


def _of(model: nn.Module) -> Skeleton:
    held: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        held.setdefault(id(module), []).append(name)
    kinds: dict[str, Kind] = {
        name: "shared" if len(held[id(module)]) > 1 else _kind(module)
        for name, module in model.named_modules(remove_duplicate=False)
    }
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}
    prefix = getattr(model, "base_model_prefix", "")
    return Skeleton(type(model).__name__, kinds, frozenset(model.state_dict()), tied, f"{prefix}." if prefix else "")


def _kind(module: nn.Module) -> Kind:
    from transformers.pytorch_utils import Conv1D

    if any(True for _ in module.children()):
        return "parent"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, nn.Embedding):
        # a subclass with a forward of its own (shifted positions) is no table of rows to PEFT's LoRA
        return "embedding" if type(module).forward is nn.Embedding.forward else "other"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1:
        return "convolution"
    return "other"
