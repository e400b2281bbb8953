"""One layer of the cache that reads by sentences; SnapKV and StreamingLLM are settings of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kinfold.serve.cache import choose
from kinfold.serve.cache.attach import Inputs
from kinfold.serve.cache.base import CompressedLayer, Pair, Seen
from kinfold.serve.cache.offload import Residence, to_host
from kinfold.serve.cache.sentence_config import SentenceKVConfig
from kinfold.serve.cache.sentence_index import SentenceIndex
from kinfold.serve.cache.sentences import stops_before, stops_by_ids, stops_by_length

T = TypeVar("T")


class Tokens(NamedTuple):
    """New tokens of a pass, (B, n) each: whether they are real, end a sentence, and how many ended before them."""

    valid: Tensor
    stop: Tensor
    offset: Tensor


class Read(NamedTuple):
    """One pass after the prompt: entries handed to attention for a KV head, and sentences picked (mean; 0 if none)."""

    entries: int
    sentences: float


class SentenceKVLayer(CompressedLayer):
    """Keeps what the prompt's last queries attend to, and reads it back by sentences.

    Paper: SentenceKV, arXiv 2504.00970; the importance is SnapKV's, arXiv 2404.14469. Only the first pass is filtered.

    Attributes:
        keys, values: (B, H, m, d) what is stored; in host memory with `offload="host"`.
        valid: (B, H, m) bool, False at padding.
        real: (B,) int64, tokens seen that are no padding.
        index: sentence numbers and vectors; None where the mode needs none, and before the prompt is stored.
        residence: what of it the device holds; None without offload.
        reads: passes after the prompt.
        dropped: entries of the prompt that were not stored, for a KV head.
    """

    float32_kinds = ("sentence vectors",)

    def __init__(self, config: SentenceKVConfig, stop_ids: Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.stop_ids = stop_ids
        self.clear()

    def clear(self) -> None:
        self.valid: Tensor | None = None
        self.real: Tensor | None = None
        self.index: SentenceIndex | None = None
        self.residence: Residence | None = None
        self.reads: list[Read] = []
        self.dropped = 0
        self._judge: tuple[Tensor, float] | None = None  # queries of the prompt's window, factor of the scores
        self._tokens: Tokens | None = None

    # The three calls of a pass

    def append(self, keys: Tensor, values: Tensor) -> Pair:
        tokens = self._tokens = self._look(keys)
        new = tokens.valid[:, None].expand(-1, keys.shape[1], -1)
        self.valid = torch.cat([there(self.valid), new], -1)
        if self.index is not None:
            self.index.append(keys, self.index.running[:, None] + tokens.offset, tokens.valid)
        if self.residence is None:
            self.keys = torch.cat([there(self.keys), keys], 2)
            self.values = torch.cat([there(self.values), values], 2)
        else:
            self.residence.append(keys, values)
            self.keys = torch.cat([there(self.keys), to_host(keys)], 2)
            self.values = torch.cat([there(self.values), to_host(values)], 2)
        return self.keys, self.values

    def read(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Seen:
        if self.pending is not None:
            self._judge = query[:, :, -self.config.window :], scaling
            return key, value, mask
        new, valid = query.shape[2], there(self.valid)
        everything = self._reads_everything(query)
        see, index, always = choose.visible(valid, new), None, None
        if not bool(everything.all()):
            always = choose.ends(valid, *self.config.always_read)
            index = self._select(always)
            if bool(everything.any()):
                inside = torch.zeros_like(valid).scatter(-1, index, True) | everything[:, None, None]
                see, key, value = see & inside[:, :, None], *self._entries(None)
            else:
                see = see.gather(-1, index[:, :, None].expand(-1, -1, new, -1))
                key, value = self._entries(index)
        else:
            key, value = self._entries(None)
        self.reads.append(Read(key.shape[2], self._picked(index, always)))
        return key, value, _as_mask(see, query, mask)

    def after(self) -> None:
        if self.pending is not None:
            self._store(*self.pending)
            self.pending = self._judge = None
        elif self.config.mode == "streaming" and there(self.valid).shape[-1] > self.config.tokens_read:
            self._keep(self._select(choose.ends(there(self.valid), *self.config.always_read)))
        elif self.index is not None:
            self.index.end(there(self._tokens).stop.sum(1))
        tokens = there(self._tokens)
        self.real = tokens.valid.sum(1) + (0 if self.real is None else self.real)
        self._tokens = None

    # What they do

    def _look(self, keys: Tensor) -> Tokens:
        """Which of the new tokens are real, and which end a sentence."""
        inputs: Inputs = there(self.inputs)
        rows, _, new, _ = keys.shape
        valid = inputs.valid
        valid = keys.new_ones(rows, new, dtype=torch.bool) if valid is None else valid.to(keys.device)
        if self.config.needs_sentences:
            stop = stops_by_ids(there(inputs.ids).to(keys.device), valid, there(self.stop_ids))
        else:
            before = keys.new_zeros(rows, dtype=torch.int64) if self.real is None else self.real
            stop = stops_by_length(valid, before, self.config.segment_length)
        return Tokens(valid, stop, stops_before(stop))

    def _store(self, keys: Tensor, values: Tensor) -> None:
        """Filter the prompt."""
        config, total, tokens = self.config, keys.shape[2], self._look(keys)
        count, heads = config.stored(total), keys.shape[1]
        self._tokens, self.dropped = tokens, total - count
        if config.mode == "streaming":
            index = choose.kept_ends(tokens.valid, config.sink_tokens, count)[:, None].expand(-1, heads, -1)
        elif count == total:
            index = torch.arange(total, device=keys.device).expand(len(keys), heads, -1)
        else:
            query, scaling = there(self._judge)
            scores = choose.importance(query, keys, tokens.valid, scaling, config.pool_kernel)
            index = choose.kept(scores, query.shape[2], count)
        whole = count == total
        keys, values = (t if whole else choose.take(t, index) for t in (keys, values))
        self.valid = tokens.valid[:, None].expand(-1, heads, -1).gather(-1, index)
        if config.mode == "sentencekv":
            number = tokens.offset[:, None].expand(-1, heads, -1).gather(-1, index)
            self.index = SentenceIndex(keys, number, self.valid, tokens.stop.sum(1))
        if config.offload == "host":
            self.residence = Residence(keys, values, moves=keys.is_cuda)
            keys, values = to_host(keys), to_host(values)
        self.keys, self.values = keys, values

    def _reads_everything(self, query: Tensor) -> Tensor:
        """(B,) bool; takes the queries into the running sentence's mean."""
        valid, tokens, config = there(self.valid), there(self._tokens), self.config
        every = config.mode == "snapkv" or config.tokens_read >= valid.shape[-1]
        result = (tokens.valid.sum(1) > 1) | every
        if self.index is None:
            return result
        number = self.index.running[:, None] + tokens.offset
        self.index.ask(choose.group_mean(query, valid.shape[1]), number, tokens.valid)
        return result | (self.index.queries <= config.warm_tokens)

    def _select(self, always: Tensor) -> Tensor:
        """(B, H, tokens_read) int64: the entries that a step reads."""
        valid = there(self.valid)
        if self.index is None:
            ranks = torch.zeros(*valid.shape[:2], 1, dtype=torch.int64, device=valid.device)
            number = torch.zeros_like(valid, dtype=torch.int64)
        else:
            ranks, number = self.index.ranks(), self.index.number.long()
        return choose.selected(ranks, number, valid, always, min(self.config.tokens_read, valid.shape[-1]))

    def _picked(self, index: Tensor | None, always: Tensor | None) -> float:
        """Sentences of which a selection has entries that are not always read; mean of rows and heads."""
        if self.index is None or index is None or always is None:
            return 0.0
        number = choose.take(self.index.number, index).long()
        marks = torch.zeros(*number.shape[:2], self.index.sums.shape[2], device=number.device)
        marks.scatter_add_(-1, number, (choose.take(there(self.valid) & ~always, index)).float())
        return float((marks > 0).sum(-1).float().mean())

    def _entries(self, index: Tensor | None) -> Pair:
        """Keys and values of a selection, or all, on the device of the model."""
        keys, values = there(self.keys), there(self.values)
        if self.residence is not None:
            return self.residence.fetch((keys, values), index)
        return (keys, values) if index is None else (choose.take(keys, index), choose.take(values, index))

    def _keep(self, index: Tensor) -> None:
        """Drop what no later step reads."""
        self.keys, self.values = self._entries(index)
        self.valid = choose.take(there(self.valid), index)

    # What the cache asks of every layer

    def held(self) -> Iterable[tuple[str, Tensor]]:
        where = "entries" if self.residence is None else "entries on the host"
        for kind, tensor in (
            (where, self.keys),
            (where, self.values),
            ("validity", self.valid),
            ("validity", self.real),
        ):
            if tensor is not None:
                yield kind, tensor
        for part in (self.index, self.residence):
            if part is not None:
                yield from part.held()

    def transform(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("keys", "values", "valid", "real"):
            setattr(self, name, change(getattr(self, name)))
        for part in (self.index, self.residence):
            if part is not None:
                part.transform(change)


def there(value: T | None) -> T:
    """A value that the order of the calls has put there."""
    assert value is not None
    return value


def _as_mask(see: Tensor, query: Tensor, like: Tensor | None) -> Tensor | None:
    """What is seen, (B, H, n, t) bool, as a mask (B, heads, n, t) of the kind the attention takes; None if all is."""
    if bool(see.all()):
        return None
    see = see.repeat_interleave(query.shape[1] // see.shape[1], 1)
    if like is not None and like.dtype == torch.bool:
        return see
    return torch.zeros(see.shape, dtype=query.dtype, device=see.device).masked_fill_(~see, torch.finfo(query.dtype).min)
