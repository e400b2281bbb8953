"""Several works side by side: a line for each that runs, and one for all; silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Board(Protocol):
    def running(self, name: str, label: str, done: int, total: int) -> None:
        """The work `name` is at `label`, `done` of `total`."""
        ...

    def finished(self, name: str) -> None:
        """The work `name` needs no line any more."""
        ...


class _Silent:
    def running(self, name: str, label: str, done: int, total: int) -> None: ...

    def finished(self, name: str) -> None: ...


@contextmanager
def board(label: str, count: int) -> Iterator[Board]:
    """Show `count` works on a terminal; what is printed to stderr meanwhile appears above them."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    class Shown:
        def __init__(self, bars: Progress) -> None:
            self.bars, self.lines, self.done = bars, {}, 0
            self.all = bars.add_task(label, total=count, label=f"0/{count}")

        def running(self, name: str, label: str, done: int, total: int) -> None:
            if name not in self.lines:
                self.lines[name] = self.bars.add_task(f"  {name}", label=label)
            self.bars.update(self.lines[name], label=label, completed=done, total=max(total, 1))

        def finished(self, name: str) -> None:
            if name in self.lines:
                self.bars.remove_task(self.lines.pop(name))
            self.done += 1
            self.bars.update(self.all, completed=self.done, label=f"{self.done}/{count}")

    columns = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[label]}"),
        BarColumn(),
        TaskProgressColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Shown(bars)
