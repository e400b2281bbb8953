"""Keys and values in 8, 4 or 2 bits: the peer that a compressed cache has to beat at equal bytes.

As KIVI does (arXiv 2402.02750): keys in groups of 32 tokens of one channel, values in groups of 32 channels of one
token, each group with a scale and a least value in the model's dtype; the last tokens stay whole. Plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from kinfold.serve.cache.base import CompressedLayer, KVCache, Pair, Seen
from kinfold.serve.cache.report import KVReport, count
from kinfold.serve.cache.spec import Make, Options, config_from, register

GROUP = 32


class QuantKVConfig(BaseModel):
    """How a `QuantKVCache` stores.

    Attributes:
        version: of this set of fields.
        bits: of one number, 2, 4 or 8, besides its share of the group's scale and least value (1 bit in 16-bit models).
        recent_tokens: at least this many of the last tokens stay whole, at most 31 more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    bits: int = 4
    recent_tokens: Annotated[int, Field(ge=0)] = 32

    @field_validator("bits")
    @classmethod
    def _known(cls, bits: int) -> int:
        if bits not in (2, 4, 8):
            raise ValueError("there are 2, 4 and 8 bits")
        return bits


class Coded:
    """Numbers of (batch, kv_heads, tokens, d) in few bits.

    Attributes:
        codes: uint8 (batch, kv_heads, tokens, d * bits / 8, rounded up), several codes to a byte.
        scale, least: of each group: (batch, kv_heads, tokens / 32, d) for keys,
            (batch, kv_heads, tokens, d / group) for values.
    """

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, least: torch.Tensor) -> None:
        self.codes, self.scale, self.least = codes, scale, least

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Coded:
        """The same with `change` made to each tensor."""
        return Coded(change(self.codes), change(self.scale), change(self.least))

    def and_then(self, other: Coded) -> Coded:
        """These tokens and later ones."""
        mine, more = vars(self).values(), vars(other).values()
        return Coded(*(torch.cat(pair, 2) for pair in zip(mine, more, strict=True)))


def channel_group(width: int) -> int:
    """The largest number of channels up to 32 that divides `width`."""
    return next(size for size in range(min(GROUP, width), 0, -1) if width % size == 0)


def encode(half: torch.Tensor, bits: int, by_channel: bool) -> Coded:
    """Round (batch, kv_heads, tokens, d) to `bits`.

    Args:
        half: with a multiple of 32 tokens where `by_channel`.
        bits: 2, 4 or 8.
        by_channel: groups of 32 tokens of one channel, as for keys; else of channels of one token.
    """
    width = half.shape[3]
    grouped = half.unflatten(2, (-1, GROUP)) if by_channel else half.unflatten(3, (-1, channel_group(width)))
    along = 3 if by_channel else 4
    least, most = grouped.amin(along, keepdim=True), grouped.amax(along, keepdim=True)
    top = (1 << bits) - 1
    scale = ((most.float() - least.float()) / top).to(half.dtype)
    steps = (grouped.float() - least.float()) / scale.float().clamp(min=torch.finfo(torch.float32).tiny)
    codes = steps.round_().clamp_(0, top).to(torch.uint8).view(half.shape)
    return Coded(_packed(codes, bits), scale.squeeze(along), least.squeeze(along))


def decode(coded: Coded, bits: int, by_channel: bool, width: int) -> torch.Tensor:
    """What `encode` rounded: (batch, kv_heads, tokens, width) in the dtype it had."""
    codes = _unpacked(coded.codes, bits)[..., :width]
    grouped = codes.unflatten(2, (-1, GROUP)) if by_channel else codes.unflatten(3, (-1, channel_group(width)))
    along = 3 if by_channel else 4
    values = grouped * coded.scale.float().unsqueeze(along) + coded.least.float().unsqueeze(along)
    return values.to(coded.scale.dtype).view(codes.shape)


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    many = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[3] % many)).unflatten(3, (-1, many))
    out = codes[..., 0].clone()
    for place in range(1, many):
        out |= codes[..., place] << (place * bits)
    return out


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).flatten(3)


class QuantKVLayer(CompressedLayer):
    """One layer of a `QuantKVCache`: `coded` keys and values, then `keys` and `values` whole."""

    def __init__(self, config: QuantKVConfig) -> None:
        super().__init__()
        self.config = config
        self.coded: list[Coded] | None = None

    def clear(self) -> None:
        self.coded = None

    def held(self) -> Iterator[tuple[str, torch.Tensor]]:
        for coded in self.coded or ():
            yield "codes", coded.codes
            yield "scales", coded.scale
            yield "scales", coded.least
        yield from (("tail", half) for half in self.pending or (self.keys, self.values) if half is not None)

    def transform(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.coded = None if self.coded is None else [coded.each(change) for coded in self.coded]
        self.keys, self.values = map(change, self.tail)

    @torch.no_grad()
    def read(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> Seen:
        if self.pending is not None:
            self.keys, self.values = self.pending
            self.pending = None
            self._code_oldest()
        return key, value, mask

    @torch.no_grad()
    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        self.keys, self.values = (torch.cat(halves, 2) for halves in zip(self.tail, (keys, values), strict=True))
        self._code_oldest()
        if self.coded is None:
            return self.tail
        halves = [
            torch.cat([decode(coded, self.config.bits, by_channel, tail.shape[3]), tail], 2)
            for coded, tail, by_channel in zip(self.coded, self.tail, (True, False), strict=True)
        ]
        return halves[0], halves[1]

    def _code_oldest(self) -> None:
        tail = self.tail
        ready = max(0, tail[0].shape[2] - self.config.recent_tokens) // GROUP * GROUP
        if not ready:
            return
        bits = self.config.bits
        new = [encode(half[:, :, :ready], bits, chan) for half, chan in zip(tail, (True, False), strict=True)]
        self.coded = new if self.coded is None else [a.and_then(b) for a, b in zip(self.coded, new, strict=True)]
        self.keys, self.values = (half[:, :, ready:].clone() for half in tail)  # a view would keep all alive


class QuantKVCache(KVCache):
    """A cache of transformers that keeps keys and values in few bits, the last tokens whole.

    Padding counts into the groups of keys that it shares with real tokens.
    """

    def __init__(self, model: Any, config: QuantKVConfig | None = None) -> None:
        """Make an empty cache for a decoder of transformers.

        Raises:
            CacheError: the model has no layer of full attention.
        """
        self.config = config or QuantKVConfig()
        super().__init__(model, lambda number: QuantKVLayer(self.config))

    def report(self) -> KVReport:
        """Bytes by kind."""
        return count(self)


def _read(options: Options) -> Make:
    config = config_from(QuantKVConfig, "quant", options)
    return lambda model, tokenizer: QuantKVCache(model, config)


register("quant", _read)
