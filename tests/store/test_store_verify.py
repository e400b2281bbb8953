"""What `verify` and readers say of damage, each kind made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stores import contents, digest, keys, object_path, objects, parts, write

from kinfold.errors import StoreError
from kinfold.store import Store, verify
from kinfold.store.verify import Damage


@pytest.fixture
def two(store: Store, small: list[Path]) -> Store:
    """Versions a@1, b@1 and b@2."""
    store.add(small[0], name="a")
    store.add(small[1], name="b")
    store.add(small[2], name="b")
    return store


def own(small: list[Path], number: int) -> bytes:
    """The tensor that only this model has."""
    others = [piece for n, path in enumerate(small) if n != number for piece in parts(path / "model.safetensors")]
    return next(p for p in parts(small[number] / "model.safetensors") if len(p) > 65536 and p not in others)


def frozen(small: list[Path]) -> bytes:
    return next(p for p in parts(small[0] / "model.safetensors") if len(p) > 65536 and p != own(small, 0))


def test_a_sound_store(two: Store) -> None:
    report = two.verify()
    known = objects(two)
    assert report.sound
    assert (report.versions, report.manifests, report.objects) == (3, 3, len(known))
    assert (report.bytes, report.unused_objects, report.damage) == (sum(map(len, known.values())), 0, [])
    two.rm("a")
    assert two.verify().unused_objects > 0
    assert two.verify(["b"]).versions == 2


def test_a_flipped_byte(two: Store, small: list[Path], tmp_path: Path) -> None:
    data = frozen(small)
    write(two, object_path(data), bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(StoreError, match=rf"object {digest(data)} is damaged; .* quarantine; `a@1` needs it") as caught:
        two.get("a", tmp_path / "out")
    assert "kinfold store verify" in caught.value.hint
    assert "push from another copy" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert list(keys(two, "quarantine")) == [f"quarantine/{digest(data)}"]
    with pytest.raises(StoreError, match=f"object {digest(data)} is missing; `b@1` needs it"):
        two.path("b@1")
    (damage,) = two.verify().damage
    assert (damage.what, damage.name, damage.harms) == ("object", digest(data), ["a@1", "b@1", "b@2"])
    two.add(small[3], name="c")  # brings the tensor back
    assert two.verify().sound
    assert contents(two.get("a", tmp_path / "out")) == contents(small[0])


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_a_truncated_object_is_found_and_replaced_by_the_next_writer(two: Store, small: list[Path], cut: int) -> None:
    data = own(small, 1)
    write(two, object_path(data), data[:cut])
    (damage,) = two.verify().damage
    assert (damage.name, damage.harms) == (digest(data), ["b@1"])
    write(two, object_path(data), data[:cut])
    assert two.add(small[1], name="c").new_objects == 1
    assert two.verify().sound


def test_a_truncated_manifest(two: Store, small: list[Path], tmp_path: Path) -> None:
    hash = two.names()["b"]
    data = keys(two, "manifests")[f"manifests/{hash}.json"]
    write(two, f"manifests/{hash}.json", data[: len(data) // 2])
    with pytest.raises(StoreError, match=f"manifest {hash} is damaged"):
        two.get("b", tmp_path / "out")
    fresh = Store.open(two.url, cache=tmp_path / "fresh")
    assert [(e.name, e.kind) for e in fresh.ls()] == [("a", "model"), ("b", "damaged")]
    (damage,) = fresh.verify().damage
    assert (damage.what, damage.name, damage.harms) == ("manifest", hash, ["b@2"])
    assert fresh.verify(["a"]).sound
    assert fresh.add(small[2], name="b").version == 3  # the same files again
    assert contents(fresh.get("b", tmp_path / "out")) == contents(small[2])


def test_a_missing_manifest(two: Store) -> None:
    hash = two.names()["a"]
    write(two, f"manifests/{hash}.json", None)
    with pytest.raises(StoreError, match=f"manifest {hash} is missing"):
        two.info("a")
    assert [d.name for d in two.verify().damage] == [hash]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"manifest": 3, "created": "", "note": ""}',
        b'{"manifest":"../x","created":"","note":""}',
    ],
)
def test_a_damaged_version(two: Store, data: bytes, tmp_path: Path) -> None:
    write(two, "refs/b/00000002.json", data)
    fresh = Store.open(two.url, cache=tmp_path / "fresh")
    with pytest.raises(StoreError, match=r"`refs/b/00000002.json` of .* is damaged"):
        fresh.get("b", tmp_path / "out")
    (damage,) = fresh.verify().damage
    assert (damage.what, damage.name, damage.harms) == ("version", "b@2", ["b@2"])
    with pytest.raises(StoreError, match="is damaged"):
        fresh.gc()


def test_a_damaged_tag(two: Store) -> None:
    two.tag("a", "prod")
    write(two, "tags/a/prod/00000001.json", b'{"version": "x"}')
    assert [(d.what, d.name) for d in two.verify().damage] == [("tag", "a")]


def test_a_manifest_that_nothing_names(two: Store) -> None:
    write(two, "manifests/" + "0" * 64 + ".json", b"{}")
    assert [(d.what, d.harms) for d in two.verify().damage] == [("manifest", [])]


def test_an_unknown_name(two: Store) -> None:
    with pytest.raises(StoreError, match="has no `c`"):
        two.verify(["c"])


def test_what_is_removed_meanwhile_is_no_damage(
    two: Store, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = verify._look_at_manifests

    def and_collect(*arguments: object, **options: bool) -> None:
        original(*arguments, **options)  # type: ignore[arg-type]
        second = Store.open(two.url, cache=tmp_path / "second")
        second.rm("a")
        second.gc()

    monkeypatch.setattr(verify, "_look_at_manifests", and_collect)
    assert two.verify().sound


def test_damage_is_plain_data() -> None:
    damage = Damage("object", "0", "is missing", ["a@1"])
    assert json.loads(json.dumps(vars(damage))) == vars(damage)
