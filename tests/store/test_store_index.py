"""The index is a convenience: any damage to it is mended in silence."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kinfold.store import Store


@pytest.fixture
def read(store: Store, small: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of manifests that are read from now on; the store has two names."""
    store.add(small[0], name="a")
    store.add(small[1], name="b")
    paths: list[str] = []
    backend = store._place.backend
    original = backend.read

    def reading(path: str) -> bytes:
        if path.startswith("manifests/"):
            paths.append(path)
        return original(path)

    monkeypatch.setattr(backend, "read", reading)
    return paths


def test_a_listing_reads_only_new_manifests(store: Store, small: list[Path], read: list[str]) -> None:
    first = store.ls()
    assert len(read) == 2
    assert store.ls() == first
    assert len(read) == 2
    store.add(small[2], name="c")
    read.clear()
    assert [e.name for e in store.ls()] == ["a", "b", "c"]
    assert len(read) == 1


@pytest.mark.parametrize("damage", ["deleted", "garbage", "empty", "row", "columns", "folder"])
def test_a_damaged_index_is_made_again(store: Store, read: list[str], tmp_path: Path, damage: str) -> None:
    first = store.ls()
    path = tmp_path / "cache" / store.id / "index.sqlite"
    if damage in ("row", "columns"):
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE manifests SET summary = '{}'" if damage == "row" else "DROP TABLE manifests")
            if damage == "columns":
                database.execute("CREATE TABLE manifests (x)")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "deleted":
            path.write_bytes(b"no database" * 1000 if damage == "garbage" else b"")
    assert store.ls() == first
    read.clear()
    assert store.ls() == first
    assert len(read) == (2 if damage in ("folder", "columns") else 0)


def test_a_cache_that_cannot_be_written_is_done_without(store: Store, read: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = Store.open(store.url, cache=tmp_path / "file")
    assert blocked.ls() == store.ls()


def test_a_locked_index_is_done_without(
    store: Store, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: original(path, timeout=0))
    expected = store.ls()
    path = tmp_path / "cache" / store.id / "index.sqlite"
    path.unlink()
    with closing(original(path)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert store.ls() == expected
    assert store.ls() == expected


def test_an_index_that_can_be_neither_read_nor_removed(
    store: Store, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache" / store.id).mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache" / store.id / "index.sqlite").write_bytes(b"no database" * 1000)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError("in use")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert [e.name for e in store.ls()] == ["a", "b"]
