"""From store to store."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import contents, keys, object_path, objects, parts, write

from kinfold.errors import StoreError
from kinfold.store import Store
from models import Pair


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "other", cache=tmp_path / "other-cache")


def test_push_sends_current_versions_and_only_what_is_missing(
    store: Store, other: Store, small: list[Path], tmp_path: Path
) -> None:
    store.add(small[0], name="a", note="the first")
    store.add(small[1], name="b")
    other.add(small[2], name="c")
    there = objects(other)
    done = store.push(other)
    sent = {hash: data for hash, data in objects(store).items() if hash not in there}
    assert (done.copied, done.present) == (["a@1", "b@1"], [])
    assert (done.objects, done.bytes) == (len(sent), sum(map(len, sent.values())))
    assert objects(other) == there | objects(store)
    assert {n: h for n, h in other.names().items() if n != "c"} == store.names()
    assert other.log("a")[0].note == "the first"
    for number, name in enumerate("ab"):
        assert contents(other.get(name, tmp_path / f"out-{name}")) == contents(small[number])
    again = store.push(other)
    assert (again.copied, again.present, again.objects) == ([], ["a", "b"], 0)


def test_pull_is_the_same_the_other_way(
    store: Store, other: Store, small: list[Path], pair: Pair, packed: Path
) -> None:
    other.add(pair.base)
    other.add(packed)
    assert store.pull(other, ["movie"]).copied == ["movie@1"]
    assert [(e.name, e.base_name) for e in store.ls()] == [("movie", "base")]
    store.pull(other)
    assert store.info("base").children == ["movie"]


def test_the_target_keeps_its_history(store: Store, other: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    store.push(other)
    other.add(small[1], name="m")
    assert store.push(other).present == ["m"]  # what the target has outgrown does not come back
    store.add(small[2], name="m")
    assert store.push(other).copied == ["m@3"]
    assert [entry.version for entry in other.log("m")] == [3, 2, 1]
    assert other.push(store, ["m@2"]).copied == ["m@3"]
    other.rm("m")
    assert store.push(other, ["m@1"]).copied == ["m@5"]


def test_a_copy_mends_what_the_target_lacks(store: Store, other: Store, small: list[Path]) -> None:
    added = store.add(small[0], name="m")
    store.push(other)
    pieces = parts(small[0] / "model.safetensors")
    write(other, object_path(pieces[1]), b"damaged")
    write(other, object_path(pieces[2]), None)
    write(other, f"manifests/{added.manifest}.json", b"{")
    assert not other.verify().sound
    assert store.push(other).present == ["m"]
    assert other.verify().sound
    assert objects(other) == objects(store)


def test_one_damaged_version_does_not_keep_the_others(store: Store, other: Store, small: list[Path]) -> None:
    store.add(small[0], name="a")
    store.add(small[1], name="b")
    own = next(
        piece for piece in parts(small[0] / "model.safetensors") if piece not in parts(small[1] / "model.safetensors")
    )
    write(store, object_path(own), own[:-1] + b"x")
    with pytest.raises(StoreError, match=r"1 of 2 could not be copied .*; `a`: object .* is damaged"):
        store.push(other)
    assert list(other.names()) == ["b"]
    assert other.verify().sound
    assert store.verify(["b"]).sound


def test_what_cannot_be_copied_is_refused(store: Store, other: Store, small: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="source and target are both"):
        store.push(Store.open(store.url, cache=tmp_path / "x"))
    with pytest.raises(StoreError, match="has no `m`"):
        store.push(other, ["m"])
    store.add(small[0], name="m")
    other.add(small[0], name="M")
    with pytest.raises(StoreError, match="differ only in case"):
        store.push(other)
    assert store.push(other, []).copied == []
    assert list(keys(other, "refs")) == ["refs/M/00000001.json"]
