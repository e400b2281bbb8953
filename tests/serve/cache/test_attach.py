"""A model that a cache is attached to goes back to what it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from decoders import KINDS, decoder, padded, prompt

from kinfold.errors import CacheError
from kinfold.serve.cache import QuantKVCache, activate, switched
from kinfold.serve.cache.attach import active
from models import bert, llama


def state(model: Any) -> tuple[str, int, torch.Tensor]:
    with torch.inference_mode():
        logits = model(prompt(2, 12)).logits
    return model.config._attn_implementation, len(model.base_model._forward_pre_hooks), logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_as_before(kind: str, attention: str) -> None:
    model = decoder(kind, attention)
    before = state(model)
    cache = QuantKVCache(model)
    with cache.attached(model) as given, torch.inference_mode():
        assert given is cache
        assert active() is cache
        inside = model(prompt(2, 12)).logits  # a pass that uses no cache of ours
        model(prompt(2, 12), past_key_values=cache)
        assert model.config._attn_implementation == f"kinfold_{attention}"
    after = state(model)
    assert active() is None
    assert before[:2] == after[:2] == (attention, 0)
    assert torch.equal(before[2], after[2])
    assert torch.equal(before[2], inside)


def test_after_an_exception_too() -> None:
    model = decoder()
    before = state(model)
    with pytest.raises(ZeroDivisionError), QuantKVCache(model).attached(model):
        raise ZeroDivisionError
    after = state(model)
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_the_last_to_leave_switches_back() -> None:
    """Two threads share a model: the first to end must not take the attention from the second."""
    model, first, second = decoder(), threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with QuantKVCache(model).attached(model) as cache, torch.inference_mode():
                first.set()
                assert second.wait(10)
                model(prompt(1, 80), past_key_values=cache)
                assert cache.report().kinds["codes"] > 0
        except BaseException as error:  # an assertion in a thread would be lost
            failed.append(error)

    thread = threading.Thread(target=run)
    with QuantKVCache(model).attached(model):
        thread.start()
        assert first.wait(10)
    assert model.config._attn_implementation == "kinfold_sdpa"
    second.set()
    thread.join()
    assert not failed
    assert state(model)[:2] == ("sdpa", 0)


def test_a_server_switches_once() -> None:
    model = decoder()
    with switched(model), torch.inference_mode():
        for _ in range(2):
            cache = QuantKVCache(model)
            with activate(cache):
                model(prompt(1, 80), past_key_values=cache)
            assert cache.report().kinds["codes"] > 0
        assert len(model.base_model._forward_pre_hooks) == 1
    assert state(model)[:2] == ("sdpa", 0)


def test_other_kinds_of_attention_are_refused() -> None:
    model = decoder()
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(CacheError, match="works with `sdpa` and `eager`") as refused:
        QuantKVCache(model).attached(model).__enter__()
    assert "sdpa" in refused.value.hint


def test_a_model_without_the_attention_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda self, kind: None)
    with pytest.raises(CacheError, match="does not use the attention interface"), switched(model):
        pass


def test_a_model_of_several_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    monkeypatch.setattr(type(model.config), "get_text_config", lambda self, decoder=None: bert().config)
    with pytest.raises(CacheError, match="has parts besides its language model"), switched(model):
        pass


def test_another_kind_of_mask_is_refused() -> None:
    model = decoder()
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    with QuantKVCache(model).attached(model) as cache, pytest.raises(CacheError, match="attention mask of the tokens"):
        model(prompt(1, 12), attention_mask=mask, past_key_values=cache)


def test_padding_and_ids_reach_the_layers() -> None:
    model, found = decoder(), []
    cache = QuantKVCache(model)
    layer: Any = cache.layers[0]
    read = layer.read

    def look(*args: Any) -> Any:
        found.append(layer.inputs)
        return read(*args)

    layer.read = look
    batch = padded(list(prompt(1, 9)) + list(prompt(1, 5)))
    with cache.attached(model), torch.inference_mode():
        model(**batch, past_key_values=cache)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], 1)
        model(prompt(2, 1), attention_mask=mask, past_key_values=cache)
        model(inputs_embeds=torch.zeros(2, 1, 64), past_key_values=cache)
    assert torch.equal(found[0].ids, batch["input_ids"])
    assert torch.equal(found[0].valid, batch["attention_mask"].bool())
    assert (found[1].valid, found[2].valid, found[2].ids) == (None, None, None)
    assert layer.inputs is None


def test_another_model_inside_the_block_is_refused() -> None:
    model, other = decoder(), llama()
    with QuantKVCache(model).attached(model) as cache:
        with pytest.raises(CacheError, match="not the one this cache is attached to"):
            other(prompt(1, 5), past_key_values=cache)
        with switched(other), pytest.raises(CacheError, match="made for another model"):
            other(prompt(1, 5), past_key_values=cache)
