from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch

from kinfold.errors import ServeError
from kinfold.serve.delta import Dense
from kinfold.serve.resident import Key, Residents
from kinfold.serve.texts import Tokens
from kinfold.serve.variant import Variant

SECONDS = 10


class Loads:
    """A loader of variants of 100 bytes; those called `big` take 1000, those called `bad` fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, key: Key) -> Variant:
        self.asked.append(key[0])
        assert self.gate.wait(SECONDS)
        if key[0] == "bad":
            raise ServeError("it is bad", hint="mend it")
        if key[0] == "broken":
            raise ZeroDivisionError
        size = 250 if key[0] == "big" else 25
        change = Dense(torch.zeros(size))
        return Variant(*key, Tokens(key[0], {}, {}), frozenset(), ("embed",), {"m": {"weight": change}})


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def residents(loads: Loads) -> Iterator[Residents]:
    made = Residents(loads, 250)
    yield made
    loads.gate.set()
    made.close()


def use(residents: Residents, name: str) -> Variant:
    """Acquire, and give back at once."""
    variant = residents.acquire((name, "1")).result(SECONDS)
    residents.release((name, "1"))
    return variant


def test_the_least_recently_used_goes_first(residents: Residents, loads: Loads) -> None:
    for name in ("a", "b", "a", "c"):
        assert use(residents, name).name == name
    assert residents.loaded == [("a", "1"), ("c", "1")]
    assert residents.nbytes == 200
    assert (residents.counts["hits"], residents.counts["misses"], residents.counts["evictions"]) == (1, 3, 1)
    assert loads.asked == ["a", "b", "c"]


def test_pinned_variants_stay(residents: Residents) -> None:
    residents.pin(["a"])
    for name in ("a", "b", "c"):
        use(residents, name)
    assert residents.loaded == [("a", "1"), ("c", "1")]


def test_many_who_ask_load_it_once(residents: Residents, loads: Loads) -> None:
    loads.gate.clear()
    futures = [residents.acquire(("a", "1")) for _ in range(5)]
    assert residents.state(("a", "1")) == "loading"
    loads.gate.set()
    assert len({id(future.result(SECONDS)) for future in futures}) == 1
    assert loads.asked == ["a"]
    assert residents.state(("a", "1")) == "resident"


def test_what_is_in_use_is_not_evicted_and_the_next_waits_for_room(residents: Residents) -> None:
    for name in ("a", "b"):
        residents.acquire((name, "1")).result(SECONDS)
    waiting: Future[Variant] = residents.acquire(("c", "1"))
    with pytest.raises(TimeoutError):
        waiting.result(0.1)
    assert residents.loaded == [("a", "1"), ("b", "1")]
    residents.release(("b", "1"))
    assert waiting.result(SECONDS).name == "c"
    assert residents.loaded == [("a", "1"), ("c", "1")]


def test_refusals_are_remembered_until_the_digest_changes(residents: Residents, loads: Loads) -> None:
    with pytest.raises(ServeError, match="it is bad; mend it"):
        use(residents, "bad")
    with pytest.raises(ServeError, match="it is bad"):
        residents.acquire(("bad", "1"))
    assert loads.asked == ["bad"]
    assert (residents.state(("bad", "1")), residents.refusals()) == ("refused", 1)
    assert residents.refused(("bad", "1")) == "it is bad; mend it"
    residents.retain([("bad", "2")])
    assert residents.state(("bad", "1")) == "stored"
    with pytest.raises(ServeError):
        residents.acquire(("bad", "2")).result(SECONDS)
    assert loads.asked == ["bad", "bad"]


def test_other_errors_are_told_as_refusals(residents: Residents) -> None:
    with pytest.raises(ServeError, match=r"`broken` cannot be loaded: ZeroDivisionError\(\)"):
        use(residents, "broken")


def test_one_that_never_fits_is_refused(residents: Residents) -> None:
    with pytest.raises(
        ServeError, match="`big` takes 1000 bytes in memory, the cache has 250; raise --variant-memory to 1000 "
    ):
        use(residents, "big")
    residents.pin(["a", "b"])
    use(residents, "a")
    use(residents, "b")
    with pytest.raises(ServeError, match="beside 200 of pinned"):
        use(residents, "c")


def test_replaced_variants_go_when_nobody_uses_them(residents: Residents) -> None:
    old = residents.acquire(("a", "1")).result(SECONDS)
    residents.retain([("a", "2")])
    assert residents.loaded == [("a", "1")]
    new = residents.acquire(("a", "2")).result(SECONDS)
    assert new is not old
    residents.release(("a", "1"))
    assert residents.loaded == [("a", "2")]


def test_what_nobody_waits_for_is_not_loaded(residents: Residents, loads: Loads) -> None:
    loads.gate.clear()
    first = residents.acquire(("a", "1"))
    residents.acquire(("b", "1"))
    residents.release(("b", "1"))
    loads.gate.set()
    first.result(SECONDS)
    use(residents, "c")
    assert loads.asked == ["a", "c"]


def test_the_mixer_is_told_of_evictions() -> None:
    gone: list[str] = []
    residents = Residents(Loads(), 100, lambda variant: gone.append(variant.name))
    use(residents, "a")
    use(residents, "b")
    assert gone == ["a"]
    residents.close()


def test_close_tells_those_who_wait(loads: Loads) -> None:
    residents = Residents(loads, 100)
    residents.acquire(("a", "1")).result(SECONDS)
    blocked = residents.acquire(("b", "1"))  # no room
    while loads.asked != ["a", "b"]:
        time.sleep(0.01)
    queued = residents.acquire(("c", "1"))
    residents.close()
    for future in (blocked, queued):
        with pytest.raises(ServeError, match="stopping"):
            future.result(SECONDS)
