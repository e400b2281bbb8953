"""Names that become parts of paths on every disk, and references to them."""

from __future__ import annotations

import pytest

from kinfold.errors import StoreError
from kinfold.store.names import Reference, check_name, nearest, parse


@pytest.mark.parametrize("name", ["a", "0", "movie-v1.2_final", "A" * 128, "console", "com10"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name
    assert parse(name) == Reference(name)
    assert parse(f"{name}@12") == Reference(name, version=12)
    assert parse(f"{name}:v1") == Reference(name, tag="v1")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/abs",
        "a/b",
        "a\\b",
        "a\0b",
        "a\n",
        "-a",
        ".a",
        "a.",
        "A" * 129,
        "nul",
        "CON",
        "com1.txt",
        "a b",
        "ä",
        "a\ud800",
        "LPT9",
        "~",
        "a*",
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(StoreError, match="is no name"):
        check_name(name)
    with pytest.raises(StoreError):
        parse(f"good:{name}")
    with pytest.raises(StoreError):
        parse(f"{name}@1")


@pytest.mark.parametrize(
    "ref", ["a@", "a@x", "a@-1", "a@1.5", "a@²", "a@123456789", "a@1@2", "a@1:b", "a:b@1", "a:b:c"]
)
def test_bad_references(ref: str) -> None:
    with pytest.raises(StoreError):
        parse(ref)


def test_nearest_names_the_near_only() -> None:
    assert (
        nearest("movis", ["movie", "news", "move"]) == "; near it are move, movie"
        or nearest("movis", ["movie", "news", "move"]) == "; near it are movie, move"
    )
    assert nearest("zzz", ["movie"]) == ""
