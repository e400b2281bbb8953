"""One BLAS thread a matrix: how many threads a machine has must not change a bit of the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread inside the block, in this thread and those it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """Map over `items` with one single-threaded worker a core; results in order, few in flight.

    At most `workers` + 1 results wait at a time, so memory stays bounded when the consumer is slow.
    """
    count = workers or os.cpu_count() or 1
    with single_threaded():
        if count == 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            source = iter(items)
            waiting: list[Future[R]] = [pool.submit(function, item) for item in islice(source, count + 1)]
            try:
                while waiting:
                    yield waiting.pop(0).result()
                    waiting.extend(pool.submit(function, item) for item in islice(source, 1))
            finally:
                for future in waiting:
                    future.cancel()
