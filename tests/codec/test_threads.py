"""Threads: order, bounds, and the same bits on any number of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from deltas import gauss

from kinfold.codec import threads
from kinfold.codec.lowrank import leading
from kinfold.codec.threads import ordered_map, single_threaded, use_cores


@pytest.fixture(autouse=True)
def _ambient() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend that the machine has this many."""
    return lambda count: monkeypatch.setattr("os.cpu_count", lambda: count)


class Source:
    """Counts what has been drawn of it."""

    def __init__(self, count: int) -> None:
        self.count, self.drawn = count, 0

    def __iter__(self) -> Iterator[int]:
        for item in range(self.count):
            self.drawn += 1
            yield item


def test_restores_the_number_of_threads() -> None:
    with single_threaded():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyError), single_threaded():
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("count", [1, 2, 8])
def test_results_in_order(cores: Callable[[int], None], count: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.01 if item == 0 else 0)
        return item * item

    cores(count)
    assert list(ordered_map(slow_first, range(30))) == [i * i for i in range(30)]
    assert list(ordered_map(slow_first, [])) == []
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("count", [1, 4])
def test_workers_run_on_one_thread(cores: Callable[[int], None], count: int) -> None:
    cores(count)
    assert set(ordered_map(lambda _: torch.get_num_threads(), range(12))) == {1}


@pytest.mark.parametrize("count", [1, 4])
def test_few_results_wait(cores: Callable[[int], None], count: int) -> None:
    cores(count)
    source = Source(100)
    for used, _ in enumerate(ordered_map(abs, source)):
        assert source.drawn - used <= count + 2  # one more than workers in flight, and one looked at
    assert source.drawn == 100


def test_a_share_of_the_cores(cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_share", None)
    cores(8)
    use_cores(1)
    assert torch.get_num_threads() == 1
    source = Source(100)
    for used, _ in enumerate(ordered_map(abs, source)):
        assert source.drawn - used <= 1 + 2


def test_few_values_wait(cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of items of 4 values two may be in flight when 10 values may, whatever the cores."""
    cores(16)
    monkeypatch.setattr(threads, "IN_FLIGHT", 10)
    source = Source(100)
    for used, _ in enumerate(ordered_map(abs, source, values=lambda _: 4)):
        assert source.drawn - used <= 2 + 1
    assert source.drawn == 100
    assert list(ordered_map(abs, Source(5), values=lambda _: 11)) == list(range(5))


@pytest.mark.parametrize("count", [1, 4])
def test_errors_pass_through(cores: Callable[[int], None], count: int) -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        return item

    cores(count)
    results = ordered_map(fail, range(50))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert torch.get_num_threads() == 3


def test_a_consumer_may_stop_early() -> None:
    source = Source(10**9)
    results = ordered_map(abs, source)
    assert next(results) == 0
    results.close()
    assert source.drawn < 1000
    assert torch.get_num_threads() == 3


def test_factors_do_not_depend_on_threads(cores: Callable[[int], None]) -> None:
    deltas = [gauss(150, 120, seed=seed) for seed in range(4)]
    found = []
    for ambient, count in ((1, 1), (8, 1), (8, 4)):
        torch.set_num_threads(ambient)
        cores(count)
        found.append([factors.u for factors in ordered_map(lambda delta: leading(delta, 9), deltas)])
    for u, *others in zip(*found, strict=True):
        assert all(torch.equal(u, other) for other in others)
