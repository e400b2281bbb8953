"""What of a store is served on one base, and what is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import kinfold
from kinfold.errors import ServeError, StoreError
from kinfold.serve.catalogue import Catalogue, base_of
from kinfold.store import Store
from models import perturbed, pico, save


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, other (another base), movie and news (packs), both in a family, alien (a pack of the other base)."""
    folder = tmp_path_factory.mktemp("made")
    tensors, others = pico(), pico(seed=9)
    save(folder / "base", tensors)
    save(folder / "other", others)
    for name, origin, seed in (("movie", tensors, 1), ("news", tensors, 2), ("alien", others, 3)):
        save(folder / f"{name}-model", perturbed(origin, seed))
        base = "other" if name == "alien" else "base"
        kinfold.pack(folder / base, folder / f"{name}-model", folder / f"{name}.kin.safetensors", budget="exact")
    members = {name: folder / f"{name}-model" for name in ("movie", "news")}
    kinfold.fold(members, folder / "both.kin.safetensors", base=folder / "base", budget="1/2", dominance="off")
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    found = Store.init(tmp_path / "store", cache=tmp_path / "cache")
    found.add(made / "base")
    for name in ("movie", "both", "alien"):
        found.add(made / f"{name}.kin.safetensors")
    return found


def fingerprint(store: Store) -> str:
    return store.info("base").entry.fingerprint


def test_packs_and_members_of_this_base(store: Store, made: Path) -> None:
    catalogue = Catalogue(store, fingerprint(store))
    found = catalogue.read()
    assert found is not None
    assert list(found) == ["both/movie", "both/news", "movie"]
    movie, both = found["movie"], found["both/news"]
    assert (movie.ref, movie.member, movie.refused) == ("movie@1", None, "")
    assert (both.ref, both.member) == ("both@1", "news")
    assert movie.digest == store.names()["movie"]
    assert both.digest == f"{store.names()['both']}/news"
    assert movie.created > 1_700_000_000
    assert catalogue.path(movie).read_bytes() == (made / "movie.kin.safetensors").read_bytes()
    assert catalogue.path(both).read_bytes() == (made / "both.kin.safetensors").read_bytes()


def test_the_store_is_listed_again_when_it_has_changed(store: Store, made: Path) -> None:
    catalogue = Catalogue(store, fingerprint(store))
    before = catalogue.read()
    assert before is not None
    assert catalogue.read() is None
    store.add(made / "news.kin.safetensors")
    store.add(made / "news.kin.safetensors", name="movie")
    store.rm("both")
    after = catalogue.read()
    assert after is not None
    assert list(after) == ["movie", "news"]
    assert after["movie"].ref == "movie@2"
    assert after["movie"].digest != before["movie"].digest
    assert catalogue.path(before["movie"]).read_bytes() == (made / "movie.kin.safetensors").read_bytes()


def test_a_corrupt_object_is_told_when_it_is_read(store: Store, tmp_path: Path) -> None:
    catalogue = Catalogue(store, fingerprint(store))
    found = catalogue.read() or {}
    hash = max(store.manifest("movie").objects)
    damage(tmp_path / "store" / "objects" / hash[:2] / hash)
    harmed = []
    for name, stored in found.items():
        try:
            catalogue.path(stored)
        except StoreError as error:
            harmed.append((name, str(error)))
    assert [name for name, _ in harmed] == ["movie"]
    assert "quarantine" in harmed[0][1]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)


def test_a_damaged_manifest_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    hash = store.names()["movie"]
    damage(tmp_path / "store" / "manifests" / f"{hash}.json")
    found = Catalogue(Store.open(tmp_path / "store", cache=tmp_path / "new"), fingerprint(store)).read() or {}
    assert "manifest is damaged" in found["movie"].refused
    assert [name for name, stored in found.items() if not stored.refused] == ["both/movie", "both/news"]


def test_the_base_by_name_or_by_directory(store: Store, made: Path, tmp_path: Path) -> None:
    name, directory = base_of(store, "base")
    assert name == "base"
    assert (directory / "model.safetensors").read_bytes() == (made / "base" / "model.safetensors").read_bytes()
    assert base_of(store, made / "other") == ("other", made / "other")
    with pytest.raises(ServeError, match="`movie` is a pack; a base is a model"):
        base_of(store, "movie")
    for nothing in ("nowhere", "../x", str(tmp_path / "none")):
        with pytest.raises(ServeError, match="neither the name of a model in the store nor a model directory"):
            base_of(store, nothing)


def test_a_store_that_is_gone(store: Store, tmp_path: Path) -> None:
    """Not taken for one that was emptied."""
    catalogue = Catalogue(store, fingerprint(store))
    catalogue.read()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreError):
        catalogue.read()
