"""An engine without a model, and servers in threads to ask it over HTTP."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kinfold.errors import BusyError, ServeError, UnknownModelError
from kinfold.serve.app import create_app
from kinfold.serve.http import listen, server_of, url_of
from kinfold.serve.request import Chunk, Ids, Sampling, Served

ALL = ("generate", "embed", "classify")


def words(model: str, ids: Sequence[int], count: int) -> list[str]:
    """What the fake answers: `movie3-0 movie3-1 ...` to a prompt of three tokens."""
    return [f"{model}{len(ids)}-{number} " for number in range(count)]


class FakeEngine:
    """Tokens are bytes; answers are `words`, one every `delay` seconds, `slots` at once, `queue` more may wait.

    `boom` fails after two words, `crash` at once, `stump` never says that it ends; `broken` is refused; `mute` cannot
    generate.
    """

    base = "base"

    def __init__(self, *, slots: int = 64, queue: int = 256, delay: float = 0.0, max_tokens: int = 200) -> None:
        self.max_tokens, self._slots, self._queue, self._delay = max_tokens, slots, queue, delay
        self.running, self.waiting, self.closed_early, self.finished = 0, 0, 0, 0
        self.most_running = 0
        self.seen: list[tuple[str, list[int], Sampling]] = []
        self.chats: list[list[dict[str, str]]] = []
        self.closed: list[bool] = []
        self.tasks = 0

    def models(self) -> list[Served]:
        with suppress(RuntimeError):  # outside of a loop there are none
            self.tasks = len(asyncio.all_tasks())
        names = ["movie", "tweets", "boom", "crash", "stump"]
        variants = [Served(name, "base", f"d-{name}", 1_700_000_000, ALL, "stored") for name in names]
        return [
            Served("base", None, "d-base", 1_700_000_000, ALL, "resident"),
            *variants,
            Served("broken", "base", "d-broken", 1_700_000_000, ALL, "refused", "its object is corrupt"),
            Served("mute", "base", "d-mute", 1_700_000_000, ("embed",), "stored"),
        ]

    def _check(self, model: str, ability: str | None = None) -> None:
        found = {served.name: served for served in self.models()}.get(model)
        if found is None:
            raise UnknownModelError(f"no model `{model}`")
        if found.state == "refused":
            raise ServeError(found.reason)
        if ability is not None and ability not in found.abilities:
            raise ServeError(f"`{model}` cannot {ability}", hint="ask another")
        if model == "crash":
            raise RuntimeError("secret detail")

    async def tokenize(self, model: str, text: str) -> list[int]:
        self._check(model)
        return list(text.encode())

    async def chat(self, model: str, messages: Sequence[dict[str, str]]) -> list[int]:
        self._check(model)
        self.chats.append(list(messages))
        return list("".join(f"{message['role']}:{message['content']}\n" for message in messages).encode())

    async def generate(self, model: str, ids: Ids, sampling: Sampling) -> AsyncIterator[Chunk]:
        self._check(model, "generate")
        if self.running >= self._slots and self.waiting >= self._queue:
            raise BusyError(f"{self.waiting} requests wait already")
        self.seen.append((model, list(ids), sampling))
        self.waiting += 1
        try:
            while self.running >= self._slots:
                await asyncio.sleep(0.001)
        finally:
            self.waiting -= 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        done = False
        try:
            for number, word in enumerate(words(model, ids, sampling.max_tokens)):
                await asyncio.sleep(self._delay)
                if model == "boom" and number == 2:
                    raise RuntimeError("secret detail")
                last = number == sampling.max_tokens - 1 and model != "stump"
                yield self._chunk(word, number, sampling, "length" if last else None)
            done = True
        finally:
            self.running -= 1
            self.closed_early += not done
            self.finished += done

    def _chunk(self, word: str, number: int, sampling: Sampling, finish: str | None) -> Chunk:
        if sampling.logprobs is None:
            return Chunk(word, number, finish=finish)
        likeliest = [(word, -0.5), ("other", -1.5), ("never", -math.inf)]
        return Chunk(word, number, -0.5, tuple(likeliest[: sampling.logprobs]), finish, word)

    async def embed(self, model: str, inputs: Sequence[Ids]) -> list[list[float]]:
        self._check(model, "embed")
        return [[float(len(ids)), 0.25, -1.0] for ids in inputs]

    async def classify(self, model: str, inputs: Sequence[Ids]) -> list[dict[str, float]]:
        self._check(model, "classify")
        return [{"bad": 0.25, "good": 0.75} for _ in inputs]

    def stats(self) -> dict[str, float]:
        return {"running": self.running, "waiting": self.waiting, "cache_hits": 3}

    async def close(self, *, drain: bool = True) -> None:
        self.closed.append(drain)


@contextmanager
def served(engine: Any, *, grace: float = 5.0, **options: Any) -> Iterator[str]:
    """The URL of a server in a thread, on any free port."""
    sock = listen("127.0.0.1", 0)
    server = server_of(create_app(engine, **options), grace=grace)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield url_of(sock)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def soon(happens: Any, seconds: float = 10.0) -> bool:
    """Whether something becomes true before long."""
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.005)
    return happens()
