"""Tokens of one layer stored together: some whole, the rest as coordinates; and what is known of padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kinfold.serve.cache.base import Pair


@dataclass
class Block:
    """Tokens stored together: some whole, the rest as coordinates in one of the layer's bases.

    Attributes:
        version: number of the basis.
        at: int32 (batch, kv_heads, whole), where in the block the whole ones are, ascending; the rest follow in order.
        whole: keys and values of those, (batch, kv_heads, whole, d).
        low: coordinates of the rest, (batch, kv_heads, tokens - whole, rank).
    """

    version: int
    at: torch.Tensor
    whole: Pair
    low: Pair

    @property
    def tokens(self) -> int:
        return self.whole[0].shape[2] + self.low[0].shape[2]

    def half(self, number: int, basis: torch.Tensor) -> torch.Tensor:
        """Keys (0) or values (1) of all its tokens, (batch, kv_heads, tokens, d)."""
        whole, low = self.whole[number], self.low[number]
        if not low.shape[2]:
            return whole
        on_cpu = low.device.type == "cpu"  # products in 16 bits are slow there, and twice as far off
        rest = (low.float() @ basis.mT).to(low.dtype) if on_cpu else low @ basis.to(low.dtype).mT
        if not whole.shape[2]:
            return rest
        out = rest.new_empty(*rest.shape[:2], self.tokens, rest.shape[3])
        chosen = marked(self.at, self.tokens)
        out[chosen] = whole.reshape(-1, rest.shape[3])
        out[~chosen] = rest.reshape(-1, rest.shape[3])
        return out

    def transform(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.at = change(self.at)
        self.whole = (change(self.whole[0]), change(self.whole[1]))
        self.low = (change(self.low[0]), change(self.low[1]))


def marked(at: torch.Tensor, tokens: int) -> torch.Tensor:
    """bool (batch, kv_heads, tokens), true at the positions `at`."""
    marks = torch.zeros(*at.shape[:2], tokens, dtype=torch.bool, device=at.device)
    return marks.scatter_(2, at.long(), True)


def split(pair: Pair, lows: Sequence[torch.Tensor], at: torch.Tensor, version: int) -> Block:
    """A block of `pair` (batch, kv_heads, n, d) each: whole at `at` (batch, kv_heads, k), coordinates elsewhere."""
    rows, heads, tokens, _ = pair[0].shape
    chosen, keep = marked(at, tokens), at.shape[2]
    whole = [half[chosen].reshape(rows, heads, keep, half.shape[3]) for half in pair]
    low = [
        rest.to(half.dtype)[~chosen].reshape(rows, heads, tokens - keep, rest.shape[3])
        for rest, half in zip(lows, pair, strict=True)
    ]
    return Block(version, at.int(), (whole[0], whole[1]), (low[0], low[1]))


def marks(valid: torch.Tensor | None, half: torch.Tensor) -> torch.Tensor:
    """bool (batch, tokens) of `half` (batch, kv_heads, tokens, d): `valid`, or all true."""
    if valid is not None:
        return valid.to(half.device)
    return torch.ones(half.shape[0], half.shape[2], dtype=torch.bool, device=half.device)


def part(valid: torch.Tensor | None, first: int, last: int) -> torch.Tensor | None:
    """Columns of `valid`, in memory of their own; None where all are true."""
    some = None if valid is None else valid[:, first:last]
    return None if some is None or bool(some.all()) else some.clone()


def zeroed(half: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """`half` (batch, kv_heads, tokens, d) with zeros at padding."""
    return half if valid is None else half * valid[:, None, :, None].to(half)


def pooled(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Means of `length` neighbours, counted from the last token, so that padding on the left moves none."""
    if length == 1:
        return tokens
    tokens = torch.nn.functional.pad(tokens, (0, 0, -tokens.shape[2] % length, 0))
    return tokens.unflatten(2, (-1, length)).mean(3)
