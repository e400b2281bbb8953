"""Files out of a store: resumed, linked, shared by threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from stores import contents, digest, object_path, write

from kinfold.errors import OutputError, StoreError
from kinfold.store import Store, materialise, objects
from models import Pair


def test_a_get_that_was_stopped_goes_on(
    store: Store, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(small[0], name="m")
    fetched: list[str] = []
    original = objects.read

    def stopping(backend: Any, hash: str) -> Any:
        if len(fetched) == 2:
            raise KeyboardInterrupt
        fetched.append(hash)
        return original(backend, hash)

    monkeypatch.setattr(materialise, "side_by_side", lambda function, items, _: map(function, items))
    monkeypatch.setattr(objects, "read", stopping)
    with pytest.raises(KeyboardInterrupt):
        store.get("m", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (part,) = [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    assert part.name == f".out.{store.names()['m'][:16]}.part"
    there = part / "config.json"
    there.write_bytes(b"x" * there.stat().st_size)  # what came is not believed either
    before = list(fetched)
    monkeypatch.setattr(objects, "read", lambda backend, hash: fetched.append(hash) or original(backend, hash))
    assert contents(store.get("m", tmp_path / "out")) == contents(small[0])
    assert [hash for hash in fetched[2:] if hash in before] == [digest((small[0] / "config.json").read_bytes())]
    assert not part.exists()


def test_a_file_with_a_longer_leftover(store: Store, pair: Pair, packed: Path, tmp_path: Path) -> None:
    store.add(packed)
    part = tmp_path / f".out.{store.names()['movie'][:16]}.part"
    part.write_bytes(packed.read_bytes() + b"more")
    assert store.get("movie", tmp_path / "out").read_bytes() == packed.read_bytes()


def test_path_gives_read_only_copies_once(store: Store, small: list[Path], packed: Path) -> None:
    store.add(small[0], name="m")
    store.add(packed)
    for name, source in (("m", small[0]), ("movie", packed)):
        found = store.path(name)
        files = [found] if found.is_file() else [p for p in found.rglob("*") if p.is_file()]
        assert contents(found) == contents(source)
        assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o444"}
        times = [path.stat().st_mtime_ns for path in files]
        assert store.path(name) == found
        assert [path.stat().st_mtime_ns for path in files] == times
    assert store.path("movie").name == packed.name


def test_a_damaged_copy_is_made_again(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    found = store.path("m")
    (found / "config.json").unlink()
    assert contents(store.path("m")) == contents(small[0])
    (found / "config.json").chmod(0o644)
    os.truncate(found / "model.safetensors", 10)
    assert contents(store.path("m")) == contents(small[0])


def test_a_file_of_one_object_is_a_link(local: Store, small: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    local.add(small[0], name="m")
    config = local.path("m") / "config.json"
    there = Path(local.url) / object_path(config.read_bytes())
    assert config.stat().st_ino == there.stat().st_ino
    local.add(small[1], name="n")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    assert contents(local.path("n")) == contents(small[1])
    there.chmod(0o644)


def test_threads_share_one_copy(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(store.path("m"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert contents(found[0]) == contents(small[0])
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]


@pytest.mark.parametrize("name", ["m", "movie"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_who_get_the_same_at_once(
    local: Store, small: list[Path], packed: Path, tmp_path: Path, name: str, overwrite: bool
) -> None:
    source = small[0] if name == "m" else packed
    local.add(source, name=name)
    found: list[Path] = []
    errors: list[Exception] = []
    arrived, go_on = threading.Semaphore(0), threading.Event()
    original, held = objects.read, materialise.held

    def slow(backend: Any, hash: str) -> Any:
        go_on.wait(10)
        return original(backend, hash)

    def arriving(*given: Any, **named: Any) -> Any:
        arrived.release()
        return held(*given, **named)

    def get() -> None:
        try:
            found.append(local.get(name, tmp_path / "out", overwrite=overwrite))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=get) for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "read", slow)
        patch.setattr(materialise, "held", arriving)
        for thread in threads:
            thread.start()
        assert all(arrived.acquire(timeout=30) for _ in threads)  # all have seen that nothing is there
        go_on.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert found == [tmp_path / "out"] * 3
    assert contents(tmp_path / "out") == contents(source)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_a_get_does_not_replace_what_came_meanwhile(
    local: Store, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.add(small[0], name="m")
    original = objects.read

    def beside(backend: Any, hash: str) -> Any:
        (tmp_path / "out").write_text("mine")
        return original(backend, hash)

    monkeypatch.setattr(objects, "read", beside)
    with pytest.raises(OutputError, match="exists"):
        local.get("m", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_what_killed_processes_left_in_the_cache_goes(local: Store, small: list[Path], packed: Path) -> None:
    local.add(small[0], name="m")
    local.add(packed)
    files = local.path("m").parents[1]
    program = (
        "import fcntl, os, sys, time\nos.mkdir(sys.argv[1])\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "open(sys.argv[1] + '/half', 'w').write('x')\nprint(flush=True)\ntime.sleep(60)"
    )
    left = files / ".left.tmp"
    with subprocess.Popen([sys.executable, "-c", program, str(left)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        kept = local.path("movie")
        assert (left / "half").read_text() == "x"  # somebody is at work on it
        process.kill()
    kept.unlink()
    assert contents(local.path("movie")) == contents(packed)
    assert sorted(path.name for path in files.iterdir()) == sorted(local.names().values())


def test_outputs_that_cannot_be(store: Store, small: list[Path], tmp_path: Path) -> None:
    store.add(small[0], name="m")
    with pytest.raises(OutputError, match="does not exist"):
        store.get("m", tmp_path / "no" / "out")
    (tmp_path / "file").touch()
    blocked = Store.open(store.url, cache=tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        blocked.path("m")


def test_a_damaged_object_stops_a_link_too(local: Store, small: list[Path]) -> None:
    local.add(small[0], name="m")
    there = Path(local.url) / object_path((small[0] / "config.json").read_bytes())
    there.chmod(0o644)
    there.write_bytes(b"x")
    with pytest.raises(StoreError, match="is damaged"):
        local.path("m")


@pytest.mark.parametrize("evil", ["{}/victim", "../../../../victim", "a/b", ""])
def test_a_hostile_manifest_names_no_folder(local: Store, small: list[Path], tmp_path: Path, evil: str) -> None:
    local.add(small[0], name="base")
    data = local.manifest("base").model_copy(update={"name": evil.format(tmp_path)}).to_bytes()
    write(local, f"manifests/{digest(data)}.json", data)
    ref = {"manifest": digest(data), "created": "2026-01-01T00:00:00Z", "note": "", "writer": "x"}
    write(local, "refs/base/00000002.json", json.dumps(ref).encode())
    (tmp_path / "victim").mkdir()
    with pytest.raises(StoreError):
        Store.open(local.url).path("base")
    assert list((tmp_path / "victim").iterdir()) == []
