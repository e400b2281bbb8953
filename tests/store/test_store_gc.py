"""Collecting garbage: what goes, what stays, and who must be waited for."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from stores import age, contents, digest, keys, object_path, objects, parts, write

from kinfold.errors import StoreError
from kinfold.store import Store, lease


def pieces(path: Path) -> dict[str, bytes]:
    return {digest(p): p for p in [*parts(path / "model.safetensors"), (path / "config.json").read_bytes()]}


def test_removed_names_go_and_shared_objects_stay(store: Store, small: list[Path], tmp_path: Path) -> None:
    store.add(small[0], name="a")
    store.add(small[1], name="b")
    store.rm("a")
    stays, goes = pieces(small[1]), pieces(small[0])
    lost = {hash: data for hash, data in goes.items() if hash not in stays}
    told = store.gc(dry_run=True)
    assert len(objects(store)) == len(stays | goes)
    done = store.gc()
    assert (told.objects, told.bytes) == (done.objects, done.bytes) == (len(lost), sum(map(len, lost.values())))
    assert (done.versions, done.manifests, done.kept_versions) == (1, 1, 1)
    assert done.kept_bytes == sum(map(len, stays.values()))
    assert objects(store) == stays
    assert contents(store.get("b", tmp_path / "out")) == contents(small[1])
    assert [entry.kind for entry in store.log("a")] == ["removed"]
    assert store.add(small[0], name="a").version == 3  # a number never comes again
    assert store.gc().objects == 0


def test_history_stays_unless_it_is_pruned(store: Store, small: list[Path]) -> None:
    for path in small:
        store.add(path, name="m")
    store.tag("m@2", "prod")
    assert (store.gc().versions, store.gc().objects) == (0, 0)
    pruned = store.gc(prune_history=True)
    assert (pruned.versions, pruned.manifests) == (2, 0)  # manifests stay as lineage
    assert objects(store) == pieces(small[1]) | pieces(small[3])
    assert [entry.version for entry in store.log("m")] == [4, 2]
    assert contents(store.path("m:prod")) == contents(small[1])
    assert store.verify().sound


def test_versions_before_a_removal_go_and_the_removal_stays(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    store.rm("m")
    store.add(small[1], name="m")
    store.gc()
    assert [entry.kind for entry in store.log("m")] == ["model", "removed"]
    assert objects(store) == pieces(small[1])


def test_orphans_and_leftovers_go(local: Store, small: list[Path]) -> None:
    local.add(small[0], name="m")
    root = Path(local.url)
    write(local, object_path(b"orphan"), b"orphan")
    (root / "objects" / ".tmp-killed").write_bytes(b"half")
    write(local, "quarantine/" + "0" * 64, b"bad")
    write(local, "manifests/" + "0" * 64 + ".json", b"{}")
    assert local.verify().leftovers == 1
    done = local.gc()
    assert (done.objects, done.bytes, done.manifests, done.leftovers) == (1, 6, 1, 2)
    assert local.verify().leftovers == 0
    assert objects(local) == pieces(small[0])
    assert keys(local, "quarantine") == {}


def test_quarantined_objects_stay_while_they_are_missed(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    hash = next(iter(pieces(small[0])))
    write(store, f"objects/{hash[:2]}/{hash}", b"damaged")
    assert not store.verify().sound
    store.gc()
    assert list(keys(store, "quarantine")) == [f"quarantine/{hash}"]
    store.add(small[0], name="m")  # the same content again mends it
    assert store.verify().sound
    assert store.gc().leftovers == 1


def test_nothing_goes_while_a_manifest_cannot_be_read(store: Store, small: list[Path]) -> None:
    first = store.add(small[0], name="a")
    store.add(small[1], name="b")
    store.rm("b")
    write(store, f"manifests/{first.manifest}.json", b"{}")
    before = keys(store, "objects")
    with pytest.raises(StoreError, match=f"manifest {first.manifest} is damaged"):
        store.gc()
    assert keys(store, "objects") == before
    assert keys(store, "gc") == {}
    store.rm("a")
    store.gc()
    assert objects(store) == {}


def test_a_live_writer_is_waited_for_and_a_dead_one_is_not(
    store: Store, small: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 100.0)
    write(store, "leases/other", json.dumps({"what": "add movie, process 7 on host", "time": 0}).encode())
    with pytest.raises(StoreError, match=r"add movie, process 7 on host is writing to .*leases/other"):
        store.gc(wait=0)
    assert keys(store, "gc") == {}
    age(store, "leases/other", 99.0)
    with pytest.raises(StoreError, match="is writing to"):
        store.gc(wait=0.1)
    age(store, "leases/other", 1.5)
    store.gc(wait=0)
    assert keys(store, "leases") == {}


def test_a_dead_gc_is_cleared_away(store: Store) -> None:
    write(store, "gc/other", b"{}")
    age(store, "gc/other", 1e6)
    store.gc(wait=0)
    assert keys(store, "gc") == {}


def test_a_gc_that_was_stopped_removes_nothing_more(
    store: Store, small: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(small[0], name="m")
    store.rm("m")
    before = keys(store, "objects")
    clock = lease._clock
    original = store._place.refs.numbers

    def slow(name: str | None = None) -> dict[str, list[int]]:
        monkeypatch.setattr(lease, "_clock", lambda: clock() + 400)  # as if it had slept before it marks
        return original(name)

    monkeypatch.setattr(store._place.refs, "numbers", slow)
    with pytest.raises(StoreError, match=r"a gc at .* was stopped for so long that others take it for dead"):
        store.gc()
    assert keys(store, "objects") == before


def test_a_dry_run_writes_nothing(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    store.rm("m")
    before = keys(store, "")
    assert store.gc(dry_run=True).dry_run
    assert keys(store, "") == before


def test_what_cannot_be_listed_is_not_taken_for_empty(
    local: Store, small: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    local.add(small[0], name="m")
    before, scan = objects(local), os.scandir

    def broken(path: str | Path = ".") -> Any:
        if Path(path).name == "refs":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", broken)
        with pytest.raises(StoreError, match="cannot list"):
            local.gc()
    assert objects(local) == before
    assert local.verify().sound


def test_a_damaged_version_harms_its_own_name_alone(local: Store, small: list[Path]) -> None:
    local.add(small[0], name="good")
    local.add(small[1], name="bad")
    write(local, "refs/bad/00000001.json", b"")
    fresh = Store.open(local.url)
    assert contents(fresh.path("good")) == contents(small[0])
    assert {entry.name: entry.kind for entry in fresh.ls()} == {"good": "model", "bad": "damaged"}
    with pytest.raises(StoreError):
        fresh.path("bad")
    with pytest.raises(StoreError):  # what it needs is not known
        fresh.gc()
    fresh.rm("bad")
    fresh.gc()
    assert objects(fresh) == pieces(small[0])
    assert fresh.verify().sound
