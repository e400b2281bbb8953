"""Several answers at once: all chunks, in the order of each, and nothing left open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial

import pytest

from kinfold.errors import BusyError
from kinfold.serve import generation
from kinfold.serve.generation import merged
from kinfold.serve.request import Chunk


class Answers:
    """Makes answers of numbered chunks and counts those that are open, and the chunks made."""

    def __init__(self) -> None:
        self.open = self.made = 0

    async def answer(self, count: int, error: Exception | None = None) -> AsyncIterator[Chunk]:
        self.open += 1
        try:
            for number in range(count):
                await asyncio.sleep(0)
                self.made += 1
                last = number == count - 1 and error is None
                yield Chunk(str(number), number, finish="length" if last else None)
            if error is not None:
                raise error
        finally:
            self.open -= 1

    def starts(self, *counts: int) -> list[Callable[[], AsyncIterator[Chunk]]]:
        return [partial(self.answer, count) for count in counts]


def refused() -> AsyncIterator[Chunk]:
    raise BusyError("full")


def test_all_chunks_of_all_answers() -> None:
    async def main() -> dict[int, list[str]]:
        found: dict[int, list[str]] = {0: [], 1: [], 2: []}
        async for number, chunk in merged(Answers().starts(5, 1, 200)):
            found[number].append(chunk.text)
        return found

    assert asyncio.run(main()) == {0: list("01234"), 1: ["0"], 2: [str(n) for n in range(200)]}


@pytest.mark.parametrize("late", [False, True])
def test_an_error_ends_all(late: bool) -> None:
    answers = Answers()
    failing = partial(answers.answer, 3, BusyError("full")) if late else refused

    async def main() -> None:
        async with aclosing(merged([*answers.starts(10_000, 10_000), failing])) as chunks:
            async for _ in chunks:
                pass

    with pytest.raises(BusyError):
        asyncio.run(main())
    assert answers.open == 0


def test_closing_it_closes_all() -> None:
    answers = Answers()

    async def main() -> int:
        async with aclosing(merged(answers.starts(10_000, 10_000, 10_000))) as chunks:
            await anext(chunks)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
    assert answers.open == 0


def test_a_slow_reader_holds_its_answers_back() -> None:
    answers = Answers()

    async def main() -> None:
        async with aclosing(merged(answers.starts(10_000, 10_000))) as chunks:
            await anext(chunks)
            for _ in range(1000):
                await asyncio.sleep(0)

    asyncio.run(main())
    assert answers.made <= generation.AHEAD + 4


def test_an_answer_without_an_end() -> None:
    async def main() -> None:
        async for _ in merged([partial(Answers().answer, 0)]):
            pass

    with pytest.raises(RuntimeError, match="without a finish reason"):
        asyncio.run(main())
