"""Quarantine, and transfers side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from stores import digest, keys, write

from kinfold.store import Store, threads
from kinfold.store.objects import DamagedError, object_path, quarantine, read
from kinfold.store.threads import side_by_side


def test_one_bad_reading_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, hash = store._place.backend, digest(b"good")
    write(store, object_path(hash), b"good")
    original = backend.blocks
    readings = iter([b"bad"])

    def flaky(path: str) -> Iterator[bytes]:
        first = next(readings, None)
        return iter([first]) if first else original(path)

    monkeypatch.setattr(backend, "blocks", flaky)
    with pytest.raises(DamagedError, match=r"is damaged$"):
        list(read(backend, hash))
    assert keys(store, "quarantine") == {}
    assert b"".join(read(backend, hash)) == b"good"


def test_a_good_object_that_came_meanwhile_is_put_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, hash = store._place.backend, digest(b"good")
    write(store, object_path(hash), b"bad")
    original = backend.move

    def move(path: str, to: str) -> None:
        if path.startswith("objects"):
            write(store, path, b"good")
        original(path, to)

    monkeypatch.setattr(backend, "move", move)
    assert not quarantine(backend, hash)
    assert keys(store, "objects") == {object_path(hash): b"good"}


def test_side_by_side_bounds_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IN_FLIGHT", 10)
    lock, held, most = threading.Lock(), [0], [0]

    def work(size: int) -> int:
        with lock:
            held[0] += size
            most[0] = max(most[0], held[0])
        with lock:
            held[0] -= size
        return size

    sizes = [4, 4, 4, 12, 1, 1, 1, 10]
    assert sorted(side_by_side(work, sizes, lambda size: size)) == sorted(sizes)
    assert most[0] <= 12


def test_the_first_error_stops_the_rest() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        list(side_by_side(work, range(1000), lambda _: 0))
    assert len(begun) < 1000
