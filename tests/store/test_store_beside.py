"""Threads that write, read, collect and verify one store at the same time, and random histories against a model."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import contents, model

from kinfold.errors import StoreError
from kinfold.store import Store


def together(*functions: Callable[[], Any]) -> None:
    """Run them in threads; the first error is raised here."""
    errors: list[BaseException] = []

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return [model(folder / f"m{seed}", seed, size=17_000) for seed in range(6)]


def test_writers_of_one_name_lose_nothing(store: Store, inputs: list[Path], tmp_path: Path) -> None:
    told: dict[int, Path] = {}

    def write(paths: list[Path]) -> None:
        own = Store.open(store.url, cache=tmp_path / "cache")
        for path in paths:
            told[own.add(path, name="m").version] = path

    together(*(lambda first=first: write(inputs[first::3]) for first in range(3)))
    assert sorted(told) == [1, 2, 3, 4, 5, 6]
    for version, path in told.items():
        assert contents(store.path(f"m@{version}")) == contents(path)


def test_of_two_who_expect_the_same_version_one_wins(store: Store, inputs: list[Path], tmp_path: Path) -> None:
    lost: list[str] = []

    def write(path: Path) -> None:
        try:
            Store.open(store.url, cache=tmp_path / "cache").add(path, name="m", expect=0)
        except StoreError as error:
            lost.append(str(error))

    together(*(lambda path=path: write(path) for path in inputs[:3]))
    assert len(lost) == 2
    assert all("version 0 was expected: somebody else was first" in one for one in lost)
    assert [entry.version for entry in store.log("m")] == [1]


def test_a_collector_beside_writers_and_readers(store: Store, inputs: list[Path], tmp_path: Path) -> None:
    done = threading.Event()
    store.add(inputs[0], name="stays")

    def write() -> None:
        try:
            own = Store.open(store.url, cache=tmp_path / "w")
            for number in range(12):
                own.add(inputs[number % 6], name="m")
                assert contents(own.path("m")) == contents(inputs[number % 6])
                if number % 4 == 3:
                    own.rm("m")
        finally:
            done.set()

    def collect() -> None:
        own = Store.open(store.url, cache=tmp_path / "c")
        while not done.wait(0.03):
            own.gc(prune_history=True)

    def look() -> None:
        own = Store.open(store.url, cache=tmp_path / "l")
        while not done.wait(0.03):
            assert own.verify().sound
            assert own.names()["stays"]

    together(write, collect, look)
    store.gc()
    assert objects_of(store) == store.verify().objects
    assert store.verify().unused_objects == 0
    assert contents(store.path("stays")) == contents(inputs[0])


def objects_of(store: Store) -> int:
    return len(store.manifest("stays").objects)


NAMES = st.sampled_from(["a", "b"])
STEPS = st.one_of(
    st.tuples(st.just("add"), NAMES, st.integers(0, 5)),
    st.tuples(st.just("rm"), NAMES),
    st.tuples(st.just("tag"), NAMES, st.sampled_from(["x", "y"])),
    st.tuples(st.just("gc"), st.booleans()),
    st.tuples(st.just("push")),
)


class Model:
    """What a store must hold, as plain dicts."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[int, int]] = {}  # input by version, of what can be had
        self.next: dict[str, int] = {}
        self.tags: dict[str, dict[str, int]] = {}

    def add(self, name: str, number: int) -> int:
        live = self.versions.setdefault(name, {})
        if live and live[max(live)] == number:
            return max(live)
        self.next[name] = self.next.get(name, 0) + 1
        live[self.next[name]] = number
        return self.next[name]

    def rm(self, name: str) -> bool:
        if not self.versions.get(name):
            return False
        self.versions[name] = {}
        self.next[name] += 1
        return True

    def prune(self) -> None:
        for name, live in self.versions.items():
            tagged = self.tags.get(name, {}).values()
            self.versions[name] = {v: n for v, n in live.items() if v == max(live) or v in tagged}


@pytest.mark.parametrize("kind", ["folder", "memory"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=12))
def test_any_history_keeps_what_was_acknowledged(
    kind: str, inputs: list[Path], tmp_path: Path, steps: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path / uuid.uuid4().hex
    urls = [folder / name if kind == "folder" else f"memory://{folder.name}/{name}" for name in ("store", "target")]
    folder.mkdir()
    store, target = (Store.init(url, cache=folder / "cache") for url in urls)
    known, pushed = Model(), {}
    for step, *arguments in steps:
        if step == "add":
            name, number = arguments
            assert store.add(inputs[number], name=name).version == known.add(name, number)
        elif step == "rm":
            if known.rm(arguments[0]):
                store.rm(arguments[0])
            else:
                with pytest.raises(StoreError):
                    store.rm(arguments[0])
        elif step == "tag" and known.versions.get(arguments[0]):
            name, tag = arguments
            known.tags.setdefault(name, {})[tag] = max(known.versions[name])
            store.tag(name, tag)
        elif step == "gc":
            store.gc(prune_history=arguments[0])
            if arguments[0]:
                known.prune()
        elif step == "push":
            store.push(target)
            pushed |= {name: live[max(live)] for name, live in known.versions.items() if live}
        assert store.verify().sound
    assert target.verify().sound
    for name, live in known.versions.items():
        assert [e.version for e in store.log(name) if e.kind == "model" and e.version in live] == sorted(live)[::-1]
        for version, number in live.items():
            assert contents(store.get(f"{name}@{version}", folder / f"{name}-{version}")) == contents(inputs[number])
    assert store.names().keys() == {name for name, live in known.versions.items() if live}
    for name, number in pushed.items():
        assert contents(target.path(name)) == contents(inputs[number])
