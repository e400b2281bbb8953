"""One layer of OjaKV: what it stores, when its bases turn, which tokens stay whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from kinfold.errors import CacheError
from kinfold.serve.cache.base import CompressedLayer, Pair, Seen
from kinfold.serve.cache.basis import KVBasis, oja, residual
from kinfold.serve.cache.blocks import Block, marked, marks, part, pooled, split, zeroed
from kinfold.serve.cache.choose import importance
from kinfold.serve.cache.lowrank_config import OjaKVConfig

_NO_RESIDUAL = 1e-5  # of the mean token norm: rounding, not a residual


class OjaKVLayer(CompressedLayer):
    """One layer of an `OjaKVCache`.

    Attributes:
        bases: (key, value) bases, float32 (kv_heads, d, r) the calibrated ones, (batch, kv_heads, d, r) its own.
        blocks: what is stored, in the order of the tokens; after them come `keys` and `values`, whole.
        valid: bool (batch, tokens) of `keys`, False at padding; None where all are real.
        stored: int64 (batch,), real tokens in the blocks.
        energy: of keys and of values: what the blocks lost, and what they were given.
        largest: norm of the largest residual of a key.
    """

    float32_kinds = ("bases",)

    def __init__(self, number: int, basis: KVBasis, config: OjaKVConfig) -> None:
        super().__init__()
        self.number, self.basis, self.config = number, basis, config
        self.clear()

    def clear(self) -> None:
        self.bases: list[Pair] = []
        self.blocks: list[Block] = []
        self.valid: torch.Tensor | None = None
        self.stored: torch.Tensor | None = None
        self.energy = [[0.0, 0.0], [0.0, 0.0]]
        self.largest = 0.0

    def held(self) -> Iterator[tuple[str, torch.Tensor]]:
        for block in self.blocks:
            yield "positions", block.at
            yield from (("whole tokens", half) for half in block.whole)
            yield from (("coordinates", half) for half in block.low)
        yield from (("bases", half) for pair in self.bases for half in pair if half.dim() == 4)
        yield from (("tail", half) for half in self.pending or (self.keys, self.values) if half is not None)
        yield from (("positions", marks) for marks in (self.valid, self.stored) if marks is not None)

    def transform(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for block in self.blocks:
            block.transform(change)
        self.bases = [(_own(change, key), _own(change, value)) for key, value in self.bases]
        self.keys, self.values = map(change, self.tail)
        self.valid = None if self.valid is None else change(self.valid)
        self.stored = None if self.stored is None else change(self.stored)

    @torch.no_grad()
    def read(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> Seen:
        if self.pending is None:
            return key, value, mask
        self._store_prompt(query, key, value, scaling)
        self.pending = None
        if self.config.prefill == "full":
            return key, value, mask
        return *self._reconstructed(), mask

    @torch.no_grad()
    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        config, new = self.config, None if self.inputs is None else self.inputs.valid
        if self.valid is not None or new is not None:
            self.valid = torch.cat([marks(self.valid, self.tail[0]), marks(new, keys)], 1)
        self.keys, self.values = (torch.cat(halves, 2) for halves in zip(self.tail, (keys, values), strict=True))
        while config.decode_period and self.tail[0].shape[2] - config.recent_tokens >= config.decode_period:
            self._store_oldest(config.decode_period)
        return self._reconstructed()

    def _reconstructed(self) -> Pair:
        halves = [
            torch.cat([*(block.half(n, self.bases[block.version][n]) for block in self.blocks), tail], 2)
            for n, tail in enumerate(self.tail)
        ]
        return halves[0], halves[1]

    def _store_prompt(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> None:
        config, tokens = self.config, keys.shape[2]
        calibrated = self.basis.on(self.number, keys.device)
        for half, basis in zip((keys, values), calibrated, strict=True):
            if (half.shape[1], half.shape[3]) != tuple(basis.shape[:2]):
                raise CacheError(
                    f"the basis of layer {self.number} is for {tuple(basis.shape[:2])} heads and dimensions, "
                    f"the model gives {(half.shape[1], half.shape[3])}"
                )
        valid = None if self.inputs is None else self.inputs.valid
        self.bases = [calibrated]
        self.stored = torch.zeros(keys.shape[0], dtype=torch.int64, device=keys.device)
        low = max(0, tokens - config.recent_tokens)
        share = config.whole_tokens
        more = round(share * tokens) if isinstance(share, float) else share
        keep = config.sink_tokens + more
        if low > keep:
            self._turn_to_prompt(keys, values, valid)
        if low:
            weight = None
            if config.query_weight and low > keep:
                last = query[:, :, -config.query_window :]
                weight = importance(last, keys, marks(valid, keys), scaling, 1)[:, :, :low]
            self._store((keys[:, :, :low], values[:, :, :low]), part(valid, 0, low), keep, weight)
        self.keys, self.values = keys[:, :, low:].clone(), values[:, :, low:].clone()  # a view would keep all alive
        self.valid = part(valid, low, tokens)

    def _turn_to_prompt(self, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Rows of `min_update_tokens` real tokens and more get bases of their own."""
        config = self.config
        real = marks(valid, keys).sum(1)
        long = real >= config.min_update_tokens
        if not config.eta_prefill or not config.prefill_steps or not long.any():
            return
        turned = []
        for basis, half in zip(self.bases[0], (keys, values), strict=True):
            tokens = pooled(zeroed(half, valid), config.pool)
            own = oja(basis, tokens, config.eta_prefill, config.prefill_steps, config.update)
            turned.append(torch.where(long[:, None, None, None], own, basis))
        self.bases = [(turned[0], turned[1])]

    def _store_oldest(self, tokens: int) -> None:
        config, (keys, values) = self.config, self.tail
        pair, valid = (keys[:, :, :tokens], values[:, :, :tokens]), part(self.valid, 0, tokens)
        if config.eta_decode:
            self._turn(pair, valid)
        assert self.stored is not None  # the prompt has been stored
        sinks = int((config.sink_tokens - self.stored).clamp(min=0).max()) if config.sink_tokens else 0
        self._store(pair, valid, min(tokens, config.decode_keep + sinks), None)
        self.valid = part(self.valid, tokens, keys.shape[2])
        self.keys, self.values = keys[:, :, tokens:].clone(), values[:, :, tokens:].clone()

    def _turn(self, pair: Pair, valid: torch.Tensor | None) -> None:
        """A new version of the bases after one step on `pair`; blocks already stored keep theirs."""
        config, before = self.config, self.bases[-1]
        halves = [zeroed(half, valid) for half in pair]
        both = list(zip(before, halves, strict=True))
        turned = [oja(basis, half, config.eta_decode, 1, config.update) for basis, half in both]
        if config.trigger is not None:
            wanted = self._outside(halves, before) > config.trigger * self._expected()
            if not wanted.any():
                return
            wanted = wanted[:, None, None, None]
            turned = [torch.where(wanted, new, old) for new, old in zip(turned, before, strict=True)]
        self.bases.append((turned[0], turned[1]))

    def _outside(self, halves: list[torch.Tensor], bases: Pair) -> torch.Tensor:
        """(batch,), the share of the energy outside the bases, mean of keys and values."""
        shares = []
        for half, basis in zip(halves, bases, strict=True):
            given = half.float().square().sum((1, 2, 3))
            kept = (half.float() @ basis).square().sum((1, 2, 3))
            shares.append(1 - kept / given.clamp(min=1e-12))
        return (shares[0] + shares[1]) / 2

    def _expected(self) -> float:
        """The same share at calibration."""
        halves = (self.basis.key_energy, self.basis.value_energy)
        kept = [share for half in halves for share in half.get(self.number, ())]
        return 1 - sum(kept) / len(kept) if kept else 0.0

    def _store(self, pair: Pair, valid: torch.Tensor | None, keep: int, weight: torch.Tensor | None) -> None:
        """Add a block of `pair` (batch, kv_heads, n, d) each; at most `keep` tokens of each head stay whole."""
        bases, tokens = self.bases[-1], pair[0].shape[2]
        lows = [half.float() @ basis for half, basis in zip(pair, bases, strict=True)]
        losses = [residual(half, basis).norm(dim=-1) for half, basis in zip(pair, bases, strict=True)]
        real = marks(valid, pair[0])
        keep = min(keep, tokens)
        score = self._score(pair, losses, real, weight)
        at = score.argsort(dim=-1, descending=True, stable=True)[..., :keep].sort(dim=-1).values
        self._account(pair, losses, real[:, None], real[:, None] & ~marked(at, tokens))
        self.blocks.append(split(pair, lows, at, len(self.bases) - 1))
        assert self.stored is not None
        self.stored = self.stored + real.sum(1)

    def _score(
        self, pair: Pair, losses: list[torch.Tensor], real: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """(batch, kv_heads, n): the larger, the rather a token stays whole."""
        score = torch.zeros_like(losses[0])
        if self.config.keep == "residual":
            number = real.sum(1)[:, None, None].clamp(min=1)
            for half, loss in zip(pair, losses, strict=True):
                mean = (loss * real[:, None]).sum(-1, keepdim=True) / number
                size = (half.float().norm(dim=-1) * real[:, None]).sum(-1, keepdim=True) / number
                score = score + torch.where(mean > _NO_RESIDUAL * size, loss / mean.clamp(min=1e-30), 0.0)
            score = score if weight is None else score * weight
        assert self.stored is not None
        order = self.stored[:, None] + real.cumsum(1)  # 1 for a row's first real token
        score = torch.where((real & (order <= self.config.sink_tokens))[:, None], torch.inf, score)
        return torch.where(real[:, None], score, -1.0)

    def _account(self, pair: Pair, losses: list[torch.Tensor], real: torch.Tensor, lost: torch.Tensor) -> None:
        for energy, half, loss in zip(self.energy, pair, losses, strict=True):
            energy[0] += float((loss * lost).square().sum())
            energy[1] += float((half.float().square().sum(-1) * real).sum())
        self.largest = max(self.largest, float((losses[0] * lost).max()))


def _own(change: Callable[[torch.Tensor], torch.Tensor], basis: torch.Tensor) -> torch.Tensor:
    return change(basis) if basis.dim() == 4 else basis  # the calibrated one has no batch
