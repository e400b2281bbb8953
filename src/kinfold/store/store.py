"""The store: one object with a method for each thing a user does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kinfold.errors import StoreError
from kinfold.store import add as adding
from kinfold.store import gc as collecting
from kinfold.store import look, materialise
from kinfold.store import verify as verifying
from kinfold.store.add import Added
from kinfold.store.copy import Copied, copy
from kinfold.store.gc import Collected
from kinfold.store.lease import writing
from kinfold.store.look import Entry, Info, StoreDiff
from kinfold.store.manifest import Manifest
from kinfold.store.names import check_name
from kinfold.store.place import Place, find, make
from kinfold.store.verify import StoreReport


class Store:
    """A place for models, packs, families and adapters: a folder or any fsspec URL.

    Equal tensors are kept once; whatever was acknowledged can be had again byte for byte, and is checked whenever it is
    read. Any number of processes may read and write at the same time. `docs/concepts/store.md` says how.

    A reference is `NAME`, `NAME@VERSION` or `NAME:TAG`.

    Attributes:
        url: where it lies.
        id: random, made with the store.
        cache: folder of this machine for copies and indexes of stores.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.url = place.backend.url
        self.id = place.id
        self.cache = place.cache.parent

    @classmethod
    def init(cls, url: str | Path, *, cache: str | Path | None = None) -> Store:
        """Make an empty store.

        Args:
            url: a folder, which is made, or an fsspec URL such as `s3://BUCKET/PATH`.
            cache: as of `open`.

        Raises:
            StoreError: there is one, or the place has no conditional writes.
            OutputError: the disk cannot take it.
        """
        return cls(make(url, cache))

    @classmethod
    def open(cls, url: str | Path, *, cache: str | Path | None = None) -> Store:
        """Open a store; nothing is written, so a read-only one will do.

        Args:
            url: a folder or an fsspec URL.
            cache: local folder for copies that `path` makes and for the index; by default `$KINFOLD_CACHE/store`, or
                `~/.cache/kinfold/store`. It may be deleted at any time.

        Raises:
            StoreError: there is none, or it was made by a newer version.
        """
        return cls(find(url, cache))

    def add(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        base: str | None = None,
        parent: str | None = None,
        note: str = "",
        expect: int | None = None,
        probe: bool = False,
    ) -> Added:
        """Add a model directory, a pack, a family or a PEFT adapter folder as the next version of a name.

        The same content again is no new version.

        Args:
            path: of it.
            name: to add it under; by default the stem of its path.
            base: a model in the store that it belongs to; by default the one whose fingerprint it asks for. A pack
                whose base is not there is kept by fingerprint.
            parent: reference to what it was made from; by default the version before.
            note: a line for `log`.
            expect: the version that must be current, 0 for a new name; by default any.
            probe: of a pack, run the restored model once and keep what it answers, for servers to compare with.

        Raises:
            StoreError: the name or a reference is at fault, `base` is another one, a probe cannot be run, or `expect`
                is not current.
            CheckpointError, PackError, AdapterError: nothing readable is at `path`.
            OutputError: the disk cannot take it.
        """
        return adding.add(self._place, path, name=name, base=base, parent=parent, note=note, expect=expect, probe=probe)

    def ls(self) -> list[Entry]:
        """The current version of every name, in order of name."""
        return look.ls(self._place)

    def names(self) -> dict[str, str]:
        """Hash of the current manifest of every name; reads only what is new since the last call."""
        current = self._place.refs.current()
        return {name: version.manifest for name, version in current.items() if version.manifest}

    def log(self, name: str) -> list[Entry]:
        """All versions of a name, newest first; `kind` is `removed` where it was removed.

        Raises:
            StoreError: there never was one of that name.
        """
        return look.log(self._place, name)

    def info(self, ref: str) -> Info:
        """One version in full: files, tags, lineage, report.

        Raises:
            StoreError: it is not there, or its manifest is damaged.
        """
        return look.info(self._place, ref)

    def manifest(self, ref: str) -> Manifest:
        """The manifest of a version. Errors as of `info`."""
        return self._place.manifest_of(self._place.refs.resolve(ref))

    def diff(self, a: str, b: str) -> StoreDiff:
        """What two versions share, and what their manifests say differently. Errors as of `info`."""
        return look.diff(self._place, a, b)

    def get(self, ref: str, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write a version's files as they were added: a file for a pack or a family, else a directory.

        It appears whole or not at all; every byte is checked. After a kill the same call goes on where it was.

        Raises:
            StoreError: it is not there, or an object is damaged.
            OutputError: `out` exists, or the disk cannot take it.
        """
        return materialise.get(self._place, ref, out, overwrite=overwrite)

    def path(self, ref: str) -> Path:
        """A read-only copy on this machine, in the cache, checked when it was made. Errors as of `get`."""
        return materialise.path(self._place, ref)

    def tag(self, ref: str, tag: str) -> None:
        """Point a tag at a version; a tag of that name is moved.

        Raises:
            StoreError: the version is not there, or the tag's name is at fault.
        """
        check_name(tag, "tag")
        refs = self._place.refs
        with writing(self._place.backend, f"tag {tag}") as lease:
            while True:  # a gc that took us for dead may have pruned the version meanwhile
                version = refs.resolve(ref)
                if refs.tags(version.name).get(tag) != version.number:
                    refs.set_tag(version.name, tag, version.number)
                if not lease.renewed():
                    return

    def rm(self, name: str) -> None:
        """Remove a name; its bytes go with the next `gc`.

        Raises:
            StoreError: it is not there.
        """
        if set(name) & set("@:"):
            raise StoreError(f"{name!r} is no name; all versions of a name go together", hint="give the name alone")
        refs = self._place.refs
        while not refs.create(name, refs.last(name) + 1, None):  # else somebody has added one meanwhile
            continue

    def gc(self, *, dry_run: bool = False, prune_history: bool = False, wait: float = 60.0) -> Collected:
        """Remove what no version needs; writers and readers go on beside it.

        Args:
            dry_run: only say what would go.
            prune_history: keep of each name only the current version and the tagged ones.
            wait: seconds to wait for writers that are at work.

        Raises:
            StoreError: a writer is still at work, or a damaged manifest does not say what it needs.
            OutputError: the disk cannot be written.
        """
        return collecting.gc(self._place, dry_run=dry_run, prune_history=prune_history, wait=wait)

    def verify(self, names: Sequence[str] | None = None) -> StoreReport:
        """Read every version, manifest and object and hash it again; damage is the answer, not an exception.

        A damaged object is moved to `quarantine/`, where the store can be written, so that a copy can take its place.

        Args:
            names: look only at what these need; by default at everything.

        Raises:
            StoreError: there is no such name, or the store cannot be read at all.
        """
        return verifying.verify(self._place, names)

    def push(self, target: Store, names: Sequence[str] | None = None) -> Copied:
        """Make versions of this store the current ones of another, which keeps its own history.

        Objects that are there are not sent again, so a second run goes on where the first was stopped, and a copy mends
        what a damaged target lacks. A version that the target has in its history is not made current again.

        Args:
            target: an opened store.
            names: references; by default the current version of every name.

        Raises:
            StoreError: a reference is not there, or some could not be copied; the others were.
        """
        return copy(self._place, target._place, names)

    def pull(self, source: Store, names: Sequence[str] | None = None) -> Copied:
        """The same the other way: from `source` into this store."""
        return copy(source._place, self._place, names)
