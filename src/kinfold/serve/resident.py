"""Variants in memory: bounded, the least recently used go first, and those in use never."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field

from kinfold.errors import KinfoldError, ServeError
from kinfold.serve.variant import Variant

Key = tuple[str, str]  # name, digest


@dataclass(eq=False)
class _Entry:
    """A variant that is loaded or asked for; `users` are requests that hold it."""

    future: Future[Variant] = field(default_factory=Future)
    users: int = 0
    nbytes: int = 0

    @property
    def loaded(self) -> bool:
        return self.future.done() and self.future.exception() is None


class Residents:
    """A cache of loaded variants with one loader thread.

    A variant that does not fit beside those in use waits until enough of them are done; while it waits, there is one
    variant more in memory than the budget allows.

    Args:
        load: makes a variant of its key; called in the loader's thread, one at a time.
        budget: bytes of all loaded variants.
        evicted: called with each variant that goes.
    """

    def __init__(
        self, load: Callable[[Key], Variant], budget: int, evicted: Callable[[Variant], None] = lambda variant: None
    ) -> None:
        self._load, self._budget, self._evicted = load, budget, evicted
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # the most recently used last
        self._queue: deque[Key] = deque()
        self._pins: set[str] = set()
        self._refused: dict[Key, str] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._kept: Collection[Key] | None = None
        self.counts: Counter[str] = Counter()
        self.load_seconds = 0.0
        self._thread = threading.Thread(target=self._loader, name="kinfold-loader", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        with self._changed:
            return self._bytes()

    @property
    def loaded(self) -> list[Key]:
        """Keys of the variants in memory, the least recently used first."""
        with self._changed:
            return [key for key, entry in self._entries.items() if entry.loaded]

    def refused(self, key: Key) -> str:
        """Why a variant was refused; empty where it was not."""
        with self._changed:
            return self._refused.get(key, "")

    def refusals(self) -> int:
        """How many variants are refused."""
        with self._changed:
            return len(self._refused)

    def state(self, key: Key) -> str:
        """`stored`, `loading`, `resident` or `refused`."""
        with self._changed:
            entry = self._entries.get(key)
            if key in self._refused:
                return "refused"
            return "stored" if entry is None else "resident" if entry.loaded else "loading"

    def acquire(self, key: Key) -> Future[Variant]:
        """The variant, soon; it stays until `release`, which must follow also when the future fails.

        Raises:
            ServeError: this very variant was refused before.
        """
        with self._changed:
            if key in self._refused:
                raise ServeError(self._refused[key])
            entry = self._entries.get(key)
            self.counts["hits" if entry is not None and entry.loaded else "misses"] += 1
            if entry is None:
                entry = self._entries[key] = _Entry()
                self._queue.append(key)
            self._entries.move_to_end(key)
            entry.users += 1
            self._changed.notify_all()
            return entry.future

    def release(self, key: Key) -> None:
        """One user less."""
        with self._changed:
            entry = self._entries.get(key)
            if entry is not None:
                entry.users -= 1
            self._drop_retired()
            self._changed.notify_all()

    def pin(self, names: Collection[str]) -> None:
        """Variants of these names are never evicted."""
        with self._changed:
            self._pins = set(names)

    def retain(self, keys: Collection[Key]) -> None:
        """Variants that were replaced or removed go as soon as nobody uses them, and refusals are forgotten."""
        with self._changed:
            self._kept = set(keys)
            self._refused = {key: reason for key, reason in self._refused.items() if key in self._kept}
            self._drop_retired()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the loader; whoever waits for a variant is told."""
        with self._changed:
            self._closed = True
            for key in self._queue:
                self._entries.pop(key).future.set_exception(ServeError("the server is stopping"))
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join()

    def _loader(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._queue))
                if self._closed:
                    return
                key = self._queue.popleft()
                if self._entries[key].users == 0:  # nobody waits for it any more
                    del self._entries[key]
                    continue
            started = time.perf_counter()
            try:
                variant = self._load(key)
                self._make_room(key, variant)
            except Exception as error:
                self._refuse(key, error)
                continue
            self.load_seconds += time.perf_counter() - started
            with self._changed:
                self.counts["loads"] += 1
                self._entries[key].nbytes = variant.nbytes
                self._entries[key].future.set_result(variant)

    def _refuse(self, key: Key, error: Exception) -> None:
        told = error if isinstance(error, KinfoldError) else ServeError(f"`{key[0]}` cannot be loaded: {error!r}")
        reason = f"{told}; {told.hint}" if told.hint else str(told)
        with self._changed:
            if not self._closed:
                self._refused[key] = reason
            self._entries.pop(key).future.set_exception(ServeError(reason))

    def _make_room(self, key: Key, variant: Variant) -> None:
        """Evict until the variant fits; waits where only those in use are left.

        Raises:
            ServeError: it alone, or beside the pinned ones, is larger than the budget.
        """
        with self._changed:
            pinned = sum(entry.nbytes for (name, _), entry in self._entries.items() if name in self._pins)
            if variant.nbytes + pinned > self._budget:
                beside = f" beside {pinned} of pinned variants" if pinned else ""
                raise ServeError(
                    f"`{key[0]}` takes {variant.nbytes} bytes in memory{beside}, the cache has {self._budget}",
                    hint=f"raise --variant-memory to {variant.nbytes + pinned} or more",
                )
            while self._bytes() + variant.nbytes > self._budget:
                if self._closed:
                    raise ServeError("the server is stopping")
                if not self._evict_one():
                    self._changed.wait()

    def _evict_one(self) -> bool:
        for key, entry in self._entries.items():
            if entry.loaded and entry.users == 0 and key[0] not in self._pins:
                self._drop(key)
                return True
        return False

    def _drop_retired(self) -> None:
        kept = self._kept
        if kept is not None:
            for key in [k for k, e in self._entries.items() if k not in kept and e.loaded and e.users == 0]:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        self.counts["evictions"] += 1
        self._evicted(self._entries.pop(key).future.result())

    def _bytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())
