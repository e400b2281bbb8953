"""Options of the cache that reads by sentences, checked."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kinfold.errors import CacheError


class SentenceKVConfig(BaseModel):
    """Options of `SentenceKVCache`; frozen, checked and versioned.

    Attributes:
        tokens_read: entries that one decoding step may read for a KV head.
        keep_factor: `keep_factor * tokens_read` entries of the prompt are stored; `inf` discards nothing.
        window: the last queries of the prompt, which judge importance; the last `window` tokens are always stored.
        pool_kernel: width of the maximum over neighbours that importance is taken from, odd; 1 takes it as it is.
        sink_tokens: the first stored entries, always read, counted inside `tokens_read`.
        recent_tokens: the last stored entries, likewise.
        warm_tokens: queries of the running sentence up to which everything stored is read.
        segments: `sentence`, or `fixed` for blocks of `segment_length` tokens.
        segment_length: tokens of a fixed segment.
        mode: `sentencekv`; `snapkv` stores `tokens_read` entries of the prompt by the same importance and always reads
            all that is stored; `streaming` stores and reads the first `sink_tokens` and the last of `tokens_read`.
        offload: `host` keeps keys and values in host memory and fetches what a step reads. Experimental; on a model
            that runs on the CPU nothing moves, and the bytes that would are counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    tokens_read: int = Field(default=256, ge=1)
    keep_factor: float = 3.0
    window: int = Field(default=32, ge=1)
    pool_kernel: int = Field(default=7, ge=1)
    sink_tokens: int = Field(default=32, ge=0)
    recent_tokens: int = Field(default=32, ge=0)
    warm_tokens: int = Field(default=1, ge=0)
    segments: Literal["sentence", "fixed"] = "sentence"
    segment_length: int = Field(default=16, ge=1)
    mode: Literal["sentencekv", "snapkv", "streaming"] = "sentencekv"
    offload: Literal["none", "host"] = "none"

    @property
    def needs_sentences(self) -> bool:
        """Whether token ids, and the ids of stops, are looked at."""
        return self.mode == "sentencekv" and self.segments == "sentence"

    @property
    def always_read(self) -> tuple[int, int]:
        """How many of the first and of the last stored entries every step reads."""
        if self.mode == "streaming":
            return self.sink_tokens, self.tokens_read - self.sink_tokens
        return self.sink_tokens, self.recent_tokens

    def stored(self, tokens: int) -> int:
        """Entries that a prompt of `tokens` leaves for a KV head."""
        factor = self.keep_factor if self.mode == "sentencekv" else 1.0
        return tokens if math.isinf(factor) else min(int(factor * self.tokens_read), tokens)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse what cannot be met.

        Raises:
            CacheError: fewer tokens read than are always read, fewer stored than read or than the window, an even
                kernel, or offload in a mode that would move everything.
        """
        always = {"sentencekv": self.sink_tokens + self.recent_tokens, "streaming": self.sink_tokens}.get(self.mode, 0)
        if self.tokens_read < always + 1:
            names = "sink_tokens" if self.mode == "streaming" else "sink_tokens and recent_tokens"
            raise CacheError(f"tokens_read {self.tokens_read} must be above the {always} of {names}")
        if not self.keep_factor >= 1:  # NaN is refused too
            raise CacheError(f"keep_factor {self.keep_factor} must be at least 1, or inf to discard nothing")
        if self.pool_kernel % 2 == 0:
            raise CacheError(f"pool_kernel {self.pool_kernel} must be odd")
        if self.offload == "host" and self.mode != "sentencekv":
            raise CacheError(f"offload=host is for mode sentencekv: {self.mode} reads all that it stores at every step")
        least = self.stored(self.window)
        if self.mode != "streaming" and least < self.window:
            raise CacheError(f"{least} entries would be stored of a window of {self.window}: too few")
        return self
