"""A progress bar for long work: bytes done, bytes saved, time left; silent when nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

Tell = Callable[[str, int, int], None]  # label, done, total

_shown: ContextVar[bool] = ContextVar("shown", default=False)
_told: ContextVar[Tell | None] = ContextVar("told", default=None)
_PAUSE = 0.1  # seconds between two tellings; nobody reads faster


class Advance(Protocol):
    def __call__(self, done: int, coded: int = 0) -> None:
        """Count `done` input bytes as finished, of which `coded` bytes were written."""
        ...


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Yield a function that moves the bar by some bytes of `total`; nothing is shown off a terminal.

    Work inside other work is silent: only the outermost bar is shown, the one that knows the whole.
    """
    tell = _told.get()
    if not _shown.get() and tell is not None:
        with _claimed():
            yield _telling(tell, label, total)
        return
    if _shown.get() or not sys.stderr.isatty():
        yield lambda done, coded=0: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[saved]}"),
        TimeRemainingColumn(),
    )
    with _claimed(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, saved="")
        saved = 0

        def advance(done: int, coded: int = 0) -> None:
            nonlocal saved
            saved += done - coded if coded else 0
            bar.update(task, advance=done, saved=f"{size(saved)} saved" if saved else "")

        yield advance


def _telling(tell: Tell, label: str, total: int) -> Advance:
    passed, last = 0, time.monotonic()
    tell(label, 0, total)

    def advance(done: int, coded: int = 0) -> None:
        nonlocal passed, last
        passed += done
        if time.monotonic() - last > _PAUSE:
            last = time.monotonic()
            tell(label, passed, total)

    return advance


@contextmanager
def told(tell: Tell) -> Iterator[None]:
    """Inside, no bar is shown; `tell(label, done, total)` hears of the work, a few times a second."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


@contextmanager
def _claimed() -> Iterator[None]:
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def size(count: float) -> str:
    """Bytes for people: `83.2 kB`, decimal units, three significant digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.3g} {unit}"
