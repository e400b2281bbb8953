"""What every compressed cache does the same: refusals, lengths, which layers it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import decoder, prompt
from transformers import DynamicCache

from kinfold.errors import CacheError
from kinfold.serve.cache import QuantKVCache
from kinfold.serve.cache.base import KVCache, full_attention_layers
from models import llama


def test_a_cache_that_is_not_attached_is_refused() -> None:
    model = decoder()
    with pytest.raises(CacheError, match="not attached") as refused:
        model(prompt(1, 5), past_key_values=QuantKVCache(model))
    assert "with cache.attached(model)" in refused.value.hint


def test_a_cache_of_another_model_is_refused() -> None:
    with pytest.raises(CacheError, match="made for another model"):
        QuantKVCache(decoder()).attached(llama()).__enter__()


def test_only_layers_of_full_attention_are_taken() -> None:
    model = decoder("hybrid")
    cache = QuantKVCache(model)
    assert full_attention_layers(model) == cache.compressed == (0, 2)
    assert cache.report().others == {1: "DynamicSlidingWindowLayer", 3: "DynamicSlidingWindowLayer"}


def test_a_model_without_any_is_refused() -> None:
    model = decoder("mistral")
    model.config.sliding_window = 8
    with pytest.raises(CacheError, match="no layer of full attention"):
        QuantKVCache(model)


def test_lengths_and_reset() -> None:
    model = decoder()
    with QuantKVCache(model).attached(model) as cache, torch.inference_mode():
        model(prompt(2, 70), past_key_values=cache)
        model(prompt(2, 1), past_key_values=cache)
        assert cache.get_seq_length() == 71
        assert cache.get_mask_sizes(3, 0) == (74, 0)
        assert not cache.is_compileable
        assert not cache.is_croppable
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.report().bytes == cache.report().full_bytes == 0
        assert cache.report().ratio == 1.0


def test_rows_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """After any operation on rows, the next logits are those of a full cache with the same rows."""
    model, ids = decoder(), prompt(3, 70)
    changes: list[Any] = [
        lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([1, 4, 5])),
    ]
    full, ours = DynamicCache(config=model.config), QuantKVCache(model)
    for layer in ours.layers:
        monkeypatch.setattr(layer, "config", ours.config.model_copy(update={"recent_tokens": 999}))
    with ours.attached(model), torch.inference_mode():
        model(ids, past_key_values=ours)
        model(ids, past_key_values=full)
        for change in changes:
            change(ours)
            change(full)
            rows = len(full.layers[0].keys)  # type: ignore[union-attr,arg-type]
            step = prompt(rows, 1, seed=7)
            a, b = model(step, past_key_values=full).logits, model(step, past_key_values=ours).logits
            assert torch.equal(a, b)


def test_what_it_cannot_do_is_refused() -> None:
    cache = QuantKVCache(decoder())
    cache.crop(0)
    with pytest.raises(CacheError, match="cannot give tokens back"):
        cache.crop(-1)
    with pytest.raises(CacheError, match="does not move between devices"):
        cache.layers[0].offload()
    with pytest.raises(CacheError, match="does not move between devices"):
        cache.layers[0].prefetch()


def test_assisted_decoding_is_refused() -> None:
    model = decoder()
    with QuantKVCache(model).attached(model) as cache, pytest.raises(CacheError, match="cannot give tokens back"):
        model.generate(prompt(1, 40), past_key_values=cache, assistant_model=decoder(seed=1), max_new_tokens=5)


def test_a_pass_that_breaks_off_leaves_no_inputs() -> None:
    model = decoder()
    with QuantKVCache(model).attached(model) as cache, torch.inference_mode():
        broken = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(prompt(1, 40), past_key_values=cache)
        broken.remove()
        cache.reset()
        first = model(prompt(1, 40), past_key_values=cache).logits
        cache.reset()
        assert torch.equal(first, model(prompt(1, 40), past_key_values=cache).logits)


def test_a_plain_cache_has_no_parts_of_its_own() -> None:
    model = decoder()
    cache = KVCache(model, lambda number: QuantKVCache(model).layers[number])  # type: ignore[arg-type,return-value]
    assert [number for number, _ in cache.compressed_layers()] == [0, 1]
