"""A progress bar for long work: bytes done, bytes saved, time left; silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

_shown: ContextVar[bool] = ContextVar("shown", default=False)


class Advance(Protocol):
    def __call__(self, done: int, coded: int = 0) -> None:
        """Count `done` input bytes as finished, of which `coded` bytes were written."""
        ...


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Yield a function that moves the bar by some bytes of `total`; nothing is shown off a terminal.

    Work inside other work is silent: only the outermost bar is shown, the one that knows the whole.
    """
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
