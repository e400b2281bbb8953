"""What of a store is served on one base, and what is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import kinfold
from kinfold.errors import ServeError, StoreError
from kinfold.serve import stored
from kinfold.serve.stored import StoredVariants, base_of
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


@pytest.fixture(autouse=True)
def _always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "LOOK_SECONDS", 0.0)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    found = Store.init(tmp_path / "store", cache=tmp_path / "cache")
    found.add(made / "base")
    for name in ("movie", "both", "alien"):
        found.add(made / f"{name}.kin.safetensors")
    return found


def fingerprint(store: Store) -> str:
    return store.info("base").entry.fingerprint


def test_what_belongs_to_this_base(store: Store, made: Path) -> None:
    catalogue = StoredVariants(store, fingerprint(store))
    names = store.names()
    assert catalogue.names() == {"both": names["both"], "movie": names["movie"]}
    for name in ("both", "movie"):
        assert catalogue.path(name).read_bytes() == (made / f"{name}.kin.safetensors").read_bytes()


def test_the_store_is_listed_again_when_it_has_changed(store: Store, made: Path) -> None:
    catalogue = StoredVariants(store, fingerprint(store))
    before = catalogue.names()
    store.add(made / "news.kin.safetensors")
    store.add(made / "news.kin.safetensors", name="movie")
    store.rm("both")
    assert catalogue.path("movie").read_bytes() == (made / "movie.kin.safetensors").read_bytes()  # as it was listed
    after = catalogue.names()
    assert list(after) == ["movie", "news"]
    assert after["movie"] != before["movie"]
    assert catalogue.path("movie").read_bytes() == (made / "news.kin.safetensors").read_bytes()
    for name in ("both", "base", "alien", "../x", "/etc/passwd", "movie@1"):
        with pytest.raises(StoreError, match="there is no variant"):
            catalogue.path(name)


def test_it_is_not_listed_at_every_question(store: Store, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "LOOK_SECONDS", 1000.0)
    catalogue = StoredVariants(store, fingerprint(store))
    before = catalogue.names()
    store.add(made / "news.kin.safetensors")
    assert catalogue.names() == before
    monkeypatch.setattr(stored, "LOOK_SECONDS", 0.0)
    assert "news" in catalogue.names()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)


def test_a_corrupt_object_harms_one_variant_until_it_is_mended(
    store: Store, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = StoredVariants(store, fingerprint(store))
    before = catalogue.names()
    hash = max(store.manifest("movie").objects)
    damage(tmp_path / "store" / "objects" / hash[:2] / hash)
    with pytest.raises(StoreError, match="quarantine"):
        catalogue.path("movie")
    catalogue.path("both")
    monkeypatch.setattr(stored, "RETRY_SECONDS", 0.0)
    assert catalogue.names() == before  # looked at again, and still damaged
    store.add(made / "movie.kin.safetensors")
    assert store.names()["movie"] == before["movie"]
    after = catalogue.names()
    assert after["movie"] != before["movie"]  # so that an engine forgets that it refused it
    assert after == catalogue.names()
    assert catalogue.path("movie").read_bytes() == (made / "movie.kin.safetensors").read_bytes()


def test_a_damaged_manifest_is_told_when_it_is_read(store: Store, tmp_path: Path) -> None:
    hash = store.names()["movie"]
    damage(tmp_path / "store" / "manifests" / f"{hash}.json")
    catalogue = StoredVariants(Store.open(tmp_path / "store", cache=tmp_path / "new"), fingerprint(store))
    assert list(catalogue.names()) == ["both", "movie"]
    with pytest.raises(StoreError, match="manifest"):
        catalogue.path("movie")


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
    catalogue = StoredVariants(store, fingerprint(store))
    catalogue.names()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreError):
        catalogue.names()
