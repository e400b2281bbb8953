"""Making and opening stores."""

from __future__ import annotations

import builtins
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from stores import keys, write

from kinfold.errors import MissingExtraError, OutputError, StoreError
from kinfold.store import Store
from kinfold.store.remote import RemoteBackend


def test_a_new_store_says_so(store: Store, tmp_path: Path) -> None:
    (path,) = keys(store, "")
    assert path == "kinfold-store.json"
    assert json.loads(keys(store, "")[path]) == {"format": 1, "id": store.id}
    with pytest.raises(StoreError, match="there is a store at"):
        Store.init(store.url)
    assert Store.open(store.url).id == store.id


def test_where_there_is_none(tmp_path: Path, memory_url: str) -> None:
    for url in (tmp_path, tmp_path / "nothing", memory_url):
        with pytest.raises(StoreError, match="there is no store at"):
            Store.open(url)


def test_a_newer_format_is_refused(store: Store) -> None:
    write(store, "kinfold-store.json", b'{"format": 2, "id": "00"}')
    with pytest.raises(StoreError, match="has format 2, made by a newer Kinfold; this one reads 1") as caught:
        Store.open(store.url)
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"format": "1", "id": "00"}', b'{"format": 1}', b'{"format": 1, "id": "../x"}', b"\xff"],
)
def test_a_damaged_one_is_refused(store: Store, data: bytes) -> None:
    write(store, "kinfold-store.json", data)
    with pytest.raises(StoreError, match=r"kinfold-store.json` is damaged"):
        Store.open(store.url)


def test_the_cache_follows_the_environment(
    local: Store, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.add(small[0], name="m")
    monkeypatch.setenv("KINFOLD_CACHE", str(tmp_path / "root"))
    assert Store.open(local.url).path("m").is_relative_to(tmp_path / "root" / "store" / local.id)
    monkeypatch.delenv("KINFOLD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Store.open(local.url).path("m").is_relative_to(tmp_path / "home" / ".cache" / "kinfold" / "store")


def test_a_backend_that_overwrites_is_refused(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    original = type(fs).pipe_file
    monkeypatch.setattr(type(fs), "pipe_file", lambda self, path, value, mode="overwrite": original(self, path, value))
    with pytest.raises(StoreError, match="two writers could lose each other's work"):
        Store.init(memory_url)
    assert fs.find(memory_url) == []


def test_unknown_places(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="`nonsense://x` is no place for a store"):
        Store.open("nonsense://x")
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] in ("s3fs", "gcsfs"):
            raise ImportError(f"no {name}")
        return original(name, *arguments, **options)

    for module in [name for name in sys.modules if name.split(".")[0] in ("s3fs", "gcsfs")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    for protocol in ("s3", "gs"):
        monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, protocol, raising=False)
    with pytest.raises(MissingExtraError):
        RemoteBackend("s3://bucket/x")
    with pytest.raises(StoreError, match="needs a package that is not installed"):
        RemoteBackend("gs://bucket/x")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        Store.init(tmp_path / "file" / "store")
