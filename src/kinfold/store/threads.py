"""Several transfers side by side, with a bound on the bytes they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 8  # transfers wait for disks and networks, not for cores
IN_FLIGHT = 256 << 20  # bytes


def side_by_side(function: Callable[[T], R], items: Iterable[T], nbytes: Callable[[T], int]) -> Iterator[R]:
    """Results as they come; the first error stops what has not begun.

    Args:
        function: called in one of eight threads.
        items: taken one by one.
        nbytes: what an item may hold in memory; together at most 256 MiB, but always one.
    """
    running: dict[Future[R], int] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                size = nbytes(item)
                while running and (len(running) >= 2 * WORKERS or sum(running.values()) + size > IN_FLIGHT):
                    yield from _finished(running)
                running[pool.submit(function, item)] = size
            while running:
                yield from _finished(running)
        finally:
            for future in running:
                future.cancel()


def _finished(running: dict[Future[R], int]) -> Iterator[R]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        del running[future]
        yield future.result()
