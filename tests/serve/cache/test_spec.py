"""Caches by their text."""

from __future__ import annotations

import pytest
import torch
from decoders import decoder, prompt
from transformers import DynamicCache

from kinfold.errors import CacheError
from kinfold.serve.cache import QuantKVCache, attached, parse_cache, parse_caches
from kinfold.serve.cache.spec import number_from


def test_a_list_of_caches_and_their_options() -> None:
    found = parse_caches("full,quant:bits=8,recent_tokens=0,quant")
    assert [spec.text for spec in found] == ["full", "quant:bits=8,recent_tokens=0", "quant"]
    model = decoder()
    caches = [spec.make(model, None) for spec in found]
    assert [type(cache) for cache in caches] == [DynamicCache, QuantKVCache, QuantKVCache]
    assert caches[1].config.recent_tokens == 0  # type: ignore[attr-defined]
    for cache in caches:
        with attached(cache, model) as given, torch.inference_mode():
            assert given is cache
            model(prompt(1, 5), past_key_values=cache)
        assert cache.get_seq_length() == 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fool", "there is no cache `fool`; there are full, ojakv, quant"),
        ("full:bits=4", "`full` has no options"),
        ("quant:bits", "is not one option=value"),
        ("quant:bits=4,bits=8", "is not one option=value"),
        ("quant:bit=4", "`quant` has no option `bit`; it has version, bits, recent_tokens"),
        ("quant:bits=four", "`bits` of the cache `quant`"),
        ("", "there is no cache ``"),
    ],
)
def test_mistakes(text: str, reason: str) -> None:
    with pytest.raises(CacheError, match=reason):
        parse_cache(text)


def test_numbers() -> None:
    assert number_from(None, "ratio") is None
    assert number_from(".8", "ratio") == 0.8
    with pytest.raises(CacheError, match="`ratio=much` is no number"):
        number_from("much", "ratio")
