"""What a codec is, and where codecs are found.

A codec turns the delta of one tensor into bytes and back. It is a pure function of tensors: it sees no
path, no file, no model. What the whole model must agree on (one threshold, one rank for all) goes through
`survey` and `settle`, which look at small summaries of all deltas before any byte is written.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from kinfold.codec.sums import is_finite
from kinfold.errors import BudgetError, CodecError

Shape = tuple[int, ...]


class CodecConfig(BaseModel):
    """Options of a codec; frozen, checked, and versioned so that old packs can always be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1


@dataclass(frozen=True)
class Plan:
    """What a tensor will take: at most `nbytes` bytes, known from shape and budget alone."""

    nbytes: int


@dataclass(frozen=True)
class Payload:
    """A coded delta.

    Attributes:
        data: the bytes.
        params: small JSON values that the decoder needs besides shape and dtype; kept in the manifest.
        seed: the tensor's own 64-bit seed (see `kinfold.codec.random.tensor_seed`); not stored.
    """

    data: bytes
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Importance:
    """How much an error in each entry matters, from calibration; float32, shape of the matrix.

    Attributes:
        gradient: mean over rows of the gradient of the loss.
        fisher: mean over rows of the squared gradient.
    """

    gradient: torch.Tensor
    fisher: torch.Tensor


class Codec(ABC):
    """Base class of all lossy codecs; subclasses set `name`, `Config` and the abstract methods."""

    name: ClassVar[str]
    Config: ClassVar[type[CodecConfig]] = CodecConfig
    coarse: ClassVar[bool] = False  # its unit is so large that a budget cannot be filled to 97 %
    takes_vectors: ClassVar[bool] = False  # it codes norms and biases too, and new tensors at a few bits

    def __init__(self, config: CodecConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def with_config(self, **changes: Any) -> Self:
        return type(self)(self.config.model_copy(update=changes))

    @property
    def needs_importance(self) -> bool:
        return False

    def weight(self, shape: Shape) -> float:
        """This shape's share of a common rate; the number of entries unless a codec knows better."""
        return math.prod(shape)

    @abstractmethod
    def minimum_bits(self, shape: Shape) -> int:
        """The least budget with which `encode` succeeds."""

    @abstractmethod
    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        """Bytes that `encode` will not exceed.

        Raises:
            BudgetError: the budget is below `minimum_bits`.
        """

    def encode(
        self, delta: torch.Tensor, *, budget_bits: int, importance: Importance | None = None, seed: int = 0
    ) -> Payload:
        """Code `delta`, float32 (n, d), in at most `budget_bits` bits.

        Raises:
            BudgetError: the budget is below `minimum_bits`.
            CodecError: the delta holds NaN or infinity, or importance is wanted and missing.
        """
        require_bits(self, tuple(delta.shape), budget_bits)
        check_finite(delta)
        return self._encode(delta, budget_bits, importance, seed)

    @abstractmethod
    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        """`encode`, for a finite delta and a budget that suffices."""

    @abstractmethod
    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The delta that `encode` settled on, (n, d) in `dtype`; the same bits on any thread count.

        Raises:
            PackError: lengths, ranges or values are impossible for this shape.
        """

    def factors(self, payload: Payload, shape: Shape) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A (n, k) and C (d, k), float32, whose product A C^T `decode` gives; None for codes that are no product.

        Raises:
            PackError: as `decode`.
        """
        return None

    def steer(self, payload: Payload, delta: torch.Tensor, target: torch.Tensor) -> Payload:
        """Choose the code of `delta` again, for a target near it; the payload's size stays.

        Args:
            payload: of `delta`, from `encode` or an earlier `steer`.
            delta: as it was given to `encode`; sets the scale.
            target: in the delta's shape.
        """
        return payload

    @property
    def steers(self) -> bool:
        """Whether calibration can improve finished payloads."""
        return type(self).steer is not Codec.steer

    def params_like(self, digits: int) -> dict[str, Any]:
        """Params as a payload's may look, made of three digits: the plan measures the manifest by them."""
        return {"k": digits % 97, "w": 8, "f": digits % 89, "s": [9 * digits, 9999 - digits]}

    def alternatives(self) -> list[Codec]:
        """Settings among which only a model's outputs can decide, for a plan with calibration."""
        return []

    def top_rank(self, shape: Shape, budget_bits: int) -> int:
        """The rank of the low-rank model at which importance is measured."""
        return min(16, *shape)

    def survey(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None) -> np.ndarray | None:
        """A small summary of one delta for `settle`; None where the codec needs none."""
        return None

    @property
    def surveys(self) -> bool:
        return type(self).survey is not Codec.survey

    def settle(
        self, shapes: Sequence[Shape], surveys: Sequence[np.ndarray | None], total_bits: int
    ) -> tuple[Codec, list[int]]:
        """The codec to encode with, and the bits for each tensor; their sum is at most `total_bits`.

        Raises:
            BudgetError: `total_bits` cannot hold the minimum of every tensor.
        """
        return self, self.shares(shapes, total_bits)

    def shares(self, shapes: Sequence[Shape], total_bits: int) -> list[int]:
        """Whole bytes for each tensor (given in bits) at one common rate, none below its minimum."""
        least = [-(-self.minimum_bits(shape) // 8) * 8 for shape in shapes]
        if sum(least) > total_bits:
            raise BudgetError(
                f"`{self.name}` needs at least {sum(least) // 8} bytes for {len(shapes)} matrices, "
                f"{max(total_bits, 0) // 8} are left for them",
                least_bytes=sum(least) // 8,
            )
        weights = [self.weight(shape) for shape in shapes]
        fixed: set[int] = set()  # tensors whose share would lie below their minimum
        while True:
            room = total_bits - sum(least[i] for i in fixed)
            rate = room / max(sum(w for i, w in enumerate(weights) if i not in fixed), 1)
            short = {i for i, w in enumerate(weights) if i not in fixed and int(rate * w) // 8 * 8 < least[i]}
            if not short:
                return [least[i] if i in fixed else int(rate * w) // 8 * 8 for i, w in enumerate(weights)]
            fixed |= short


def check_finite(delta: torch.Tensor) -> None:
    """Raise CodecError when a delta holds NaN or infinity: no lossy code has a place for them."""
    if not is_finite(delta):
        raise CodecError("the delta holds NaN or infinity", hint="pack it with --codec exact, or mend the variant")


def require_bits(codec: Codec, shape: Shape, budget_bits: int) -> None:
    least = codec.minimum_bits(shape)
    if budget_bits < least:
        raise BudgetError(f"`{codec.name}` needs at least {least} bits for {list(shape)}, {budget_bits} were given")


BUILTIN = {
    "fold": "kinfold.codec.fold:Fold",
    "truncsvd": "kinfold.codec.truncsvd:TruncSvd",
    "osd": "kinfold.codec.osd:Osd",
    "bitdelta": "kinfold.codec.bitdelta:BitDelta",
    "dare": "kinfold.codec.dare:Dare",
    "magnitude": "kinfold.codec.magnitude:Magnitude",
    "rtn": "kinfold.codec.rtn:Rtn",
}


def names() -> list[str]:
    """Names of all lossy codecs: those shipped here and those of the entry point `kinfold.codecs`."""
    return sorted(BUILTIN.keys() | {point.name for point in entry_points(group="kinfold.codecs")})


def find(name: str) -> type[Codec]:
    """The codec class of that name.

    Raises:
        CodecError: no such codec; the nearest names are listed.
    """
    if name in BUILTIN:
        module, attribute = BUILTIN[name].split(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group="kinfold.codecs", name=name):
        return point.load()
    near = difflib.get_close_matches(name, [*names(), "exact"], 1)
    raise CodecError(
        f"no codec is called `{name}`; there are exact, {', '.join(names())}",
        hint=f"--codec {near[0]}" if near else "",
    )


def create(name: str, options: Mapping[str, Any] | None = None) -> Codec:
    """A codec with its options checked.

    Raises:
        CodecError: unknown codec, unknown option, or a value the option does not allow.
    """
    kind = find(name)
    try:
        config = kind.Config(**dict(options or {}))
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(map(str, first["loc"])) or "options"
        allowed = ", ".join(k for k in kind.Config.model_fields if k != "version")
        what = f"`{name}` has no option `{key}`"
        if key in kind.Config.model_fields:
            what = f"`{name}` does not take {key}={first.get('input')!r}: {first['msg']}"
        raise CodecError(f"{what}; its options are {allowed}") from cause
    return kind(config)
