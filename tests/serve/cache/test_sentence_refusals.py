"""What `SentenceKVCache` refuses, and how it is named by text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from decoders import decoder, prompt
from test_sentence import STOPS, cache_of
from test_sentences import byte_level, word_piece

from kinfold.errors import CacheError
from kinfold.serve.cache.sentence import SentenceKVCache
from kinfold.serve.cache.sentence_config import SentenceKVConfig
from kinfold.serve.cache.spec import parse_cache

pytestmark = pytest.mark.filterwarnings("ignore:a sentence of the prompt has")


def test_ids_are_needed_to_find_sentences() -> None:
    model = decoder()
    with cache_of(model).attached(model) as cache, pytest.raises(CacheError, match="inputs_embeds") as caught:
        model(inputs_embeds=model.get_input_embeddings()(prompt(1, 9)), past_key_values=cache)
    assert 'segments="fixed"' in caught.value.hint


def test_padding_on_the_right_is_refused() -> None:
    model, ids = decoder(), prompt(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 8] = 0
    with cache_of(model).attached(model) as cache, pytest.raises(CacheError, match="padded on the right"):
        model(ids, attention_mask=mask, past_key_values=cache)


def test_a_cache_that_is_not_attached_prints_the_line() -> None:
    model = decoder()
    with pytest.raises(CacheError, match="not attached") as caught:
        model(prompt(1, 9), past_key_values=cache_of(model))
    assert "with cache.attached(model)" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither a tokenizer nor stop_ids"),
        ({"tokenizer": word_piece(["a."]), "stop_ids": STOPS}, "a tokenizer and stop_ids were given"),
        ({"stop_ids": STOPS[:0]}, "stop_ids is empty"),
        ({"tokenizer": word_piece(["a"])}, "no token of the"),
    ],
)
def test_one_thing_must_say_where_sentences_end(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        SentenceKVCache(decoder(), **options)


def test_other_attention_is_refused() -> None:
    model = decoder()
    cache = cache_of(model)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(CacheError, match="works with `sdpa` and `eager`"), cache.attached(model):
        pass


def test_assisted_decoding_is_refused() -> None:
    model = decoder()
    with cache_of(model).attached(model) as cache, pytest.raises(CacheError, match="assisted decoding") as caught:
        model.generate(prompt(1, 20), past_key_values=cache, assistant_model=decoder(seed=1), max_new_tokens=6)
    assert "without an assistant" in caught.value.hint


def test_caches_by_text() -> None:
    model = decoder()
    cache = parse_cache("sentencekv:tokens_read=128,keep_factor=inf").make(model, byte_level(["end."]))
    assert isinstance(cache, SentenceKVCache)
    assert cache.config == SentenceKVConfig(tokens_read=128, keep_factor=math.inf)
    for name in ("snapkv", "streaming"):
        cache = parse_cache(f"{name}:tokens_read=128").make(model, None)
        assert isinstance(cache, SentenceKVCache)
        assert cache.config.mode == name


def test_stop_ids_of_a_tokenizer_are_looked_for_once() -> None:
    spec, model, made = parse_cache("sentencekv"), decoder(), byte_level(["end."])
    first, second = spec.make(model, made), spec.make(model, made)
    assert isinstance(first, SentenceKVCache)
    assert isinstance(second, SentenceKVCache)
    assert first.stop_ids is second.stop_ids


@pytest.mark.parametrize("text", ["sentencekv:mode=snapkv", "snapkv:mode=snapkv"])
def test_the_name_is_the_mode(text: str) -> None:
    with pytest.raises(CacheError, match="the mode is the cache's name"):
        parse_cache(text)


def test_text_without_a_tokenizer_cannot_find_sentences() -> None:
    with pytest.raises(CacheError, match="neither a tokenizer nor stop_ids"):
        parse_cache("sentencekv").make(decoder(), None)
