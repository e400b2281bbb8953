from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from kinfold.errors import CacheError
from kinfold.serve.cache.sentence_config import SentenceKVConfig


def test_defaults_are_the_documented_ones() -> None:
    assert SentenceKVConfig().model_dump() == {
        "version": 1,
        "tokens_read": 256,
        "keep_factor": 3.0,
        "window": 32,
        "pool_kernel": 7,
        "sink_tokens": 32,
        "recent_tokens": 32,
        "warm_tokens": 1,
        "segments": "sentence",
        "segment_length": 16,
        "mode": "sentencekv",
        "offload": "none",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_read": 64}, "tokens_read 64 must be above the 64 of sink_tokens and recent_tokens"),
        ({"tokens_read": 32, "mode": "streaming"}, "tokens_read 32 must be above the 32 of sink_tokens"),
        ({"keep_factor": 0.99}, "keep_factor 0.99 must be at least 1"),
        ({"keep_factor": math.nan}, "keep_factor nan must be at least 1"),
        ({"pool_kernel": 4}, "pool_kernel 4 must be odd"),
        ({"tokens_read": 70, "window": 211}, "210 entries would be stored of a window of 211"),
        ({"tokens_read": 20, "mode": "snapkv"}, "20 entries would be stored of a window of 32"),
        ({"mode": "snapkv", "offload": "host"}, "offload=host is for mode sentencekv"),
    ],
)
def test_what_cannot_be_met_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        SentenceKVConfig(**options)


@pytest.mark.parametrize("options", [{"tokens_read": 0}, {"mode": "other"}, {"window": 0}, {"tau": 3}])
def test_fields_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SentenceKVConfig(**options)


@pytest.mark.parametrize(
    ("options", "stored"),
    [({}, 300), ({"keep_factor": 2.5}, 250), ({"keep_factor": math.inf}, 999), ({"mode": "snapkv"}, 100)],
)
def test_entries_stored_of_a_prompt_of_999(options: dict[str, Any], stored: int) -> None:
    config = SentenceKVConfig(tokens_read=100, **options)
    assert config.stored(999) == stored
    assert config.stored(50) == 50


def test_the_limits_themselves_are_allowed() -> None:
    SentenceKVConfig(tokens_read=65, keep_factor=1.0)
    SentenceKVConfig(tokens_read=33, mode="streaming")
    SentenceKVConfig(tokens_read=32, mode="snapkv")
