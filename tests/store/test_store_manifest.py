"""The manifest: canonical bytes, and what no reader believes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stores import digest

from kinfold.errors import StoreError
from kinfold.store.manifest import Manifest, hash_of, parse_manifest

A, B = "a" * 64, "b" * 64


def content(**changes: Any) -> dict[str, Any]:
    file = {
        "path": "m.kin.safetensors",
        "size": 5,
        "hash": A,
        "segments": [{"hash": A, "size": 2}, {"hash": B, "size": 3}],
    }
    return {
        "format": 1,
        "kind": "pack",
        "name": "m",
        "files": [file],
        "base": {"fingerprint": B, "name": "base"},
        "parent": None,
        "codec": "fold",
        "fingerprint": A,
        "reference_bytes": 10,
        "report": {"error": 0.25, "naïve": [1, -0.0, 1e22, None]},
        "created_by": "kinfold",
        "created": "2026-01-01T00:00:00+00:00",
    } | changes


def canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_bytes_are_canonical_and_come_back() -> None:
    data = canonical(content())
    manifest = parse_manifest(data, digest(data))
    assert manifest.to_bytes() == data
    assert hash_of(data) == digest(data)
    assert manifest.bytes == 5
    assert manifest.objects == {A: 2, B: 3}


def test_same_content_looks_at_files_kind_and_base() -> None:
    one = Manifest.model_validate_json(canonical(content()))
    same = content(name="n", parent=B, created="2027", report={}, base={"fingerprint": B, "name": "renamed"})
    assert one.same_content(Manifest.model_validate_json(canonical(same)))
    for other in (content(kind="family"), content(base=None), content(files=[content()["files"][0] | {"hash": B}])):
        assert not one.same_content(Manifest.model_validate_json(canonical(other)))


def test_a_damaged_one_is_refused() -> None:
    data = canonical(content())
    for bad in (data[:-1], data[: len(data) // 2], b"", data.replace(b"fold", b"bold")):
        with pytest.raises(StoreError, match=f"manifest {digest(data)} is damaged"):
            parse_manifest(bad, digest(data))


def test_a_newer_format_is_refused() -> None:
    data = canonical(content(format=2, novelty=True))
    with pytest.raises(StoreError, match="has format 2, made by a newer Kinfold; this one reads 1"):
        parse_manifest(data, digest(data))


FILE = content()["files"][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [FILE | {"path": path}]}
        for path in ("../x", "/abs", "a//b", "a/./b", "", "a\\b", "c:d", "a\0", "a/..", ".")
    ]
    + [
        {"files": []},
        {"files": [FILE, FILE]},
        {"kind": "model", "files": [FILE, FILE]},
        {"kind": "family", "files": [FILE | {"path": "a"}, FILE]},
        {"kind": "model", "files": [FILE, FILE | {"path": "a"}]},
        {"files": [FILE | {"size": 6}]},
        {"files": [FILE | {"size": -1}]},
        {"files": [FILE | {"segments": [{"hash": "x" * 64, "size": 5}]}]},
        {"files": [FILE | {"segments": [{"hash": A, "size": 0}, {"hash": A, "size": 5}]}]},
        {"kind": "pickle"},
        {"parent": "../../etc"},
        {"format": 0},
        {"extra": 1},
    ],
)
def test_a_hostile_one_is_refused(changes: dict[str, Any]) -> None:
    data = canonical(content(**changes))
    with pytest.raises(StoreError, match="is no manifest: "):
        parse_manifest(data, digest(data))


@pytest.mark.parametrize("data", [b"[]", b"nonsense", b"\xff\xfe", b"[" * 100_000, json.dumps(content()).encode()])
def test_what_is_no_canonical_json_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="is no manifest: "):
        parse_manifest(data, digest(data))
