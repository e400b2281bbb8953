"""Answers whose keys and values are kept in a compressed cache: every row is a pass by itself.

Such a cache follows one conversation and reads its prompt whole, so rows cannot share a padded one. What is saved is
memory; the price is that rows no longer share the reading of the weights.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers.cache_utils import Cache

from kinfold.errors import CacheError, ServeError
from kinfold.serve.cache.attach import activate, switched
from kinfold.serve.cache.base import KVCache
from kinfold.serve.cache.spec import CacheSpec
from kinfold.serve.generate import Batcher, Prefill, Request
from kinfold.serve.live import LiveModel
from kinfold.serve.request import Ids
from kinfold.serve.variant import Variant


class OneByOne(Batcher):
    """The running rows of a causal LM, each with a cache of its own.

    Args:
        live: the base, switched to our attention.
        max_batch: rows at once.
        counts: as of `Batcher`.
        spec: makes the caches.
    """

    def __init__(self, live: LiveModel, max_batch: int, counts: Counter[str], spec: CacheSpec) -> None:
        super().__init__(live, max_batch, counts)
        self._spec = spec
        self._caches: list[KVCache] = []

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self._caches = []

    def _admit(self) -> list[Request]:
        return [self._waiting.popleft()]

    def _read(self, prefill: Prefill) -> None:
        """The whole prompt at once: what a cache keeps of it, it decides at the end."""
        self._prefill = None
        request = prefill.requests[0]
        try:
            cache = new_cache(self._spec, self._live, request.variant)
            logits = self._pass(request, request.ids, cache)
        except Exception as error:  # the other rows go on
            request.deliver(error)
            return
        self._counts["prompt_tokens"] += len(request.ids)
        if not request.cancelled and not self._take(request, logits):
            self._rows.append(request)
            self._caches.append(cache)

    def _decode(self) -> None:
        rows = zip(self._rows, self._caches, strict=True)
        going = [row for row, (request, cache) in enumerate(rows) if not self._next(request, cache)]
        self._keep(going)

    def _next(self, request: Request, cache: KVCache) -> bool:
        """One more token; True when the answer is complete, or failed."""
        try:
            logits = self._pass(request, [request.last], cache)
        except Exception as error:
            request.deliver(error)
            return True
        return self._take(request, logits)

    def _keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        self._caches = [self._caches[row] for row in rows]

    def _pass(self, request: Request, ids: Ids, cache: KVCache) -> torch.Tensor:
        """Logits (vocabulary,) after `ids`, the newest tokens of the row."""
        device, seen = self._live.device, cache.get_seq_length()
        positions = torch.arange(seen, seen + len(ids), device=device)[None]
        mask = torch.ones(1, seen + len(ids), dtype=torch.int64, device=device)
        given = torch.tensor([list(ids)], device=device)
        with activate(cache):
            return self._forward([request], given, mask, positions, cache, [len(ids) - 1])[0, 0]


def new_cache(spec: CacheSpec, live: LiveModel, variant: Variant) -> KVCache:
    """A cache for one answer of a variant.

    Raises:
        CacheError: it does not fit the model, or the variant's tokenizer.
    """
    cache: Cache = spec.make(live.core, variant.tokens.writer if variant.tokens.there else None)
    if not isinstance(cache, KVCache):
        raise CacheError(f"`{spec.text}` is no compressed cache")
    return cache


def attention(live: LiveModel, spec: CacheSpec | None) -> AbstractContextManager[None]:
    """What the worker holds while it lives: the base calls our attention functions where a cache needs them.

    Raises:
        CacheError: the model's attention cannot be switched.
    """
    return nullcontext() if spec is None else switched(live.core)


def check(live: LiveModel, base: Variant, spec: CacheSpec) -> None:
    """Refuse at the start what no request could use.

    Raises:
        ServeError: the base generates nothing.
        CacheError: the cache does not fit it.
    """
    if not live.generates:
        raise ServeError(f"`{base.name}` generates no text, so it has no use for a cache of keys and values")
    with switched(live.core):
        new_cache(spec, live, base)
