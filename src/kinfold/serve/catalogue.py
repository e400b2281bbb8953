"""What of a store can be served on one base: its packs, adapters and the members of its families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kinfold.errors import ServeError
from kinfold.store import Store

if TYPE_CHECKING:
    from kinfold.store.look import Entry

KINDS = ("pack", "adapter", "family")
DAMAGED = "damaged"  # the kind of an entry whose manifest cannot be read


@dataclass(frozen=True)
class Stored:
    """A variant as the store has it.

    Attributes:
        name: as requests name it: the store's name, or FAMILY/MEMBER.
        ref: the version in the store.
        member: of a family; None for the other kinds.
        digest: of what is served: the manifest's hash, with the member.
        created: seconds since 1970.
        refused: why it cannot be served, where that is known before it is read; empty otherwise.
    """

    name: str
    ref: str
    member: str | None
    digest: str
    created: int
    refused: str = ""


class Catalogue:
    """The variants of one base in a store, listed again whenever the store has changed.

    Names that requests give are only ever looked up here; none becomes a path.
    """

    def __init__(self, store: Store, fingerprint: str) -> None:
        self.store, self._fingerprint = store, fingerprint
        self._seen: Mapping[str, str] | None = None
        self._members: dict[str, list[str]] = {}  # of families, by manifest

    def read(self) -> dict[str, Stored] | None:
        """All variants by name; None where nothing has changed since the last time.

        Raises:
            StoreError: the store cannot be read.
        """
        names = self.store.names()
        if names == self._seen:
            return None
        if not names and self._seen:
            Store.open(self.store.url)  # raises where the store itself is gone, such as a disk that was unmounted
        found = {stored.name: stored for entry in self.store.ls() for stored in self._serves(entry)}
        self._seen = names
        return found

    def path(self, stored: Stored) -> Path:
        """A verified local copy of what a variant is in: a file, or the folder of an adapter.

        Raises:
            StoreError: an object is missing or corrupt; the store has moved a corrupt one aside.
        """
        return self.store.path(stored.ref)

    def _serves(self, entry: Entry) -> list[Stored]:
        """What an entry of the store serves; nothing of another base or kind.

        An adapter may name no base: whether it fits shows when it is loaded.
        """
        ref, digest = f"{entry.name}@{entry.version}", entry.manifest
        created = int(datetime.fromisoformat(entry.created).timestamp()) if entry.created else 0
        if entry.kind == DAMAGED:
            return [Stored(entry.name, ref, None, digest, created, "its manifest is damaged: kinfold store verify")]
        if entry.kind not in KINDS or entry.base_fingerprint not in (self._fingerprint, ""):
            return []
        if entry.kind != "family":
            return [Stored(entry.name, ref, None, digest, created)]
        if digest not in self._members:
            self._members[digest] = [row["name"] for row in self.store.info(ref).report["members"]]
        return [
            Stored(f"{entry.name}/{member}", ref, member, f"{digest}/{member}", created)
            for member in self._members[digest]
        ]


def base_of(store: Store, base: str | Path) -> tuple[str, Path]:
    """What the base is called, and its directory.

    Args:
        store: that may have it.
        base: the name of a model in the store, or else a model directory.

    Raises:
        ServeError: it is neither.
        StoreError: the store's copy is damaged.
    """
    name = str(base)
    if name in store.names():
        kind = store.info(name).entry.kind
        if kind != "model":
            raise ServeError(f"`{name}` is a {kind}; a base is a model", hint="kinfold store ls")
        return name, store.path(name)
    if not Path(base).is_dir():
        raise ServeError(
            f"`{name}` is neither the name of a model in the store nor a model directory", hint="kinfold store ls"
        )
    return Path(base).resolve().name, Path(base)
