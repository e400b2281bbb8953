"""Keys and values in few bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from decoders import decoder, padded, prompt
from transformers import DynamicCache

from kinfold.errors import CacheError
from kinfold.serve.cache import QuantKVCache, QuantKVConfig, parse_cache
from kinfold.serve.cache.quant import channel_group, decode, encode


@pytest.mark.parametrize("width", [16, 20, 64, 80, 6])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("by_channel", [True, False])
def test_every_value_is_the_nearest_of_its_groups_levels(by_channel: bool, bits: int, width: int) -> None:
    half = torch.randn(2, 3, 64, width, generator=torch.Generator().manual_seed(0)) + 5
    found = decode(encode(half, bits, by_channel), bits, by_channel, width).numpy()
    size = channel_group(width)
    for row in range(2):
        for head in range(3):
            plane = half[row, head].double().numpy()
            groups = plane.reshape(2, 32, width).transpose(0, 2, 1) if by_channel else plane.reshape(64, -1, size)
            least, most = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
            step = (most - least) / (2**bits - 1)
            wanted = np.round((groups - least) / step) * step + least
            back = wanted.transpose(0, 2, 1).reshape(64, width) if by_channel else wanted.reshape(64, width)
            off = np.abs(found[row, head] - back)
            assert (off > 1e-4).mean() < 1e-3  # but for ties
            assert np.abs(found[row, head] - plane).max() <= step.max() / 2 + 1e-5


def test_groups_of_channels() -> None:
    assert [channel_group(width) for width in (64, 80, 16, 96, 7, 37)] == [32, 20, 16, 32, 7, 1]


def test_a_constant_group_is_exact() -> None:
    half = torch.full((1, 1, 32, 16), 3.25)
    assert torch.equal(decode(encode(half, 2, True), 2, True, 16), half)


def test_bytes() -> None:
    model = decoder().to(torch.bfloat16)
    with QuantKVCache(model, QuantKVConfig(bits=4)).attached(model) as cache, torch.inference_mode():
        model(prompt(2, 200), past_key_values=cache)
        report = cache.report()
        coded, heads = 160, 2 * 2 * 2  # layers, rows, heads; the last 40 tokens are whole
        assert report.kinds["codes"] == heads * 2 * coded * 16 * 4 // 8
        assert report.kinds["scales"] == heads * 2 * 2 * (5 * 16 + 160)
        assert report.kinds["tail"] == heads * 2 * 40 * 16 * 2
        assert report.full_bytes == heads * 2 * 200 * 16 * 2
        assert report.ratio == report.ratio_16bit == report.bytes / report.full_bytes
        for _ in range(30):
            model(prompt(2, 1), past_key_values=cache)
        assert cache.report().kinds["codes"] == heads * 2 * 192 * 16 * 4 // 8
    storage = cache.layers[0].keys.untyped_storage().nbytes()  # type: ignore[union-attr]
    assert storage == cache.layers[0].keys.numel() * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("beams", [1, 2])
def test_more_bits_are_closer(attention: str, beams: int) -> None:
    model = decoder("qwen3", attention)
    batch = padded([prompt(1, n, seed=n)[0] for n in (90, 71)])

    def generated(cache: Any) -> Any:
        out = model.generate(
            **batch,
            past_key_values=cache,
            max_new_tokens=40,
            num_beams=beams,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return out.sequences, torch.stack(out.logits)

    tokens, logits = generated(DynamicCache(config=model.config))
    off = []
    for config in (
        QuantKVConfig(recent_tokens=500),
        QuantKVConfig(bits=8),
        QuantKVConfig(bits=4),
        QuantKVConfig(bits=2),
    ):
        with QuantKVCache(model, config).attached(model) as cache:
            found, ours = generated(cache)
        if config.bits == 8 or config.recent_tokens == 500:
            assert torch.equal(found, tokens)
        off.append(float((ours[2] - logits[2]).abs().max()))
    assert off[0] == 0.0
    assert off[0] < off[1] < off[2] < off[3]


def test_a_second_block_joins_the_first() -> None:
    """Fed token by token or in one, what is given back is the same."""
    model, ids = decoder(), prompt(1, 140)
    found = []
    for pieces in ((140,), (40, 1, 9, 90), (140 - 64, 64)):
        with QuantKVCache(model, QuantKVConfig(bits=8)).attached(model) as cache, torch.inference_mode():
            for part in ids.split(list(pieces), 1):
                model(part, past_key_values=cache)
            layer: Any = cache.layers[0]
            found.append([decode(coded, 8, way, 16) for coded, way in zip(layer.coded, (True, False), strict=True)])
            assert layer.keys.shape[2] == 44
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=0)  # layer 0: no earlier layer's loss is in it


def test_reset() -> None:
    model = decoder()
    with QuantKVCache(model).attached(model) as cache, torch.inference_mode():
        model(prompt(1, 100), past_key_values=cache)
        cache.reset()
        assert cache.report().bytes == 0
        model(prompt(1, 20), past_key_values=cache)
        assert set(cache.report().kinds) == {"tail"}


def test_as_text() -> None:
    model = decoder()
    cache = parse_cache("quant:bits=2,recent_tokens=0").make(model, None)
    assert isinstance(cache, QuantKVCache)
    assert cache.config == QuantKVConfig(bits=2, recent_tokens=0)
    with pytest.raises(CacheError, match="`bits` of the cache `quant`"):
        parse_cache("quant:bits=3")
