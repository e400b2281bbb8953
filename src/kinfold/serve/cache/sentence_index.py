"""The vectors of the sentences that have ended, and the queries of the one that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kinfold.serve.cache import choose

_STATE = ("number", "sums", "counts", "running", "asked", "query_sum", "queries")


class SentenceIndex:
    """State of one layer: B rows, H KV heads, m stored entries, S sentences, d head size.

    Attributes:
        number: (B, H, m) int32, the sentence of each stored entry, counted over all tokens, stored or not.
        sums: (B, H, S, d) float32, sum of the stored keys of each sentence, the running one among them.
        counts: (B, H, S) int32, entries behind each sum.
        running: (B,) int64, number of the sentence that has not ended.
        asked: (B,) int64, the sentence that the queries belong to.
        query_sum: (B, H, d) float32, over the queries of that sentence.
        queries: (B,) int64, how many they are.
    """

    def __init__(self, keys: Tensor, number: Tensor, valid: Tensor, running: Tensor) -> None:
        """Of the stored entries of a prompt: keys (B, H, m, d), number and valid (B, H, m), running (B,)."""
        rows, heads, _, size = keys.shape
        self.number = number.to(torch.int32)
        self.running = self.asked = running
        self.sums = keys.new_zeros(rows, heads, 0, size, dtype=torch.float32)
        self.counts = keys.new_zeros(rows, heads, 0, dtype=torch.int32)
        self.query_sum = keys.new_zeros(rows, heads, size, dtype=torch.float32)
        self.queries = torch.zeros_like(running)
        self._add(keys, number, valid)

    def append(self, keys: Tensor, number: Tensor, valid: Tensor) -> None:
        """Later tokens: keys (B, H, n, d), number and valid (B, n)."""
        number, valid = (t[:, None].expand(-1, keys.shape[1], -1) for t in (number, valid))
        self.number = torch.cat([self.number, number.to(torch.int32)], -1)
        self._add(keys, number, valid)

    def _add(self, keys: Tensor, number: Tensor, valid: Tensor) -> None:
        missing = int(torch.maximum(number.max(), self.running.max())) + 1 - self.sums.shape[2]
        if missing > 0:
            rows, heads, _, size = self.sums.shape
            self.sums = torch.cat([self.sums, self.sums.new_zeros(rows, heads, missing, size)], 2)
            self.counts = torch.cat([self.counts, self.counts.new_zeros(rows, heads, missing)], 2)
        masked = keys.float().masked_fill(~valid[..., None], 0.0)
        place = number.long()
        self.sums = self.sums.scatter_add(2, place[..., None].expand_as(masked), masked)
        self.counts = self.counts.scatter_add(2, place, valid.to(torch.int32))

    def ask(self, query: Tensor, number: Tensor, valid: Tensor) -> None:
        """Take the queries (B, H, n, d) of new tokens, number and valid (B, n): those of the last one's sentence."""
        last = number[:, -1]
        own = (number == last[:, None]) & valid
        same = last == self.asked
        self.query_sum = self.query_sum * same[:, None, None] + (query * own[:, None, :, None]).sum(2)
        self.queries = self.queries * same + own.sum(1)
        self.asked = last

    def ended(self) -> Tensor:
        """(B, H, S) bool: sentences that have ended and of which an entry is stored."""
        return self.counts.gt(0) & (
            torch.arange(self.sums.shape[2], device=self.sums.device) < self.running[:, None, None]
        )

    def means(self) -> Tensor:
        """(B, H, S, d) float32: the vector of each sentence."""
        return self.sums / self.counts.clamp(min=1)[..., None]

    def ranks(self) -> Tensor:
        """(B, H, S) int64: 0 for the sentence whose vector has the largest dot product with the mean query."""
        query = self.query_sum / self.queries.clamp(min=1)[:, None, None]
        return choose.rank(self.means(), self.ended(), query)

    def end(self, stops: Tensor) -> None:
        """Count the sentences that ended in this pass, (B,) int64."""
        self.running = self.running + stops

    def held(self) -> Iterator[tuple[str, Tensor]]:
        yield "sentence numbers", self.number
        for name in _STATE[1:]:
            yield "sentence vectors", getattr(self, name)

    def transform(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in _STATE:
            setattr(self, name, change(getattr(self, name)))
