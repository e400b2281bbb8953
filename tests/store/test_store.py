"""What a user does with a store, on a folder and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file
from stores import contents, digest, keys, objects, parts

import kinfold
from kinfold.errors import CheckpointError, OutputError, PackError, StoreError
from kinfold.store import Store
from models import Pair


def test_every_kind_comes_back_byte_for_byte(
    store: Store, pair: Pair, packed: Path, folded: Path, adapter: Path, tmp_path: Path
) -> None:
    inputs = {"base": pair.base, "movie": packed, "all": folded, "lora": adapter}
    for name, path in inputs.items():
        added = store.add(path, name=name)
        assert (added.name, added.version, added.unchanged) == (name, 1, False)
        assert added.bytes == sum(map(len, contents(path).values()))
        out = store.get(name, tmp_path / f"out-{name}")
        assert contents(out) == contents(path)
        assert contents(store.path(name)) == contents(path)
    assert [(e.name, e.kind, e.base_name) for e in store.ls()] == [
        ("all", "family", "base"),
        ("base", "model", ""),
        ("lora", "adapter", ""),
        ("movie", "pack", "base"),
    ]
    assert kinfold.inspect(store.path("movie")).base == "base"


def test_facts_are_those_of_the_readers(store: Store, pair: Pair, packed: Path, tmp_path: Path) -> None:
    store.add(pair.base)
    store.add(packed)
    info = kinfold.inspect(packed)
    base, movie = store.ls()
    assert base.fingerprint == movie.base_fingerprint == info.base_fingerprint
    assert (movie.name, movie.codec, movie.bytes) == ("movie", info.codec, info.file_bytes)
    assert movie.reference_bytes == info.reference_bytes
    known = store.info("movie")
    kinfold.restore(packed, pair.base, tmp_path / "restored")
    before, wanted, got = (load_file(p / "model.safetensors") for p in (pair.base, pair.variant, tmp_path / "restored"))
    missed = sum(float(((got[name].astype(float) - wanted[name]) ** 2).sum()) for name in wanted)
    moved = sum(float(((wanted[name].astype(float) - before[name]) ** 2).sum()) for name in wanted)
    assert known.report["error"] == pytest.approx((missed / moved) ** 0.5, rel=0.02)
    assert store.info("base").children == ["movie"]
    assert [f.path for f in known.files] == ["movie.kin.safetensors"]
    assert known.files[0].hash == digest(packed.read_bytes())


def test_equal_tensors_are_one_object(store: Store, small: list[Path]) -> None:
    expected: dict[str, bytes] = {}
    for path in small:
        before = set(expected)
        for piece in [*parts(path / "model.safetensors"), (path / "config.json").read_bytes()]:
            expected[digest(piece)] = piece
        added = store.add(path)
        new = set(expected) - before
        assert (added.new_objects, added.new_bytes) == (len(new), sum(len(expected[hash]) for hash in new))
    assert objects(store) == expected


def test_versions_tags_and_lineage(store: Store, small: list[Path]) -> None:
    for number, path in enumerate(small[:3], 1):
        assert store.add(path, name="m", note=f"round {number}").version == number
    store.tag("m@2", "prod")
    assert [(e.version, e.note, e.tags) for e in store.log("m")] == [
        (3, "round 3", []),
        (2, "round 2", ["prod"]),
        (1, "round 1", []),
    ]
    assert store.info("m").parent == "m@2"
    assert store.info("m@1").parent == ""
    assert contents(store.path("m:prod")) == contents(small[1])
    store.tag("m@1", "prod")
    store.tag("m", "prod")
    assert store.info("m:prod").entry.version == 3
    store.add(small[3], name="n", parent="m:prod")
    assert store.info("n").parent == "m@3"
    assert store.manifest("n").parent == store.names()["m"]


def test_the_same_content_is_no_new_version(store: Store, small: list[Path]) -> None:
    first = store.add(small[0], name="m")
    before = keys(store, "")
    again = store.add(small[0], name="m")
    assert again.unchanged
    assert (again.version, again.manifest, again.new_objects) == (1, first.manifest, 0)
    assert keys(store, "") == before
    assert store.add(small[1], name="m").version == 2
    assert store.add(small[0], name="m").version == 3  # it is not current any more


def test_expect_is_compare_and_swap(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m", expect=0)
    with pytest.raises(StoreError, match=r"`m` is at version 1, version 0 was expected"):
        store.add(small[1], name="m", expect=0)
    store.add(small[1], name="m", expect=1)
    with pytest.raises(StoreError, match=r"`new` is not in the store, version 3 was expected"):
        store.add(small[1], name="new", expect=3)
    store.rm("m")
    assert store.add(small[1], name="m", expect=0).version == 4


def test_removed_names_are_gone_until_added_again(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="m")
    store.add(small[1], name="m")
    store.tag("m", "prod")
    store.rm("m")
    assert store.names() == {}
    assert store.ls() == []
    assert [e.kind for e in store.log("m")] == ["removed", "model", "model"]
    for call in (store.info, store.path, store.rm):
        with pytest.raises(StoreError, match="`m` was removed"):
            call("m")
    assert store.add(small[2], name="m").version == 4
    for gone in ("m@1", "m:prod", "m@9"):
        with pytest.raises(StoreError, match=r"is not there; versions of `m` are 4"):
            store.info(gone)


def test_unknown_names_list_the_nearest(store: Store, small: list[Path]) -> None:
    for name in ("movie", "music", "news"):
        store.add(small[0], name=name)
    with pytest.raises(StoreError, match=r"has no `movies`; near it are movie"):
        store.get("movies", "out")
    with pytest.raises(StoreError, match=r"has no `zzz`$"):
        store.log("zzz")
    with pytest.raises(StoreError, match=r"`movie` has no tag `prod`$"):
        store.path("movie:prod")
    store.tag("movie", "test")
    with pytest.raises(StoreError, match=r"`movie` has no tag `prod`; it has test"):
        store.path("movie:prod")
    with pytest.raises(StoreError, match="all versions of a name go together"):
        store.rm("movie@1")


def test_two_names_of_one_spelling_are_refused(store: Store, small: list[Path]) -> None:
    store.add(small[0], name="Movie")
    with pytest.raises(StoreError, match="`movie` and `Movie`, which is there, differ only in case"):
        store.add(small[0], name="movie")


def test_a_base_is_found_by_fingerprint_or_checked(store: Store, pair: Pair, packed: Path, adapter: Path) -> None:
    assert store.add(packed, name="orphan").base_name == "base"  # what the pack itself says
    store.add(pair.base, name="trunk")
    store.add(pair.variant, name="other", base="trunk")
    assert store.add(packed, name="movie").base_name == "trunk"
    assert {e.name: e.base_name for e in store.ls()} == {
        "movie": "trunk",
        "orphan": "trunk",
        "other": "trunk",
        "trunk": "",
    }
    assert store.add(adapter, name="lora", base="trunk").base_name == "trunk"
    with pytest.raises(StoreError, match=r"this pack was made from `base` with fingerprint .*, `other` is "):
        store.add(packed, name="x", base="other")
    with pytest.raises(StoreError, match="`movie` is a pack; a base is a model"):
        store.add(packed, name="x", base="movie")


def test_diff_tells_what_two_versions_share(store: Store, small: list[Path], packed: Path, pair: Pair) -> None:
    store.add(small[0], name="a")
    store.add(small[1], name="b")
    diff = store.diff("a", "b")
    a, b = (
        {digest(x): len(x) for x in [*parts(p / "model.safetensors"), (p / "config.json").read_bytes()]}
        for p in small[:2]
    )
    assert diff.shared_bytes == sum(a[hash] for hash in a if hash in b)
    assert (diff.a_bytes, diff.b_bytes) == tuple(sum(m[h] for h in m if h not in n) for m, n in ((a, b), (b, a)))
    assert [(f.path, f.status) for f in diff.files] == [("config.json", "changed"), ("model.safetensors", "changed")]
    assert list(diff.facts) == ["fingerprint"]
    store.add(pair.base)
    store.add(packed)
    other = store.diff("a", "movie")
    assert {f.status for f in other.files} == {"only in a", "only in b"}
    assert other.facts["codec"] == ("exact", "fold")
    assert store.diff("a", "a").same_files == 2


def test_get_refuses_what_is_there(store: Store, small: list[Path], tmp_path: Path) -> None:
    store.add(small[0], name="m")
    store.add(small[1], name="n")
    out = store.get("m", tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        store.get("n", out)
    store.get("n", out, overwrite=True)
    assert contents(out) == contents(small[1])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_is_no_input_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        store.add(tmp_path / "nothing")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(PackError):
        store.add(tmp_path / "text.txt")
    with pytest.raises(StoreError, match="is no name"):
        store.add(tmp_path / "bad name", name="bad name")
    assert keys(store, "refs") == {}


def test_names_reads_only_what_is_new(
    store: Store, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(small[0], name="a")
    store.add(small[1], name="b")
    names = store.names()
    assert names == {e.name: e.manifest for e in store.ls()}
    read: list[str] = []
    backend = store._place.backend
    original = backend.read
    monkeypatch.setattr(backend, "read", lambda path: read.append(path) or original(path))
    assert store.names() == names
    assert read == []
    Store.open(store.url, cache=tmp_path / "other").add(small[2], name="a")
    assert store.names()["a"] != names["a"]
    assert read == ["refs/a/00000002.json"]
