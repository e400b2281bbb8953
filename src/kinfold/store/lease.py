"""Who is at work: writers and collectors of garbage keep out of each other's way without a lock.

Each first writes a file that says so and then looks for the others', so that of two at least one sees the other.
A file that has not been touched for `LEASE_SECONDS` belongs to the dead. Its age is the difference of two times that
the same backend gave; no two machines' clocks are compared.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from kinfold.errors import KinfoldError, StoreError
from kinfold.store.backend import Backend

LEASE_SECONDS = 600.0
BEATS = 6  # in that time

Folder = Literal["leases", "gc"]


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Presence:
    """A file that says that somebody is at work, kept young by a thread.

    Attributes:
        path: of the file.
    """

    def __init__(self, backend: Backend, folder: Folder, what: str) -> None:
        self.backend, self.folder, self.what = backend, folder, what
        self.path = f"{folder}/{uuid.uuid4().hex}"
        self._end = threading.Event()
        self._lost = False
        self._beaten = _clock()
        backend.announce(self.path, self._content())
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"kinfold {what}")
        self._thread.start()

    def lost(self) -> bool:
        """Whether others may have taken us for dead: the file is gone, or was not touched for too long."""
        self._lost = self._lost or self._late() or self.backend.size(self.path) is None
        return self._lost

    def touch(self) -> None:
        """Make the file young, unless it is gone."""
        begun = _clock()
        self._lost = self._lost or self._late()
        if not self.backend.touch(self.path, self._content()):
            self._lost = True
        self._beaten = begun

    def _late(self) -> bool:
        # half the time: the backend's clock may run faster than ours, and what is decided takes effect later
        return _clock() - self._beaten > LEASE_SECONDS / 2

    def require(self) -> None:
        """Refuse to go on where others may have taken us for dead; asks no more than this machine's clock.

        Raises:
            StoreError: they may.
        """
        if self._lost or self._late():
            raise StoreError(
                f"{self.what} at `{self.backend.url}` was stopped for so long that others take it for dead",
                hint="run the same command again",
            )

    def end(self) -> None:
        self._end.set()
        self._thread.join()
        with suppress(KinfoldError):  # then it dies of age
            self.backend.remove(self.path)

    def others(self, folder: Folder) -> tuple[dict[str, str], list[str]]:
        """Those at work in `folder`: what the living say of themselves, by path; and the paths of the dead."""
        living, dead = {}, []
        paths = [path for path in self.backend.list(folder) if path != self.path]
        if not paths:
            return living, dead
        self.touch()
        mine = self._time(self.path)
        for path in paths:
            try:
                age, says = mine - self._time(path), _read(self.backend, path).get("what", "?")
            except FileNotFoundError:  # done meanwhile
                continue
            if age < LEASE_SECONDS:
                living[path] = says
            else:
                dead.append(path)
        return living, dead

    def _time(self, path: str) -> float:
        when = self.backend.modified(path)
        return _read(self.backend, path).get("time", 0.0) if when is None else when

    def _content(self) -> bytes:
        who = f"{self.what}, process {os.getpid()} on {platform.node() or '?'}"
        return json.dumps({"what": who, "time": time.time()}).encode()

    def _beat(self) -> None:
        while not self._end.wait(LEASE_SECONDS / BEATS):
            with suppress(KinfoldError):  # the next beat may get through
                self.touch()


def _read(backend: Backend, path: str) -> dict:
    try:
        content = json.loads(backend.read(path))
    except ValueError:  # half written
        return {}
    return content if isinstance(content, dict) else {}


class Lease:
    """A writer's presence, which can be taken again after it was lost."""

    def __init__(self, backend: Backend, what: str) -> None:
        self._backend, self._what = backend, what
        self._presence = _enter(backend, what)

    def renewed(self) -> bool:
        """True where the lease had been lost and was taken anew: a gc may have removed what nothing referred to."""
        if not self._presence.lost():
            return False
        self._presence.end()
        self._presence = _enter(self._backend, self._what)
        return True

    def end(self) -> None:
        self._presence.end()


def _enter(backend: Backend, what: str) -> Presence:
    """Wait until no gc is at work.

    Raises:
        StoreError: one of them does not end.
    """
    pause, seen = 0.02, {}
    while True:
        presence = Presence(backend, "leases", what)
        try:
            living, _ = presence.others("gc")
        except BaseException:
            presence.end()
            raise
        if not living:
            return presence
        presence.end()
        seen = {path: seen.get(path, _clock()) for path in living}
        oldest = min(seen, key=seen.__getitem__)
        if _clock() - seen[oldest] > 2 * LEASE_SECONDS:  # a dead one counts as alive for the first half
            raise StoreError(
                f"{living[oldest]} has kept `{backend.url}` for {2 * LEASE_SECONDS:.0f} seconds",
                hint="wait until it is done, then run the same command again",
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


@contextmanager
def writing(backend: Backend, what: str) -> Iterator[Lease]:
    """A lease for the time of a write.

    Raises:
        StoreError: a gc does not end.
    """
    lease = Lease(backend, what)
    try:
        yield lease
    finally:
        lease.end()


@contextmanager
def collecting(backend: Backend, wait: float) -> Iterator[Presence]:
    """The presence of a gc, once all living writers are done; leases of dead ones are removed.

    Raises:
        StoreError: a writer is still at work after `wait` seconds.
    """
    presence = Presence(backend, "gc", "a gc")
    try:
        _wait_for_writers(presence, wait)
        _, dead = presence.others("gc")
        for path in dead:
            backend.remove(path)
        yield presence
    finally:
        presence.end()


def _wait_for_writers(presence: Presence, wait: float) -> None:
    pause, until = 0.02, _clock() + wait
    while True:
        living, dead = presence.others("leases")
        for path in dead:  # removed before anything is judged: one who comes back sees it
            presence.backend.remove(path)
        if not living:
            return
        if _clock() > until:
            path, says = next(iter(living.items()))
            raise StoreError(
                f"{says} is writing to `{presence.backend.url}` ({path})",
                hint=f"run gc again later; a writer that was killed is given up after {LEASE_SECONDS:.0f} seconds",
            )
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
