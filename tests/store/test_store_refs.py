"""Versions and tags while others write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import keys, write

from kinfold.errors import StoreError
from kinfold.store import Store


def test_a_version_that_was_pruned_meanwhile(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    with pytest.raises(StoreError, match=r"`m@7` is not in "):
        store._place.refs.read("m", 7)


def test_a_removal_meets_a_new_version(store: Store, small: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(small[0], name="m")
    refs, first = store._place.refs, [True]
    original = refs.create

    def create(name: str, number: int, manifest: str | None, note: str = "") -> bool:
        if manifest is None and first.pop() if first else False:
            store.add(small[1], name="m")
        return original(name, number, manifest, note)

    monkeypatch.setattr(refs, "create", create)
    store.rm("m")
    assert [(e.version, e.kind) for e in store.log("m")] == [(3, "removed"), (2, "model"), (1, "model")]


def test_two_set_one_tag(store: Store, small: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(small[0], name="m")
    store.add(small[1], name="m")
    backend, first = store._place.backend, [True]
    original = backend.create

    def create(path: str, data: bytes) -> bool:
        if path.startswith("tags") and first.pop() if first else False:
            original(path, b'{"version": 1}')
        return original(path, data)

    monkeypatch.setattr(backend, "create", create)
    store.tag("m@2", "prod")
    assert store.info("m:prod").entry.version == 2
    assert len(keys(store, "tags")) == 2


def test_a_tag_waits_for_no_version_that_a_gc_pruned(
    store: Store, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken for dead before it has written the tag; the version goes; it says so."""
    store.add(small[0], name="m")
    store.add(small[1], name="m")
    refs = store._place.refs
    original = refs.set_tag

    def set_tag(*arguments: Any) -> None:
        monkeypatch.undo()
        for path in keys(store, "leases"):
            write(store, path, None)
        Store.open(store.url, cache=tmp_path / "second").gc(prune_history=True)
        original(*arguments)

    monkeypatch.setattr(refs, "set_tag", set_tag)
    with pytest.raises(StoreError, match="`m@1` is not there"):
        store.tag("m@1", "prod")


def test_other_files_are_no_versions(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    for path in (
        "refs/m/README",
        "refs/m/1.json",
        "refs/00000001.json",
        "refs/a/b/00000001.json",
        "tags/m/00000001.json",
    ):
        write(store, path, b"{}")
    assert list(store.names()) == ["m"]
    assert store.info("m").entry.tags == []
    assert [e.version for e in store.log("m")] == [1]


def test_lineage_that_leads_out_of_the_store(store: Store, small: list[Path], tmp_path: Path) -> None:
    other = Store.init(tmp_path / "other", cache=tmp_path / "cache2")
    other.add(small[0], name="m")
    first = other.names()["m"]
    other.add(small[1], name="m")
    other.push(store)
    assert store.info("m").parent == first
    assert store.gc().manifests == 0
