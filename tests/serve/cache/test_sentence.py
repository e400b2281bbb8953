from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from decoders import KINDS, decoder, padded, prompt
from test_choose import snapkv
from transformers import DynamicCache

from kinfold.serve.cache.sentence import SentenceKVCache
from kinfold.serve.cache.sentence_config import SentenceKVConfig
from kinfold.serve.cache.sentence_layer import SentenceKVLayer

STOPS = torch.tensor([3, 17, 40, 66, 80, 81, 82, 83])
EVERYTHING = SentenceKVConfig(tokens_read=400, keep_factor=math.inf)
SMALL = SentenceKVConfig(tokens_read=16, keep_factor=2, window=6, sink_tokens=3, recent_tokens=4)
ATTENTIONS = ("sdpa", "eager")
pytestmark = pytest.mark.filterwarnings("ignore:a sentence of the prompt has")


def cache_of(model: Any, config: SentenceKVConfig = SMALL) -> SentenceKVCache:
    return SentenceKVCache(model, config=config, stop_ids=STOPS)


@torch.no_grad()
def logits(model: Any, cache: Any, pieces: list[torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, n, vocabulary) of all pieces, one forward each; `mask` is of the first."""
    found = []
    for piece in pieces:
        if mask is not None and found:
            mask = torch.cat([mask, mask.new_ones(len(mask), piece.shape[1])], 1)
        found.append(model(piece, attention_mask=mask, past_key_values=cache).logits)
    return torch.cat(found, 1)


def singles(ids: torch.Tensor) -> list[torch.Tensor]:
    return list(ids.split(1, 1))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_reading_everything_is_the_full_cache(kind: str, attention: str, beams: int) -> None:
    model = decoder(kind, attention)
    inputs = padded([prompt(1, tokens, seed=tokens)[0] for tokens in (60, 41, 22)])
    options = {"max_new_tokens": 40, "do_sample": False, "num_beams": beams}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    full = model.generate(**inputs, past_key_values=DynamicCache(config=model.config), **options)
    with cache_of(model, EVERYTHING).attached(model) as cache:
        ours = model.generate(**inputs, past_key_values=cache, **options)
    assert torch.equal(full.sequences, ours.sequences)
    assert torch.equal(full.logits[0], ours.logits[0])
    for one, other in zip(full.logits, ours.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_prompt_in_pieces_is_read_whole(attention: str) -> None:
    model, ids = decoder("llama", attention), prompt(2, 80)
    with cache_of(model, EVERYTHING).attached(model) as cache:
        found = logits(model, cache, list(ids.split([50, 17, 1, 1, 11], 1)))
    torch.testing.assert_close(found, logits(model, None, [ids]), atol=2e-5, rtol=0)


def test_later_pieces_see_all_that_is_stored_and_each_other() -> None:
    """A second turn as one block equals full attention over what was kept, expressed as a mask of the first layer."""
    model, ids = decoder("llama"), prompt(1, 60)
    config = SMALL.model_copy(update={"mode": "streaming", "tokens_read": 20})
    with cache_of(model, config).attached(model) as cache:
        found = logits(model, cache, [ids[:, :50], ids[:, 50:]])[:, 50:]
    mask = torch.ones(1, 1, 60, 60, dtype=torch.bool).tril()
    mask[..., 50:, 3:33] = False  # 3 sinks, the last 17 of the prompt
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits[:, 50:]
    torch.testing.assert_close(found, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_gathering_is_masking(kind: str, attention: str) -> None:
    """A row gathers when alone, and is masked beside one that always reads everything."""
    model, ids = decoder(kind, attention), prompt(2, 70)
    ids[1, 50:] = STOPS[0]  # every step opens a sentence, so it is warm
    with cache_of(model).attached(model) as cache:
        alone = logits(model, cache, [ids[:1, :50], *singles(ids[:1, 50:])])
        assert {16, 16 * 2 + 1} <= set(cache.report().reads)
    with cache_of(model).attached(model) as cache:
        both = logits(model, cache, [ids[:, :50], *singles(ids[:, 50:])])
        assert cache.report().reads == tuple(range(33, 53))
    torch.testing.assert_close(both[:1], alone, atol=5e-5, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"warm_tokens": 0}, {"mode": "snapkv"}, {"mode": "streaming"}, {"segments": "fixed"}]
)
def test_a_row_of_a_padded_batch_is_that_row_alone(options: dict[str, Any], attention: str) -> None:
    config = SentenceKVConfig(**{**SMALL.model_dump(), **options})
    model, later = decoder("llama", attention), prompt(3, 30, seed=5)
    rows = [prompt(1, tokens, seed=tokens)[0] for tokens in (60, 47, 22)]
    inputs = padded(rows)
    with cache_of(model, config).attached(model) as cache:
        found = logits(model, cache, [inputs["input_ids"], *singles(later)], inputs["attention_mask"])
    for number, row in enumerate(rows):
        with cache_of(model, config).attached(model) as cache:
            alone = logits(model, cache, [row[None], *singles(later[number : number + 1])])
        torch.testing.assert_close(found[number : number + 1, 60 - len(row) :], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_is_sdpa(kind: str) -> None:
    inputs, later = padded([prompt(1, n, seed=n)[0] for n in (60, 33)]), prompt(2, 20)
    found = []
    for attention in ATTENTIONS:
        model = decoder(kind, attention)
        with cache_of(model).attached(model) as cache:
            found.append(logits(model, cache, [inputs["input_ids"], *singles(later)], inputs["attention_mask"]))
    real = torch.cat([inputs["attention_mask"], torch.ones(2, 20, dtype=torch.int64)], 1).bool()
    torch.testing.assert_close(found[0][real], found[1][real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_what_is_kept_is_what_snapkv_scores_highest(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[tuple[np.ndarray, np.ndarray, float]] = []
    read = SentenceKVLayer.read

    def spy(self: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float) -> Any:
        captured.append((query[0].numpy(), key[0].numpy(), scaling))
        return read(self, query, key, value, mask, scaling)

    monkeypatch.setattr(SentenceKVLayer, "read", spy)
    model = decoder(kind)
    with cache_of(model).attached(model) as cache:
        logits(model, cache, [prompt(1, 60)])
    for (_, layer), (query, key, scaling) in zip(cache.compressed_layers(), captured, strict=True):
        assert layer.keys is not None
        for head in range(2):
            scores = snapkv(query[2 * head : 2 * head + 2, -6:], key[head], scaling, 7)
            best = sorted(np.argsort(-scores, kind="stable")[: 32 - 6].tolist()) + list(range(54, 60))
            np.testing.assert_array_equal(layer.keys[0, head].numpy(), key[head][best])


def test_reset_makes_the_cache_new() -> None:
    model, pieces = decoder(), [prompt(1, 50), *singles(prompt(1, 10))]
    with cache_of(model).attached(model) as cache:
        first, report = logits(model, cache, pieces), cache.report()
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.report().bytes == 0
        assert torch.equal(logits(model, cache, pieces), first)
        assert cache.report() == report


def test_two_conversations_do_not_meet() -> None:
    model = decoder()
    talks = [[prompt(1, 50, seed), *singles(prompt(1, 12, seed))] for seed in (1, 2)]
    separate = []
    for pieces in talks:
        with cache_of(model).attached(model) as cache:
            separate.append(logits(model, cache, pieces))
    caches, found = [cache_of(model), cache_of(model)], [[], []]
    for step in zip(*talks, strict=True):
        for number, piece in enumerate(step):
            with caches[number].attached(model) as cache:
                found[number].append(logits(model, cache, [piece]))
    assert all(torch.equal(torch.cat(parts, 1), whole) for parts, whole in zip(found, separate, strict=True))


def test_beams_repeat_and_reorder_rows() -> None:
    """Beam search runs on a compressed cache, and its best beam scores what the beam's own tokens score alone."""
    model, ids = decoder(), prompt(2, 50)
    with cache_of(model).attached(model) as cache:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=12,
            num_beams=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            length_penalty=0.0,
        )
    for row in range(2):
        with cache_of(model).attached(model) as cache:
            alone = logits(model, cache, [ids[row : row + 1], *singles(out.sequences[row : row + 1, 50:-1])])
        logs = alone[0, 49:].log_softmax(-1).gather(-1, out.sequences[row, 50:, None]).sum()
        torch.testing.assert_close(logs, out.sequences_scores[row], atol=1e-3, rtol=0)


def test_the_report_counts_entries_sentences_and_bytes() -> None:
    model, ids = decoder(), prompt(1, 60)
    config = SentenceKVConfig(**{**SMALL.model_dump(), "warm_tokens": 0})
    with cache_of(model, config).attached(model) as cache:
        logits(model, cache, [ids[:, :50], *singles(ids[:, 50:])])
    report = cache.report()
    assert report.tokens == 60
    assert report.full_bytes == 2 * 2 * 2 * 60 * 16 * 4
    assert report.kinds["entries"] == 2 * 2 * 2 * (32 + 10) * 16 * 4
    assert report.reads == (16,) * 10
    assert report.reads_by_layer == {0: (16,) * 10, 1: (16,) * 10}
    assert report.counts["entries_stored"] == 42
    assert report.counts["entries_discarded"] == 18
    assert report.counts["sentences"] == 1 + int(torch.isin(ids, STOPS).sum())
    assert report.counts["bytes_device"] == report.bytes
    assert report.counts["bytes_host"] == report.counts["bytes_moved"] == 0
    assert 1 <= report.counts["sentences_picked"] <= report.counts["sentences"]
    assert report.as_dict()["entries_read_by_layer"]["1"] == [16] * 10


def test_offload_on_the_cpu_counts_bytes_and_says_that_nothing_moved() -> None:
    model, ids = decoder(), prompt(1, 60)
    pieces = [ids[:, :50], *singles(ids[:, 50:])]
    with cache_of(model).attached(model) as cache:
        plain = logits(model, cache, pieces)
    with cache_of(model, SMALL.model_copy(update={"offload": "host"})).attached(model) as cache:
        assert torch.equal(logits(model, cache, pieces), plain)
    report = cache.report()
    assert report.counts["bytes_host"] == report.kinds["entries on the host"]
    assert report.counts["bytes_moved"] >= report.counts["bytes_host"]
    assert any("nothing moved" in note for note in report.notes)


def test_a_short_prompt_is_kept_whole_and_the_report_says_so() -> None:
    model = decoder()
    with cache_of(model).attached(model) as cache:
        assert cache.report().tokens == 0
        logits(model, cache, [prompt(1, 32)])
    assert cache.report().notes[0] == "nothing was discarded: the prompt is no longer than what is kept"


def test_sliding_layers_of_a_hybrid_keep_their_class() -> None:
    model = decoder("hybrid")
    assert cache_of(model).report().others == {1: "DynamicSlidingWindowLayer", 3: "DynamicSlidingWindowLayer"}


@pytest.mark.filterwarnings("error")
def test_a_sentence_longer_than_a_step_reads_is_warned_of() -> None:
    model, ids = decoder(), torch.full((1, 40), 5)
    message = "a sentence of the prompt has 40 tokens and a step reads 16"
    with cache_of(model).attached(model) as cache, pytest.warns(UserWarning, match=message):
        logits(model, cache, [ids])
    assert any("has 40 tokens" in note for note in cache.report().notes)


def test_fixed_segments_need_no_ids() -> None:
    model, ids = decoder(), prompt(1, 50)
    config = SMALL.model_copy(update={"segments": "fixed"})
    found = []
    for embeds in (False, True):
        with SentenceKVCache(model, config=config).attached(model) as cache, torch.no_grad():
            inputs = {"inputs_embeds": model.get_input_embeddings()(ids)} if embeds else {"input_ids": ids}
            model(**inputs, past_key_values=cache)
            found.append(model(ids[:, :1], past_key_values=cache).logits)
    assert torch.equal(*found)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_model_of_16_bits_keeps_sentence_vectors_in_32(attention: str) -> None:
    model, inputs = decoder("llama", attention).bfloat16(), padded([prompt(1, n, seed=n)[0] for n in (60, 41)])
    with cache_of(model).attached(model) as cache:
        found = logits(model, cache, [inputs["input_ids"], *singles(prompt(2, 12))], inputs["attention_mask"])
    assert found.dtype == torch.bfloat16
    assert bool(found.isfinite().all())
    report = cache.report()
    assert report.kinds["entries"] == 2 * 2 * 2 * 2 * (32 + 12) * 16 * 2
    assert report.ratio_16bit == report.ratio
