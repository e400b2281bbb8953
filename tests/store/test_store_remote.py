"""A store on a server that speaks S3, and what happens when requests fail before or after they were carried out."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from flaky import Fault, Flaky
from stores import contents, keys, object_path, objects, parts, write

from kinfold.errors import StoreError
from kinfold.store import Store, remote

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    """The port of a server on this machine."""
    found = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    found.start()
    yield found.get_host_and_port()[1]
    found.stop()


@pytest.fixture
def proxy(moto: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """A proxy to it, through which fsspec's `s3` goes; nobody but the store tries again."""
    found = Flaky(moto)
    settings = {"endpoint_url": found.url, "key": "k", "secret": "s", "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    yield found
    found.close()


@pytest.fixture
def url(proxy: Flaky) -> str:
    bucket = uuid.uuid4().hex
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/deep/store"


@pytest.fixture
def s3(url: str, tmp_path: Path) -> Store:
    return Store.init(url, cache=tmp_path / "cache")


def always(fault: Fault) -> Any:
    return lambda count, method, path: fault


def often(fault: Fault) -> Any:
    """About every sixth request fails, in no rhythm that a sequence of requests could fall into."""
    failing = set(itertools.accumulate(itertools.islice(itertools.cycle([5, 7, 4, 9, 6, 4, 8]), 1000)))
    return lambda count, method, path: fault if count in failing else ""


def test_all_that_a_store_does(s3: Store, small: list[Path], tmp_path: Path) -> None:
    for path in small[:3]:
        s3.add(path, name="m")
    s3.tag("m@2", "prod")
    assert [(e.version, e.tags) for e in s3.log("m")] == [(3, []), (2, ["prod"]), (1, [])]
    assert contents(s3.get("m:prod", tmp_path / "out")) == contents(small[1])
    assert contents(s3.path("m")) == contents(small[2])
    assert s3.gc(prune_history=True).versions == 1
    assert s3.verify().sound
    assert objects(s3).keys() == {object_path(p).split("/")[-1] for n in (1, 2) for p in whole(small[n])}
    data = parts(small[1] / "model.safetensors")[1]
    write(s3, object_path(data), b"damaged")
    with pytest.raises(StoreError, match="is damaged; it was moved to quarantine; `m@2` needs it"):
        s3.get("m:prod", tmp_path / "again")
    s3.add(small[1], name="n")
    assert s3.verify().sound
    s3.rm("m")
    s3.rm("n")
    s3.gc()
    assert [path.split("/")[0] for path in keys(s3, "")] == ["kinfold-store.json", "refs", "refs", "tags"]


def whole(path: Path) -> list[bytes]:
    return [*parts(path / "model.safetensors"), (path / "config.json").read_bytes()]


def test_writers_of_one_name(s3: Store, small: list[Path], tmp_path: Path) -> None:
    def write_all(paths: list[Path]) -> None:
        own = Store.open(s3.url, cache=tmp_path / "cache")
        versions.extend(own.add(path, name="m").version for path in paths)

    versions: list[int] = []
    threads = [threading.Thread(target=write_all, args=[small[first::2] * 2]) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(versions) == 8
    assert sorted({e.version for e in s3.log("m")}) == sorted(set(versions))
    assert s3.verify().sound


@pytest.mark.parametrize("fault", ["refuse", "cut", "fail after", "cut after"])
def test_requests_often_fail(
    s3: Store, proxy: Flaky, small: list[Path], tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 12)
    proxy.fault = often(fault)
    assert [s3.add(path, name="m").version for path in small[:3]] == [1, 2, 3]
    s3.tag("m@1", "prod")
    s3.rm("m")
    assert s3.add(small[3], name="m").version == 5
    assert contents(s3.get("m", tmp_path / "out")) == contents(small[3])
    s3.gc()
    proxy.fault = always("")
    assert [(e.version, e.kind) for e in s3.log("m")] == [(5, "model"), (4, "removed")]
    assert s3.verify().sound
    assert keys(s3, "leases") == keys(s3, "gc") == {}


@pytest.mark.parametrize("fault", ["fail after", "cut after"])
def test_the_winner_knows_it_even_if_nobody_told_him(s3: Store, proxy: Flaky, small: list[Path], fault: Fault) -> None:
    hit = itertools.count()
    proxy.fault = lambda count, method, path: fault if method == "PUT" and "/refs/" in path and not next(hit) else ""
    assert s3.add(small[0], name="m").version == 1
    assert [e.version for e in s3.log("m")] == [1]


def test_the_loser_knows_it_even_if_nobody_told_him(s3: Store, proxy: Flaky, small: list[Path], tmp_path: Path) -> None:
    """His request is cut; before he tries again another writer is first."""
    other = Store.open(s3.url, cache=tmp_path / "cache")
    hit: list[str] = []

    def fault(count: int, method: str, path: str) -> Fault:
        if method == "PUT" and "/refs/m/" in path and not hit:
            hit.append(path)
            done.append(other.add(small[1], name="m").version)
            return "cut"
        return ""

    done: list[int] = []
    proxy.fault = fault
    assert s3.add(small[0], name="m").version == 2
    assert done == [1]
    assert contents(s3.path("m@1")) == contents(small[1])
    assert contents(s3.path("m@2")) == contents(small[0])


def test_a_push_goes_on_where_it_was(s3: Store, proxy: Flaky, local: Store, small: list[Path]) -> None:
    for number, path in enumerate(small):
        local.add(path, name=f"m{number}")
    before = len(proxy.seen)
    puts = itertools.count()
    proxy.fault = lambda count, method, path: (
        "refuse" if method == "PUT" and "/objects/" in path and next(puts) > 8 else ""
    )
    with pytest.raises(StoreError, match="could not be copied"):
        local.push(s3)
    assert s3.verify().sound
    sent = {path for method, path in proxy.seen[before:] if method == "PUT" and "/objects/" in path}
    had = objects(s3)
    assert len(had) == 9 <= len(sent)
    proxy.fault = always("")
    done = local.push(s3)
    assert done.objects == len(objects(local)) - 9
    assert objects(s3) == objects(local)
    assert s3.names() == local.names()
    assert s3.verify().sound


def test_failures_that_last(s3: Store, proxy: Flaky, small: list[Path]) -> None:
    proxy.fault = always("refuse")
    with pytest.raises(StoreError, match=f"`{s3.url}` cannot be used: "):
        s3.names()
    with pytest.raises(StoreError, match="cannot be used"):
        s3.add(small[0], name="m")
    proxy.fault = always("forbid")
    with pytest.raises(StoreError, match=f"`{s3.url}` refuses access"):
        s3.names()
    with pytest.raises(StoreError, match="refuses access"):
        s3._place.backend.read("kinfold-store.json")
    before = len(proxy.seen)
    with pytest.raises(StoreError, match="refuses access"):
        s3._place.refs.create("m", 1, None)
    assert len(proxy.seen) - before <= 3  # nobody insists
    proxy.fault = lambda count, method, path: "refuse" if method == "PUT" else ""
    with pytest.raises(StoreError, match="cannot be used"):
        s3._place.refs.create("m", 1, None)
    proxy.fault = lambda count, method, path: "forbid" if method == "PUT" else ""
    with pytest.raises(StoreError, match="refuses access"):  # a store that may only be read
        s3.add(small[0], name="m")
    assert s3.names() == {}


def test_files_of_any_length_are_read_in_pieces(s3: Store, proxy: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = s3._place.backend
    monkeypatch.setattr(remote, "BLOCK", 5)
    for length, requests in ((0, 2), (4, 1), (5, 3), (6, 2), (12, 3)):
        backend.put("objects/x", lambda length=length: [b"x" * length])
        before = len(proxy.seen)
        assert backend.read("objects/x") == b"x" * length
        assert len(proxy.seen) - before == requests
    with pytest.raises(FileNotFoundError):
        backend.read("objects/y")


def test_a_bucket_that_is_not_there(proxy: Flaky) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(f"s3://{uuid.uuid4().hex}/store")


def test_the_protocol_has_other_ways_out(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems without times, and without errors at the end of a file."""
    store = Store.init(memory_url)
    backend = store._place.backend
    fs = fsspec.filesystem("memory")
    backend.announce("leases/x", b"0123456789")
    assert isinstance(backend.modified("leases/x"), float)
    for refused in (NotImplementedError(), KeyError("mtime")):
        monkeypatch.setattr(type(fs), "modified", lambda *_, error=refused: (_ for _ in ()).throw(error))
        assert backend.modified("leases/x") is None
    for block in (1, 3, 5, 10, 11):
        monkeypatch.setattr(remote, "BLOCK", block)
        assert backend.read("leases/x") == b"0123456789"
    backend.remove("leases/x")
    backend.remove("leases/x")
