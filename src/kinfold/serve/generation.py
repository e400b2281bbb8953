"""Several answers at once, chunk by chunk, and streams of events made of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kinfold.serve.answers import RefusedError, refusal, too_long
from kinfold.serve.metrics import Metrics
from kinfold.serve.request import Chunk, Engine, Ids, Sampling
from kinfold.serve.schema import Input, Sampled

AHEAD = 64  # chunks that wait for a slow client before its answers do


@dataclass
class Job:
    """One request to generate: its prompts, how each answer is drawn, and what was counted.

    Attributes:
        prompts: token ids of each.
        sampling: of each prompt's first answer.
        copies: answers to each prompt; those of a seed differ by it.
        answer_tokens: so far, of all answers.
    """

    engine: Engine
    metrics: Metrics
    request: Request
    model: str
    prompts: Sequence[Ids]
    sampling: Sequence[Sampling]
    copies: int = 1
    answer_tokens: int = field(default=0, init=False)

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def count(self) -> int:
        return len(self.prompts) * self.copies

    async def chunks(self) -> AsyncGenerator[tuple[int, Chunk]]:
        """(number of the answer, chunk) as they come; an error of one ends all. Closing this frees their places."""
        starts = [
            partial(self.engine.generate, self.model, ids, replace(sampling, seed=_nth(sampling.seed, copy)))
            for ids, sampling in zip(self.prompts, self.sampling, strict=True)
            for copy in range(self.copies)
        ]
        first = True
        with self._counted():
            async with aclosing(merged(starts)) as together:
                async for number, chunk in together:
                    if first:
                        self.metrics.first_token(time.perf_counter() - self.request.state.started)
                        first = False
                    self.answer_tokens += chunk.token is not None
                    yield number, chunk

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.answer_tokens:
                self.metrics.tokens(self.model, self.prompt_tokens, self.answer_tokens)

    async def whole(self) -> list[list[Chunk]]:
        """All chunks of each answer."""
        found: list[list[Chunk]] = [[] for _ in range(self.count)]
        async with aclosing(self.chunks()) as chunks:
            async for number, chunk in chunks:
                found[number].append(chunk)
        return found


def _nth(seed: int | None, copy: int) -> int | None:
    """Several answers to one prompt must differ, and be the same the next time."""
    return None if seed is None else (seed + copy) % 2**63


async def merged(starts: Sequence[Callable[[], AsyncIterator[Chunk]]]) -> AsyncGenerator[tuple[int, Chunk]]:
    """Chunks of all answers as they come; each is started in a task of its own, which closes it.

    Raises:
        RuntimeError: an answer ended without saying why.
    """
    queue: asyncio.Queue[tuple[int, Chunk | Exception | None]] = asyncio.Queue(AHEAD)

    async def pump(number: int, start: Callable[[], AsyncIterator[Chunk]]) -> None:
        finish = None
        try:
            async with aclosing(cast(AsyncGenerator[Chunk], start())) as answer:
                async for chunk in answer:
                    finish = chunk.finish
                    await queue.put((number, chunk))
            if finish is None:
                raise RuntimeError("an answer ended without a finish reason")
            await queue.put((number, None))
        except Exception as error:
            await queue.put((number, error))

    tasks = [asyncio.ensure_future(pump(number, start)) for number, start in enumerate(starts)]
    try:
        left = len(tasks)
        while left:
            number, found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield number, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ids_of(engine: Engine, model: str, inputs: Sequence[Input], param: str) -> list[Ids]:
    """Token ids of each input.

    Raises:
        RefusedError: one is empty.
    """
    found: list[Ids] = []
    for item in inputs:
        found.append(await engine.tokenize(model, item) if isinstance(item, str) else item)
    if not all(found):
        raise RefusedError(400, f"`{param}` holds an input without a token", "invalid_value", param)
    return found


def sampling_of(
    body: Sampled, prompt: Ids, engine: Engine, *, most: int | None, default: int | None, logprobs: int | None
) -> Sampling:
    """How the answer to a prompt is drawn; where the client names no length, `default` or what room is left.

    Raises:
        RefusedError: prompt and answer are longer than the model takes.
    """
    room = engine.max_tokens - len(prompt)
    if room < (most or 1):
        raise too_long(len(prompt), most or 1, engine.max_tokens, "messages" if default is None else "prompt")
    return Sampling(
        max_tokens=most or min(default or room, room),
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=tuple(body.stop),
        logprobs=logprobs,
        ignore_eos=body.ignore_eos,
    )


class EventStream(Response):
    """Server-sent events. The first is here before the headers go, so that what is refused has its proper status.

    An error after that is an event of its own, and the end.
    """

    media_type = "text/event-stream"

    def __init__(self, first: str, events: AsyncGenerator[str], job: Job) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events, self._job = first, events, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def event(data: str) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await event(self._first)
            try:
                async for data in self._events:
                    await event(data)
            except Exception as error:
                refused = refusal(error, self._job.engine, self._job.model)
                self._job.request.state.status = refused.status
                await event(json.dumps(refused.body))
            else:
                await event("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def stream(events: AsyncGenerator[str], job: Job) -> EventStream:
    """Begin: whatever the engine refuses is raised here."""
    try:
        return EventStream(await anext(events), events, job)
    except BaseException:
        await events.aclose()
        raise
