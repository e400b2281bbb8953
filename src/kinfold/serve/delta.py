"""What a variant does to one parameter, in the form in which it is added to a running batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kinfold.codec.lowrank import Pair
from kinfold.pack.source import difference

# how a module uses its weight; `leaf` is any other module without children, `parent` one with them
Kind = Literal["linear", "conv1d", "embedding", "leaf", "parent"]


@dataclass(frozen=True)
class LowRank:
    """The delta of a matrix as a product: a batch x (..., in) gains `x @ inner @ outer`.

    Attributes:
        inner: (in, r), or (vocabulary, r) of an embedding, whose rows are looked up.
        outer: (r, out).
    """

    inner: torch.Tensor
    outer: torch.Tensor

    @property
    def rank(self) -> int:
        return self.outer.shape[0]

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + self.outer.nbytes


@dataclass(frozen=True)
class Dense:
    """The delta of a matrix or a bias as it is, in the parameter's shape and the model's dtype."""

    delta: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.delta.nbytes


@dataclass(frozen=True)
class Whole:
    """The variant's own value, for modules that do more with a parameter than multiply or add, such as norms."""

    value: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.value.nbytes


Change = LowRank | Dense | Whole


def kind_of(module: nn.Module) -> Kind:
    """How a module uses its parameters; a subclass with a forward of its own is a leaf like any other."""
    from transformers.pytorch_utils import Conv1D

    if any(True for _ in module.children()):
        return "parent"
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return "linear"
    if isinstance(module, Conv1D) and forward is Conv1D.forward:
        return "conv1d"
    plain = isinstance(module, nn.Embedding) and forward is nn.Embedding.forward and module.max_norm is None
    return "embedding" if plain else "leaf"


def product(pair: Pair, kind: Kind, like: torch.Tensor) -> LowRank | None:
    """A pair A (n, k), C (d, k) for a weight (n, d) used as `kind`; None where the dense delta is no larger.

    `like` is the model's parameter; the factors get its dtype and device.
    """
    a, c = pair
    if kind not in ("linear", "conv1d", "embedding") or like.dim() != 2 or a.shape[1] * sum(like.shape) >= like.numel():
        return None
    inner, outer = (c, a.T) if kind == "linear" else (a, c.T)
    inner, outer = (factor.to(like.device, like.dtype).contiguous() for factor in (inner, outer))
    return LowRank(inner, outer)


def whole_or_dense(value: torch.Tensor, kind: Kind, like: torch.Tensor) -> Dense | Whole | None:
    """The change from the model's parameter `like` to `value` (same shape); None where there is none."""
    value = value.to(like.device, like.dtype)
    if torch.equal(value, like):
        return None
    return Whole(value) if kind == "leaf" else Dense(difference(value, like.detach()).to(like.dtype))


def is_zero(change: LowRank) -> bool:
    """Whether a product changes nothing."""
    return change.rank == 0 or not bool(change.inner.any()) or not bool(change.outer.any())
