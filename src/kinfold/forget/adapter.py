"""A fresh LoRA adapter on a loaded variant: the only tensors that forgetting trains."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kinfold.codec.lowrank import Pair
from kinfold.errors import ForgetOptionError, MissingExtraError
from kinfold.forget.config import ForgetConfig
from kinfold.forget.subject import Subject
from kinfold.forget.tokens import Tokens

NAMED = 12  # candidates that an error lists


@dataclass(frozen=True)
class Adapter:
    """A LoRA on some modules; while it is attached the model's forwards go through it.

    Attributes:
        tuner: PEFT's.
        modules: path of each adapted module in the subject's model, by the name of its weight in the checkpoint.
    """

    tuner: Any
    modules: dict[str, str]

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is trained: float32 A (rank, in) and B (out, rank) of each module."""
        return [p for name, p in self.tuner.named_parameters() if ".lora_A." in name or ".lora_B." in name]

    @property
    def numel(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)

    def factors(self) -> dict[str, Pair]:
        """Left (n, rank) and right (d, rank), float64 on the CPU: left right^T is the delta of a tensor as stored."""
        found = {}
        for name, path in self.modules.items():
            layer = self.tuner.model.get_submodule(path)
            (key,) = layer.lora_A.keys()
            a, b = layer.lora_A[key].weight, layer.lora_B[key].weight * layer.scaling[key]
            left, right = (side.detach().cpu().double().contiguous() for side in (b, a.T))
            found[name] = (right, left) if getattr(layer, "fan_in_fan_out", False) else (left, right)
        return found


@contextmanager
def attached(subject: Subject, config: ForgetConfig, batch: Sequence[Tokens], seed: int) -> Iterator[Adapter]:
    """Put a LoRA on the model, B = 0, so that it answers bit for bit as before; taken off again at the end.

    Args:
        subject: its model is changed in place.
        config: rank, alpha and target modules.
        batch: some rows; modules that take no part in their loss, such as an unused pooler, are left alone.
        seed: of A.

    Raises:
        ForgetOptionError: nothing to adapt, or an unknown module; candidates are named.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ModuleNotFoundError as missing:
        raise MissingExtraError("peft", "peft") from missing
    modules = _used(subject, _chosen(subject, config), batch)
    pattern = "|".join(re.escape(path) for path in modules.values())  # a list would match ends of names
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=pattern, lora_dropout=0.0)  # type: ignore[arg-type]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's of transposed weights, which it handles
        torch.manual_seed(seed)
        tuner = LoraModel(subject.model, {"default": settings}, "default")
    try:
        subject.model.eval()
        yield Adapter(tuner, modules)
    finally:
        tuner.unload()
        subject.model.requires_grad_(False)


def candidates(subject: Subject) -> dict[str, str]:
    """Paths of the linear modules that may be adapted, by the names of their weights in the checkpoint.

    Their weights are matrices of floating point, stored under a name of their own and not tied to others.
    """
    from transformers.pytorch_utils import Conv1D

    holders: dict[int, int] = {}
    for _, parameter in subject.model.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    paths = {
        id(module.weight): path
        for path, module in subject.model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and holders[id(module.weight)] == 1
    }
    found = {}
    for name, info in subject.checkpoint.tensors.items():
        parameter = subject.parameter(name)
        floating = info.torch_dtype.is_floating_point and info.torch_dtype.itemsize > 1
        if parameter is not None and id(parameter) in paths and tuple(parameter.shape) == info.shape and floating:
            found[name] = paths[id(parameter)]
    return found


def _chosen(subject: Subject, config: ForgetConfig) -> dict[str, str]:
    known = candidates(subject)
    listed = ", ".join(list(known)[:NAMED]) + (", ..." if len(known) > NAMED else "")
    if not known:
        raise ForgetOptionError(
            f"`{subject.checkpoint.directory}` has no linear module whose weight is a floating-point matrix of its own",
            hint="give the variant as it was before quantisation",
        )
    if config.target_modules == "all-linear":
        output = subject.task.model.get_output_embeddings() if subject.kind == "causal-lm" else None
        return {name: path for name, path in known.items() if subject.model.get_submodule(path) is not output}
    found = {}
    for wanted in config.target_modules:
        own = wanted.removesuffix(".weight")
        match = {n: p for n, p in known.items() if f".{n.removesuffix('.weight')}".endswith(f".{own}")}
        if not match:
            raise ForgetOptionError(f"there is no linear module `{wanted}` to adapt; there are {listed}")
        found |= match
    return dict(sorted(found.items()))


def _used(subject: Subject, modules: dict[str, str], batch: Sequence[Tokens]) -> dict[str, str]:
    called: set[str] = set()
    handles = [
        subject.model.get_submodule(path).register_forward_hook(lambda *_, name=name: called.add(name))
        for name, path in modules.items()
    ]
    try:
        subject.facts(batch)
    finally:
        for handle in handles:
            handle.remove()
    # a pooler is called, but what it gives goes nowhere when states are averaged
    idle = {"pooler"} if subject.kind == "pooled-head" else set()
    found = {n: p for n, p in modules.items() if n in called and not idle & set(p.split("."))}
    if not found:
        raise ForgetOptionError("none of the modules to adapt is used by these rows", hint="target_modules=all-linear")
    return found
