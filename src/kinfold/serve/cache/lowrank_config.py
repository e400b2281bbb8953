"""What an `OjaKVCache` can be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kinfold.errors import CacheError
from kinfold.serve.cache.basis import Update

Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]


class OjaKVConfig(BaseModel):
    """How an `OjaKVCache` chooses, updates and stores.

    Attributes:
        version: of this set of fields.
        prefill: what the prompt attends to: its own keys and values, or those given back by what is stored.
        keep: which tokens stay whole: those with the largest residual, or the first.
        sink_tokens: first real tokens of each row that stay whole.
        recent_tokens: last tokens, always whole.
        whole_tokens: further tokens of the prompt that stay whole; a float is a share of the prompt.
        eta_prefill, prefill_steps: rate and number of Oja steps on the prompt; 0 keeps the calibrated basis.
        eta_decode: rate of the step on each `decode_period` generated tokens; 0 makes none. Every step adds a basis
            to what is held (docs/decisions/008).
        decode_period: generated tokens are stored this many at a time; 0 leaves them whole.
        decode_keep: of these, how many stay whole.
        update: form of the step, see `kinfold.serve.cache.basis.oja`.
        pool: tokens of the prompt are averaged by this many before its update.
        query_weight: weigh residuals by the attention of the last `query_window` queries of the prompt; of use only
            where the question is in the prompt.
        min_update_tokens: a shorter prompt keeps the calibrated basis, since a basis of its own would cost more
            bytes than it saves.
        trigger: step while decoding only where the tokens' energy outside the basis is above this many times
            calibration's; None always steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    prefill: Literal["full", "reconstructed"] = "full"
    keep: Literal["residual", "positional"] = "residual"
    sink_tokens: Count = 4
    recent_tokens: Count = 32
    whole_tokens: Count | Annotated[float, Field(ge=0, le=1)] = 64
    eta_prefill: Rate = 0.5
    prefill_steps: Count = 20
    eta_decode: Rate = 0.0
    decode_period: Count = 64
    decode_keep: Count = 4
    update: Update = "stable"
    pool: Annotated[int, Field(ge=1)] = 1
    query_weight: bool = False
    query_window: Annotated[int, Field(ge=1)] = 32
    min_update_tokens: Count = 1024
    trigger: Rate | None = None

    @model_validator(mode="after")
    def _window_is_whole(self) -> Self:
        if self.query_weight and self.query_window > self.recent_tokens:
            raise ValueError("query_window must be at most recent_tokens")
        return self

    @classmethod
    def preset(cls, name: str, **changes: Any) -> OjaKVConfig:
        """`default`; `static` and `hybrid` (parts left out); `v1`, `v2`, `v2-pf` (after the paper's versions).

        Raises:
            CacheError: no such preset.
        """
        if name not in PRESETS:
            raise CacheError(f"there is no preset `{name}`; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})


_PAPER = {"update": "published", "prefill_steps": 1, "eta_prefill": 0.1, "eta_decode": 0.05, "min_update_tokens": 0}
_V2 = {**_PAPER, "query_weight": True, "pool": 4}
_BARE = {"sink_tokens": 0, "recent_tokens": 0, "whole_tokens": 0, "decode_keep": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "static": {**_BARE, "eta_prefill": 0, "eta_decode": 0},
    "hybrid": {"eta_prefill": 0, "eta_decode": 0},
    "v1": {**_PAPER, "prefill": "reconstructed", "keep": "positional", **_BARE, "sink_tokens": 32, "recent_tokens": 32},
    "v2": {**_V2, "prefill": "reconstructed"},
    "v2-pf": _V2,
}
