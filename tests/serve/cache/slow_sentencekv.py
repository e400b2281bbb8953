"""The selection of `SentenceKVLayer` once more, for one row and one KV head, in lists and Python's own floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def mean(vectors: Sequence[Vector]) -> list[float]:
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


class SlowHead:
    """What is stored: `entries` of (position, sentence, key), in order."""

    def __init__(self, config, stop_ids: set[int]) -> None:
        self.config, self.stop_ids = config, stop_ids
        self.entries: list[tuple[int, int, Vector]] = []
        self.seen = self.running = 0
        self.asked: tuple[int, list[Vector]] = (0, [])

    def _number(self, ids: Sequence[int]) -> list[int]:
        """Sentence of each new token; moves `seen` and the number of the running sentence on."""
        numbers = []
        for token in ids:
            numbers.append(self.running)
            self.seen += 1
            fixed = self.config.segments == "fixed"
            if self.seen % self.config.segment_length == 0 if fixed else token in self.stop_ids:
                self.running += 1
        return numbers

    def prompt(self, ids: Sequence[int], queries: Sequence[Sequence[Vector]], keys: Sequence[Vector]) -> None:
        """`queries` by query head of the group, by token."""
        numbers = self._number(ids)
        for place in self._kept(queries, keys):
            self.entries.append((place, numbers[place], keys[place]))
        self.asked = (self.running, [])

    def _kept(self, queries: Sequence[Sequence[Vector]], keys: Sequence[Vector]) -> list[int]:
        config, total = self.config, len(keys)
        factor = config.keep_factor if config.mode == "sentencekv" else 1.0
        count = total if math.isinf(factor) else min(math.floor(factor * config.tokens_read), total)
        if config.mode == "streaming":
            return sorted({*range(min(config.sink_tokens, count)), *range(total - count + config.sink_tokens, total)})
        first = max(total - config.window, 0)
        weight = [0.0] * total
        for head in queries:
            for place in range(first, total):
                scores = [dot(head[place], key) * SCALING for key in keys[: place + 1]]
                top = max(scores)
                parts = [math.exp(score - top) for score in scores]
                for other, part in enumerate(parts):
                    weight[other] += part / math.fsum(parts)
        reach = config.pool_kernel // 2
        pooled = [max(weight[max(0, i - reach) : min(first, i + reach + 1)]) for i in range(first)]
        best = sorted(range(first), key=lambda i: (-pooled[i], i))[: count - (total - first)]
        return sorted(best) + list(range(first, total))

    def step(self, ids: Sequence[int], queries: Sequence[Sequence[Vector]], keys: Sequence[Vector]) -> list[set[int]]:
        """Positions that each new query attends to."""
        start, closed = self.seen, self.running
        numbers = self._number(ids)
        self.entries += [(start + i, number, key) for i, (number, key) in enumerate(zip(numbers, keys, strict=True))]
        own = [mean([head[i] for head in queries]) for i, number in enumerate(numbers) if number == numbers[-1]]
        before = self.asked[1] if self.asked[0] == numbers[-1] else []
        self.asked = (numbers[-1], before + own)
        return self._read(start, len(ids), closed)

    def _read(self, start: int, new: int, closed: int) -> list[set[int]]:
        config, positions = self.config, [entry[0] for entry in self.entries]
        always_first, always_last = config.sink_tokens, config.recent_tokens
        if config.mode == "streaming":
            always_last = config.tokens_read - config.sink_tokens
        always = {*positions[:always_first], *positions[max(len(positions) - always_last, 0) :]}
        chosen = set(positions)
        if config.mode == "streaming":
            if new == 1:
                chosen = always
            self.entries = [entry for entry in self.entries if entry[0] in always]
        elif config.mode == "sentencekv" and new == 1 and len(self.asked[1]) > config.warm_tokens:
            chosen = self._chosen(always, closed)
        return [{p for p in chosen if p <= start + i} for i in range(new)]

    def _chosen(self, always: set[int], closed: int) -> set[int]:
        vectors = {
            number: mean([key for _, own, key in self.entries if own == number])
            for number in {entry[1] for entry in self.entries}
            if number < closed
        }
        query = mean(self.asked[1])
        order = sorted(vectors, key=lambda number: (-dot(vectors[number], query), number))
        place = {number: i for i, number in enumerate(order)}
        rows = [(p not in always, place.get(number, len(order)), p) for p, number, _ in self.entries]
        return {row[2] for row in sorted(rows)[: self.config.tokens_read]}


SCALING = 0.5
