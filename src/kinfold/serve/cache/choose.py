"""Which entries are kept after a prompt and which a decoding step reads: pure functions of tensors.

B rows, H KV heads, n prompt tokens, m stored entries, S sentences, d head size. All choices break ties in favour of
the earlier entry or sentence, so that they are the same on every machine and in every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def group_mean(query: Tensor, kv_heads: int) -> Tensor:
    """(B, heads, n, d) -> (B, H, n, d) float32: mean over the query heads that share a KV head."""
    rows, heads, tokens, size = query.shape
    return query.float().view(rows, kv_heads, heads // kv_heads, tokens, size).mean(2)


def importance(query: Tensor, key: Tensor, valid: Tensor, scaling: float, kernel: int) -> Tensor:
    """How much the last queries attend to each earlier token: (B, H, n - w) float32, -1 at padding.

    SnapKV's score: softmax over all tokens that a query may see, summed over the w queries, averaged over the query
    heads of the group, then the maximum over `kernel` neighbours.

    Args:
        query: (B, heads, w, d), those of the last w tokens.
        key: (B, H, n, d).
        valid: (B, n) bool, False at padding, which is on the left: where the window holds some, all before it is.
        scaling: factor of the scores.
        kernel: odd.
    """
    rows, kv_heads, tokens, size = key.shape
    window = query.shape[2]
    grouped = query.float().view(rows, kv_heads, -1, window, size)
    scores = torch.einsum("bhgwd,bhnd->bhgwn", grouped, key.float()) * scaling
    future = torch.ones(window, tokens, dtype=torch.bool, device=key.device).triu(tokens - window + 1)
    hidden = future | ~valid[:, None, :]  # (B, w, n)
    weights = scores.masked_fill_(hidden[:, None, None], -1e30).softmax(-1)
    summed = weights.sum(-2).mean(2)[..., : tokens - window]
    if kernel > 1 and summed.shape[-1]:
        summed = F.max_pool1d(summed, kernel, stride=1, padding=kernel // 2)
    return summed.masked_fill(~valid[:, None, : tokens - window], -1.0)  # after pooling, which spreads to neighbours


def kept(scores: Tensor, window: int, count: int) -> Tensor:
    """(B, H, count) int64: the entries of a prompt to store, in order: its last `window`, and the best before them.

    Args:
        scores: (B, H, n - window), as `importance`.
        window: at most `count`.
        count: at most n.
    """
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., : count - window].sort(-1).values
    last = torch.arange(scores.shape[-1], scores.shape[-1] + window, device=scores.device)
    return torch.cat([best, last.expand(*best.shape[:-1], window)], -1)


def ends(valid: Tensor, first: int, last: int) -> Tensor:
    """(B, H, m) bool: the first `first` and the last `last` valid entries of each head."""
    ordinal = valid.cumsum(-1)
    return valid & ((ordinal <= first) | (ordinal > ordinal[..., -1:] - last))


def kept_ends(valid: Tensor, first: int, count: int) -> Tensor:
    """(B, count) int64: places in a prompt of the first `first` real tokens and of the last `count - first`.

    Args:
        valid: (B, n) bool; a row with fewer real tokens is filled up with padding.
    """
    others = ~ends(valid, first, count - first)
    return others.long().argsort(dim=-1, stable=True)[:, :count].sort(-1).values


def rank(means: Tensor, present: Tensor, query: Tensor) -> Tensor:
    """(B, H, S) int64: the place of each sentence, 0 for the largest dot product of its vector with the query.

    Args:
        means: (B, H, S, d) float32.
        present: (B, H, S) bool; the others come last.
        query: (B, H, d) float32.
    """
    scores = torch.einsum("bhsd,bhd->bhs", means, query).masked_fill(~present, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)


def selected(ranks: Tensor, sentence: Tensor, valid: Tensor, always: Tensor, count: int) -> Tensor:
    """(B, H, count) int64: the entries that a step reads, in order.

    `always` come first, then by rank of the sentence, entries of one sentence in order; padding comes last.

    Args:
        ranks: (B, H, S) int64.
        sentence: (B, H, m) int64, below S.
        valid, always: (B, H, m) bool.
        count: at most m.
    """
    sentences, entries = ranks.shape[-1], sentence.shape[-1]
    place = ranks.gather(-1, sentence)
    place = torch.where(always, -1, torch.where(valid, place, sentences))
    key = place * entries + torch.arange(entries, device=place.device)  # int64, as all are: no overflow
    return key.topk(count, dim=-1, largest=False).indices.sort(-1).values


def visible(valid: Tensor, new: int) -> Tensor:
    """(B, H, new, m) bool: valid entries, and of the last `new` ones each query's own and earlier."""
    entries = valid.shape[-1]
    causal = torch.ones(new, entries, dtype=torch.bool, device=valid.device).tril(entries - new)
    return valid[:, :, None, :] & causal


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """Entries of (B, H, m) or (B, H, m, d) by (B, H, t) int64."""
    if tensor.dim() == 4:
        index = index[..., None].expand(*index.shape, tensor.shape[-1])
    return tensor.gather(2, index)
