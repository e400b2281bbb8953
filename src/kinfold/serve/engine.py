"""The engine behind `kinfold serve`: one base in memory, every variant on top of it, all in one batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from kinfold.errors import BusyError, ServeError, UnknownModelError
from kinfold.serve import alone, probe
from kinfold.serve import sampling as drawing
from kinfold.serve.cache.spec import CacheSpec
from kinfold.serve.catalogue import Catalogue, probe_of
from kinfold.serve.encode import Input
from kinfold.serve.generate import Request
from kinfold.serve.live import LiveModel
from kinfold.serve.request import Chunk, Ids, Sampling, Served
from kinfold.serve.resident import Key, Residents
from kinfold.serve.shelf import Item, Shelf
from kinfold.serve.texts import Tokens
from kinfold.serve.variant import Variant, base_variant, load_variant, open_variant
from kinfold.serve.worker import Worker

MAX_BATCH = 32
QUEUE = 256
CACHE_BYTES = 2 << 30
POLL_SECONDS = 5.0
LOOK_SECONDS = 10.0  # that a request for an unknown name waits for the catalogue

T = TypeVar("T")


class ModelEngine:
    """Answers requests for the base and for every variant of a catalogue; implements `request.Engine`.

    The model runs in one thread, variants are loaded in another, the catalogue is looked at in a third, and in a fourth
    for names that nobody knew.

    Args:
        live: the base.
        catalogue: of variants; it may change while they are served.
        name: the base's name; None takes its directory's.
        max_batch: rows at once.
        max_tokens: of prompt and answer together; None takes what the positions allow.
        cache_bytes: of loaded variants.
        queue: requests that may wait.
        pins: variants that are never evicted.
        poll_seconds: between looks at the catalogue.
        cache: of keys and values, one for each answer; None for an uncompressed one of the whole batch.
    """

    def __init__(
        self,
        live: LiveModel,
        catalogue: Catalogue,
        *,
        name: str | None = None,
        max_batch: int = MAX_BATCH,
        max_tokens: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        queue: int = QUEUE,
        pins: Collection[str] = (),
        poll_seconds: float = POLL_SECONDS,
        cache: CacheSpec | None = None,
    ) -> None:
        if max_batch < 1 or queue < 0 or (max_tokens is not None and max_tokens < 2):
            raise ServeError(
                f"max_batch is {max_batch}, queue {queue}, max_tokens {max_tokens}; at least 1, 0 and 2 are needed"
            )
        self.live = live
        self.base = name or live.base.checkpoint.directory.resolve().name
        self.max_tokens = min(live.limit, max_tokens or live.limit)
        self._base = base_variant(live, self.base)
        self._base.tokens.warm()
        if cache is not None:
            alone.check(live, self._base, cache)
        self._capacity, self._poll_seconds = max_batch + queue, poll_seconds
        self._seats = 0
        self._free = asyncio.Event()
        self._free.set()
        self._requests: set[Request | Input] = set()
        self._closing = False
        self._abilities: dict[Key, tuple[str, ...]] = {}  # of variants that were loaded
        self._residents = Residents(self._load, cache_bytes, live.mixer.forget)
        self._residents.pin(pins)
        self._shelf = Shelf(catalogue, live, self.base, self._shelf_changed)
        self._shelf.refresh()
        self._worker = Worker(live, max_batch, cache)
        self._looker = ThreadPoolExecutor(1, "kinfold-look")  # its own: a slow catalogue is not to fill asyncio's
        self._looking = threading.Lock()
        self._next_look: Future[None] | None = None  # that has not begun
        self._stop = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="kinfold-catalogue", daemon=True)
        self._poller.start()

    @classmethod
    def open(
        cls, base: str | Path, catalogue: Catalogue, *, dtype: str = "auto", device: str = "cpu", **options: Any
    ) -> ModelEngine:
        """Load the base and serve.

        Args:
            base: its model directory.
            catalogue: of variants.
            dtype: `auto`, `bfloat16`, `float16` or `float32`; a CPU without bfloat16 arithmetic is faster in float32.
            device: as torch names it.
            options: of the class.

        Raises:
            CheckpointError, ServeError: the base cannot be loaded or served.
        """
        return cls(LiveModel.open(base, dtype=dtype, device=device), catalogue, **options)

    def models(self) -> list[Served]:
        created = int(self.live.base.checkpoint.directory.stat().st_mtime)
        own = self._base
        served = [Served(self.base, None, own.digest, created, own.abilities, "resident")]
        for item in self._shelf.items.values():
            state, reason = self._residents.state(item.key), self._residents.refused(item.key)
            able = self._abilities.get(item.key, item.abilities)
            served.append(Served(item.name, self.base, item.digest, item.created, able, state, reason))
        return served

    def stats(self) -> dict[str, float]:
        """Counters and gauges by name; bytes and seconds are named so."""
        counts, done = self._residents.counts, self._worker.counts
        running = self._worker.running
        return {
            "running": running,
            "waiting": max(self._seats - running, 0),
            "generated_tokens": done["generated_tokens"],
            "prompt_tokens": done["prompt_tokens"],
            "encoded_tokens": done["encoded_tokens"],
            "cache_hits": counts["hits"],
            "cache_misses": counts["misses"],
            "cache_evictions": counts["evictions"],
            "loads": counts["loads"],
            "load_seconds": self._residents.load_seconds,
            "refused": self._residents.refusals(),
            "resident_variants": len(self._residents.loaded),
            "resident_bytes": self._residents.nbytes,
            "base_bytes": self.live.nbytes,
        }

    async def tokenize(self, model: str, text: str) -> list[int]:
        tokens = await self._tokens(model)
        return await asyncio.to_thread(tokens.encode, text)

    async def chat(self, model: str, messages: Sequence[dict[str, str]]) -> list[int]:
        tokens = await self._tokens(model)
        return await asyncio.to_thread(tokens.chat, messages)

    async def generate(self, model: str, ids: Ids, sampling: Sampling) -> AsyncIterator[Chunk]:
        drawing.check(sampling)
        item = await self._find(model)
        with self._seat(1):
            async with self._held(item, "generate") as variant:
                self._check_ids(ids, self.max_tokens - 1)
                if sampling.stop and not variant.tokens.there:
                    raise ServeError(f"`{model}` has no tokenizer, so no stop text can be looked for")
                room = min(sampling.max_tokens, self.max_tokens - len(ids))
                if room == 0:
                    yield Chunk("", finish="length")
                    return
                answers: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
                request = Request(variant, list(ids), sampling, _delivery(answers.put_nowait), room)
                with self._submitted([request]):
                    while True:
                        chunk = _or_raise(await answers.get())
                        yield chunk
                        if chunk.finish is not None:
                            return

    async def embed(self, model: str, inputs: Sequence[Ids]) -> list[list[float]]:
        return await self._encode(model, inputs, "embed")

    async def classify(self, model: str, inputs: Sequence[Ids]) -> list[dict[str, float]]:
        return await self._encode(model, inputs, "classify")

    async def close(self, *, drain: bool = True) -> None:
        self._closing = True
        if not drain:
            for request in list(self._requests):
                request.cancelled = True
                request.deliver(ServeError("the server is stopping"))
        while self._seats and drain:
            await self._free.wait()
        self._stop.set()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._worker.stop()
        self._residents.close()
        self._poller.join()
        self._looker.shutdown()

    async def _encode(self, model: str, inputs: Sequence[Ids], want: Literal["embed", "classify"]) -> Any:
        item = await self._find(model)
        with self._seat(len(inputs)):
            async with self._held(item, want) as variant:
                for ids in inputs:
                    self._check_ids(ids, self.max_tokens)
                answers: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
                given = [
                    Input(variant, list(ids), want, _delivery(lambda answer, n=n: answers.put_nowait((n, answer))))
                    for n, ids in enumerate(inputs)
                ]
                found: dict[int, Any] = {}
                with self._submitted(given):
                    while len(found) < len(given):
                        number, answer = await answers.get()
                        found[number] = _or_raise(answer)
                return [found[number] for number in range(len(given))]

    async def _tokens(self, model: str) -> Tokens:
        item = await self._find(model)
        async with self._held(item, None) as variant:
            return variant.tokens

    async def _find(self, model: str) -> Item | None:
        """The item of a name, None for the base; the catalogue is looked at again for a name it did not have."""
        if model == self.base:
            return None
        with suppress(UnknownModelError):
            return self._shelf.get(model)
        with suppress(Exception):
            await asyncio.wait_for(_result(self._look()), LOOK_SECONDS)
        return self._shelf.get(model)

    def _look(self) -> Future[None]:
        """A look at the catalogue that begins after now; all who ask before it begins share it."""
        with self._looking:  # else a look could begin before it is noted, and be shared for ever
            if self._next_look is None:
                self._next_look = self._looker.submit(self._begin_look)
            return self._next_look

    def _begin_look(self) -> None:
        with self._looking:
            self._next_look = None
        self._shelf.refresh()

    @asynccontextmanager
    async def _held(self, item: Item | None, ability: str | None) -> AsyncIterator[Variant]:
        """The variant, loaded, and not evicted inside the block."""
        if item is None:
            _require(self._base, ability)
            yield self._base
            return
        future = self._residents.acquire(item.key)
        try:
            variant = await _result(future)
            _require(variant, ability)
            yield variant
        finally:
            self._residents.release(item.key)

    @contextmanager
    def _seat(self, count: int) -> Iterator[None]:
        """Room for so many rows in the batch or the queue.

        Raises:
            BusyError: there is none; ServeError: the server is stopping.
        """
        if self._closing:
            raise ServeError("the server is stopping", hint="send the request to another one")
        if self._seats and self._seats + count > self._capacity:
            raise BusyError(f"{self._seats} requests are running or waiting, at most {self._capacity} may")
        self._seats += count
        self._free.clear()
        try:
            yield
        finally:
            self._seats -= count
            if not self._seats:
                self._free.set()

    @contextmanager
    def _submitted(self, requests: Sequence[Request | Input]) -> Iterator[None]:
        """The requests are the worker's inside the block, and given up when it is left."""
        self._requests.update(requests)
        for request in requests:
            self._worker.submit(request)
        try:
            yield
        finally:
            for request in requests:
                request.cancelled = True
                self._requests.discard(request)

    def _check_ids(self, ids: Ids, limit: int) -> None:
        if not 0 < len(ids) <= limit:
            raise ServeError(f"the prompt has {len(ids)} tokens; 1 to {limit} are allowed")
        worst = max(ids) if min(ids) >= 0 else min(ids)
        if not 0 <= worst < self.live.vocabulary:
            raise ServeError(f"the prompt has token {worst}; the model knows 0 to {self.live.vocabulary - 1}")

    def _load(self, key: Key) -> Variant:
        """Load and try a variant; in the loader's thread."""
        item = self._shelf.by_key(key)
        if item is None:
            raise ServeError(f"`{key[0]}` was replaced or removed before it was loaded", hint="send the request again")
        catalogue = self._shelf.catalogue
        member = open_variant(catalogue.path(item.source), self.live.base, item.name, item.member)
        variant, placement = load_variant(self.live, member, item.digest, self._base)
        stored = probe_of(catalogue, item.source) if item.member is None else None
        probe.check(self.live, variant, member, placement, stored)
        variant.tokens.warm()
        self._abilities[key] = variant.abilities
        return variant

    def _shelf_changed(self) -> None:
        self._residents.retain([item.key for item in self._shelf.items.values()])

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            with suppress(Exception):  # of any backend; what is known goes on
                self._shelf.refresh()


def _require(variant: Variant, ability: str | None) -> None:
    if ability is not None and ability not in variant.abilities:
        raise ServeError(f"`{variant.name}` cannot {ability}; it can {' and '.join(variant.abilities)}")


def _delivery(put: Callable[[Any], None]) -> Callable[[Any], None]:
    """Hands what the worker delivers to the event loop that asked for it."""
    loop = asyncio.get_running_loop()

    def deliver(answer: Any) -> None:
        with suppress(RuntimeError):  # that loop is closed, nobody waits any more
            loop.call_soon_threadsafe(put, answer)

    return deliver


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer  # what is no KinfoldError is our failure, and the app tells it so
    return answer


async def _result(future: Future[T]) -> T:
    """What a future of another thread gives; whoever stops waiting does not cancel it for the others."""
    done = asyncio.Event()
    wake = _delivery(lambda _: done.set())
    future.add_done_callback(wake)
    await done.wait()
    return future.result()
