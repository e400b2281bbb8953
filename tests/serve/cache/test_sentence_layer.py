from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow_sentencekv import SCALING, SlowHead

from kinfold.serve.cache.attach import Inputs
from kinfold.serve.cache.sentence_config import SentenceKVConfig
from kinfold.serve.cache.sentence_layer import SentenceKVLayer

STOPS = torch.tensor([1, 2])
HEADS, GROUP, SIZE = 2, 2, 4


@dataclass
class Pass:
    """New tokens: ids and valid (B, n), query (B, heads, n, d), key (B, H, n, d)."""

    ids: torch.Tensor
    valid: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    positions: torch.Tensor = field(init=False)


@dataclass
class Talk:
    """A prompt with rows padded on the left, and later passes."""

    passes: list[Pass]

    def __post_init__(self) -> None:
        seen = torch.zeros(len(self.passes[0].ids), dtype=torch.int64)
        for one in self.passes:
            one.positions = seen[:, None] + one.valid.cumsum(1) - 1
            seen = seen + one.valid.sum(1)


def talk(lengths: list[int], later: list[int], *, stops: float = 0.2, seed: int = 0, pads: bool = False) -> Talk:
    """Random tokens: `lengths` of the rows of the prompt, `later` the tokens of each later pass."""
    generator = torch.Generator().manual_seed(seed)
    rows, found = len(lengths), []
    for number, new in enumerate([max(lengths), *later]):
        ids = torch.randint(3, 9, (rows, new), generator=generator)
        stop = torch.rand(rows, new, generator=generator) < stops
        ids[stop] = torch.randint(1, 3, (rows, new), generator=generator)[stop]
        valid = torch.ones(rows, new, dtype=torch.bool)
        if number == 0:
            valid = torch.arange(new) >= new - torch.tensor(lengths)[:, None]
        elif pads and new > 1:
            valid = torch.arange(new) >= torch.randint(0, new, (rows, 1), generator=generator)
        ids[~valid] = 1  # padding that looks like a stop
        query = torch.randn(rows, HEADS * GROUP, new, SIZE, generator=generator)
        key = torch.randn(rows, HEADS, new, SIZE, generator=generator)
        found.append(Pass(ids, valid, query, key))
    return Talk(found)


def run(layer: SentenceKVLayer, one: Pass) -> list[list[list[set[int]]]]:
    """Give a pass to the layer: positions attended to, by row, KV head and new token; padding gives empty sets."""
    value = one.positions[:, None, :, None].expand(-1, HEADS, -1, SIZE).float()
    layer.inputs = Inputs(one.ids, None if bool(one.valid.all()) else one.valid)
    key, value = layer.update(one.key, value)
    key, value, mask = layer.read(one.query, key, value, None, SCALING)
    layer.after()
    layer.done()
    rows, new = one.ids.shape
    see = torch.ones(rows, HEADS * GROUP, new, key.shape[2], dtype=torch.bool) if mask is None else mask == 0
    assert torch.equal(see[:, 0::GROUP], see[:, 1::GROUP])  # a group reads the same entries
    see = see[:, ::GROUP]
    return [
        [
            [{int(p) for p in value[b, h, see[b, h, i], 0]} if one.valid[b, i] else set() for i in range(new)]
            for h in range(HEADS)
        ]
        for b in range(rows)
    ]


def expected(config: SentenceKVConfig, whole: Talk, row: int, head: int) -> list[list[set[int]]]:
    """Of the passes after the prompt, what the row alone reads, by the slow selection."""
    slow, found = SlowHead(config, set(STOPS.tolist())), []
    for number, one in enumerate(whole.passes):
        real = one.valid[row]
        queries = one.query[row, head * GROUP : (head + 1) * GROUP][:, real].double().tolist()
        parts = one.ids[row, real].tolist(), queries, one.key[row, head, real].double().tolist()
        if number:
            found.append([set()] * int((~real).sum()) + slow.step(*parts))
        else:
            slow.prompt(*parts)
    return found


configs = st.builds(
    lambda sink, recent, more, **rest: SentenceKVConfig(
        sink_tokens=sink, recent_tokens=recent, tokens_read=sink + recent + more, **rest
    ),
    sink=st.integers(0, 3),
    recent=st.integers(0, 4),
    more=st.integers(5, 16),
    keep_factor=st.sampled_from([1.0, 1.5, 3.0, math.inf]),
    window=st.integers(1, 5),
    pool_kernel=st.sampled_from([1, 3, 7]),
    warm_tokens=st.integers(0, 2),
    segments=st.sampled_from(["sentence", "fixed"]),
    segment_length=st.integers(1, 5),
    mode=st.sampled_from(["sentencekv", "sentencekv", "snapkv", "streaming"]),
)
talks = st.builds(
    talk,
    st.lists(st.integers(1, 36), min_size=1, max_size=3),
    st.lists(st.sampled_from([1, 1, 1, 4]), min_size=1, max_size=8),
    stops=st.sampled_from([0.0, 0.15, 0.4]),
    seed=st.integers(0, 2**31),
    pads=st.booleans(),
)


@settings(deadline=None, max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configs, talks)
def test_every_row_of_a_padded_batch_reads_what_the_slow_selection_of_it_alone_reads(config, whole: Talk) -> None:
    layer = SentenceKVLayer(config, STOPS)
    found = [run(layer, one) for one in whole.passes][1:]
    for row in range(len(whole.passes[0].ids)):
        for head in range(HEADS):
            assert [step[row][head] for step in found] == expected(config, whole, row, head)


@pytest.mark.parametrize("warm", [0, 1, 3])
def test_a_step_reads_exactly_tokens_read_unless_it_is_warm(warm: int) -> None:
    config = SentenceKVConfig(tokens_read=12, keep_factor=2, window=4, sink_tokens=2, recent_tokens=3, warm_tokens=warm)
    layer, whole, since = SentenceKVLayer(config, STOPS), talk([40], [1] * 30, seed=3), 0
    run(layer, whole.passes[0])
    assert layer.dropped == 40 - 24
    for number, one in enumerate(whole.passes[1:], 1):
        since += 1
        read = run(layer, one)[0]
        wanted = 24 + number if since <= warm else 12
        assert [len(read[head][0]) for head in range(HEADS)] == [wanted] * HEADS
        assert layer.reads[-1].entries == wanted
        since = 0 if int(one.ids[0, 0]) in STOPS else since


def test_sinks_and_recent_are_in_every_selection() -> None:
    config = SentenceKVConfig(
        tokens_read=12, keep_factor=math.inf, window=4, sink_tokens=3, recent_tokens=5, warm_tokens=0
    )
    layer, whole = SentenceKVLayer(config, STOPS), talk([40, 25], [1] * 20, seed=4)
    run(layer, whole.passes[0])
    for one in whole.passes[1:]:
        for row, heads in enumerate(run(layer, one)):
            now = int(one.positions[row, 0])
            assert all({0, 1, 2, *range(now - 4, now + 1)} <= read[0] for read in heads)


def test_picked_sentences_are_those_that_more_than_the_ends_are_read_of() -> None:
    config = SentenceKVConfig(
        tokens_read=6, keep_factor=math.inf, window=1, sink_tokens=1, recent_tokens=1, warm_tokens=0
    )
    layer, whole = SentenceKVLayer(config, STOPS), talk([12], [1], stops=0.0, seed=0)
    whole.passes[0].ids[0, 2::3] = 1  # four sentences of three
    run(layer, whole.passes[0])
    read = run(layer, whole.passes[1])[0]
    picked = [{p // 3 for p in head[0] - {0, 12}} for head in read]
    assert layer.reads[-1].sentences == sum(len(p) for p in picked) / HEADS


@settings(deadline=None, max_examples=40, derandomize=True)
@given(configs.filter(lambda config: config.mode == "sentencekv"), talks)
def test_sentence_vectors_are_means_of_the_stored_keys(config, whole: Talk) -> None:
    layer = SentenceKVLayer(config, STOPS)
    for one in whole.passes:
        run(layer, one)
        index = layer.index
        assert index is not None
        assert layer.keys is not None
        assert layer.valid is not None
        means, ended = index.means(), index.ended()
        for row in range(len(one.ids)):
            for head in range(HEADS):
                for number in range(means.shape[2]):
                    of_it = (index.number[row, head] == number) & layer.valid[row, head]
                    there = bool(of_it.any()) and number < int(index.running[row])
                    assert bool(ended[row, head, number]) == there
                    if there:
                        mean = layer.keys[row, head, of_it].double().mean(0)
                        torch.testing.assert_close(means[row, head, number].double(), mean, atol=1e-5, rtol=0)


def test_bytes_are_those_of_every_tensor_that_the_layer_holds() -> None:
    whole = talk([30, 20], [1, 4, 1], seed=5)
    for options in ({}, {"offload": "host"}, {"mode": "snapkv"}, {"mode": "streaming"}):
        layer = SentenceKVLayer(
            SentenceKVConfig(tokens_read=9, window=4, sink_tokens=2, recent_tokens=2, **options), STOPS
        )
        for one in whole.passes:
            run(layer, one)
        found = tensors(layer, {id(layer.stop_ids)})
        assert sum(t.numel() * t.element_size() for _, t in layer.held()) == sum(
            t.numel() * t.element_size() for t in found.values()
        )


def tensors(thing: Any, seen: set[int]) -> dict[int, torch.Tensor]:
    """Every tensor that can be reached from the attributes."""
    found: dict[int, torch.Tensor] = {}
    for value in thing if isinstance(thing, tuple | list) else vars(thing).values():
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found[id(value)] = value
        elif isinstance(value, tuple | list) or type(value).__module__.startswith("kinfold"):
            found |= tensors(value, seen) if hasattr(value, "__dict__") or isinstance(value, tuple | list) else {}
    return found


def test_rows_move_with_all_of_their_state() -> None:
    """Rows 2, 0, 0 of a batch go on as a batch that was so from the start."""
    order = torch.tensor([2, 0, 0])
    for options in ({}, {"offload": "host"}, {"mode": "streaming"}, {"segments": "fixed"}):
        config = SentenceKVConfig(tokens_read=9, window=4, sink_tokens=2, recent_tokens=2, **options)
        whole = talk([30, 20, 26], [1, 1, 3, 1, 1, 1], seed=6)
        one, other = (SentenceKVLayer(config, STOPS) for _ in range(2))
        moved = [Pass(step.ids[order], step.valid[order], step.query[order], step.key[order]) for step in whole.passes]
        for step, after in zip(whole.passes, moved, strict=True):
            after.positions = step.positions[order]
        for step, after in zip(whole.passes[:4], moved, strict=False):
            run(one, step)
            run(other, after)
        one.reorder_cache(order)
        for after in moved[4:]:
            assert run(one, after) == run(other, after)


def test_a_reset_layer_is_a_new_one() -> None:
    config = SentenceKVConfig(tokens_read=9, window=4, sink_tokens=2, recent_tokens=2)
    whole = talk([30], [1, 1, 3, 1], seed=7)
    layer = SentenceKVLayer(config, STOPS)
    first = [run(layer, one) for one in whole.passes]
    layer.reset()
    assert layer.seen == 0
    assert not list(layer.held())
    assert [run(layer, one) for one in whole.passes] == first
