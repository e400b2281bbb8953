"""`serve`: what it refuses before it begins, and what it says when it does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import kinfold
from kinfold.errors import MissingExtraError, ServeError, StoreError
from kinfold.serve import server
from kinfold.serve.http import listen
from kinfold.serve.server import Serving, serve
from kinfold.store import Store
from models import Pair


@pytest.fixture(scope="module")
def store(llama_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    kinfold.pack(llama_pair.base, llama_pair.variant, folder / "movie.kin.safetensors", codec="exact")
    made = Store.init(folder / "store", cache=folder / "cache")
    made.add(llama_pair.base, name="base")
    made.add(folder / "movie.kin.safetensors")
    return folder / "store"


class BegunError(Exception):
    """Ends `serve` as soon as it is ready."""


def begin(store: Path, **options: Any) -> Serving:
    """What it says once its address is open; it is ended there."""
    found: list[Serving] = []

    def ready(serving: Serving) -> None:
        found.append(serving)
        raise BegunError

    with pytest.raises(BegunError):
        serve(store, store_cache=store.parent / "cache", port=0, ready=ready, **options)
    return found[0]


def test_what_it_says(store: Path) -> None:
    before = threading.active_count()
    found = begin(store, base="base", pin=["movie"])
    assert found.url.startswith("http://127.0.0.1:")
    assert (found.base, found.models, found.warning) == ("base", ["base", "movie"], "")
    assert "generate" in found.abilities
    assert threading.active_count() == before  # whatever ends it, the engine's threads end too


def test_a_directory_as_base(store: Path, llama_pair: Pair) -> None:
    found = begin(store, base=llama_pair.base)
    assert found.models == ["base", "movie"]


def test_an_open_address_without_a_key_is_warned_of(store: Path) -> None:
    assert "asks for no API key" in begin(store, base="base", host="0.0.0.0").warning
    assert begin(store, base="base", host="0.0.0.0", api_key="k").warning == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant_memory": "much"}, "variant_memory is `much`; a size such as"),
        ({"variant_memory": "1/2"}, "variant_memory is `1/2`; a size such as"),
        ({"max_body": 0}, "max_body is `0`"),
        ({"refresh": 0}, "refresh is 0 seconds"),
        ({"grace": -1}, "and grace -1; above 0, and 0 or more, are allowed"),
        ({"base": "nobody"}, "neither the name of a model in the store nor a model directory"),
        ({"base": "movie"}, "`movie` is a pack; a base is a model"),
        ({"pin": ["movies"]}, "there is no variant `movies` of this base to pin"),
        ({"api_key": ""}, "the API key is empty"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"dtype": "int3"}, "`int3` is no dtype to serve in"),
    ],
)
def test_options_that_are_refused(store: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ServeError, match=message):
        serve(store, **{"base": "base", "port": 0, "store_cache": store.parent / "cache"} | options)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        serve(tmp_path / "none", base="base", port=0)


def test_a_port_that_is_taken(store: Path) -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(ServeError, match="cannot listen"):
        serve(store, base="base", port=sock.getsockname()[1], store_cache=store.parent / "cache")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra(store: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(MissingExtraError, match=f"`{package}`"):
        serve(store, base="base")
