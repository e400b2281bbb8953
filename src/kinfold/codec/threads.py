"""One BLAS thread a matrix: how many threads a machine has must not change a bit of the result."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 1 << 25  # tensor entries begun and not yet consumed: 128 MiB in float32
_END: Any = object()
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_share: int | None = None  # cores this process may use; None is all of them


def use_cores(count: int) -> None:
    """Leave the other cores to other processes: torch, and every `ordered_map` from now on, use `count`."""
    global _share
    _share = count
    torch.set_num_threads(count)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread inside the block, in this thread and those it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def return_large_buffers() -> None:
    """Have glibc give buffers of 1 MiB and more back to the system when they are freed.

    By default it moves that limit up to 32 MiB as it goes, and the heap, scattered by tensors of many sizes,
    then holds three times the memory in use (1220 against 421 MB for a 2048-wide model). Elsewhere: nothing.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], *, values: Callable[[T], int] = lambda _: 0
) -> Iterator[R]:
    """Map over `items` with one single-threaded worker a core (see `use_cores`); results in order, few in flight.

    At most one item more than there are workers is begun and not yet consumed, and no more items than
    together hold `IN_FLIGHT` values, but always one: memory is bounded by the largest tensor, not by the
    number of cores.

    Args:
        function: called in a worker thread.
        items: taken one by one, in the caller's thread.
        values: how many tensor entries an item holds.
    """
    return_large_buffers()
    workers = _share or os.cpu_count() or 1
    with single_threaded(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[tuple[Future[R], int]] = deque()
        source = iter(items)
        upcoming = next(source, _END)
        try:
            while waiting or upcoming is not _END:
                while upcoming is not _END and len(waiting) <= workers:
                    size = values(upcoming)
                    if waiting and size + sum(held for _, held in waiting) > IN_FLIGHT:
                        break
                    waiting.append((pool.submit(function, upcoming), size))
                    upcoming = next(source, _END)
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
