"""An opened store: its backend, who it is, and where its copies on this machine lie."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kinfold.errors import StoreError
from kinfold.store.backend import Backend, connect
from kinfold.store.manifest import Manifest, parse_manifest
from kinfold.store.objects import DamagedError, manifest_path
from kinfold.store.refs import Refs, Version

FORMAT = 1
FILE = "kinfold-store.json"


@dataclass(frozen=True)
class Place:
    """What every function of this room works on.

    Attributes:
        backend: where the store lies.
        id: random, made once; names its folder in the cache.
        cache: folder of this machine for copies of files and the index.
    """

    backend: Backend
    id: str
    cache: Path

    @cached_property
    def refs(self) -> Refs:
        return Refs(self.backend)

    def manifest(self, hash: str) -> Manifest:
        """Read a manifest and check it.

        Raises:
            StoreError: missing, damaged, or of a newer version.
        """
        try:
            data = self.backend.read(manifest_path(hash))
        except FileNotFoundError:
            raise DamagedError(hash, "is missing", "manifest") from None
        return parse_manifest(data, hash)

    def manifest_of(self, version: Version) -> Manifest:
        """The manifest of a version that was not removed."""
        assert version.manifest is not None
        return self.manifest(version.manifest)


def make(url: str | Path, cache: str | Path | None) -> Place:
    """Make an empty store.

    Raises:
        StoreError: there is one, or the backend cannot write a file only where none is.
        OutputError: the disk cannot take it.
    """
    backend = connect(url)
    id = uuid.uuid4().hex
    if backend.size(FILE) is not None or not backend.create(FILE, json.dumps({"format": FORMAT, "id": id}).encode()):
        raise StoreError(f"there is a store at `{backend.url}`", hint=f"kinfold store ls --store {backend.url}")
    _require_exclusive(backend)
    return Place(backend, id, _cache(cache, id))


def _require_exclusive(backend: Backend) -> None:
    """Refuse a backend on which two writers could both be first."""
    probe = f"leases/probe-{uuid.uuid4().hex}"
    try:
        twice = backend.create(probe, b"first") and backend.create(probe, b"second")
    finally:
        backend.remove(probe)
    if twice:
        backend.remove(FILE)
        raise StoreError(
            f"`{backend.url}` overwrites a file that was to be written only where none is, so that two writers could "
            "lose each other's work",
            hint="use a folder, or a service with conditional writes",
        )


def find(url: str | Path, cache: str | Path | None) -> Place:
    """Open a store.

    Raises:
        StoreError: there is none, or it was made by a newer version.
    """
    backend = connect(url)
    try:
        data = backend.read(FILE)
    except FileNotFoundError:
        raise StoreError(
            f"there is no store at `{backend.url}`", hint=f"kinfold store init --store {backend.url}"
        ) from None
    try:
        content = json.loads(data)
        number, id = content["format"], content["id"]
        if type(number) is not int or not isinstance(id, str) or not (id.isascii() and id.isalnum()):
            raise ValueError("format or id is missing")
    except (ValueError, KeyError, TypeError) as cause:
        raise StoreError(f"`{backend.url}/{FILE}` is damaged: {cause}", hint="restore this file from a copy") from cause
    if number > FORMAT:
        raise StoreError(
            f"the store at `{backend.url}` has format {number}, made by a newer Kinfold; this one reads {FORMAT}",
            hint="pip install -U kinfold",
        )
    return Place(backend, id, _cache(cache, id))


def _cache(cache: str | Path | None, id: str) -> Path:
    root = Path(cache or Path(os.environ.get("KINFOLD_CACHE") or "~/.cache/kinfold") / "store")
    return root.expanduser().absolute() / id
