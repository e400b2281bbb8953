"""Adding a version: objects first, then the manifest, then the number that makes it current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kinfold.errors import StoreError
from kinfold.pack.member import stem
from kinfold.pack.probe import probe_pack
from kinfold.pack.source import created_by
from kinfold.report.progress import progress
from kinfold.store import index, inputs, materialise
from kinfold.store.inputs import Given
from kinfold.store.lease import Lease, writing
from kinfold.store.manifest import BaseModelOf, File, Manifest, hash_of, problem
from kinfold.store.names import check_name, parse
from kinfold.store.objects import manifest_path, put_missing
from kinfold.store.place import Place
from kinfold.store.refs import Version, now
from kinfold.store.segments import read


@dataclass(frozen=True)
class Added:
    """What `add` did; sizes in bytes.

    Attributes:
        name: in the store.
        version: now current.
        kind: model, pack, family or adapter.
        manifest: hash of it.
        base_name: what its base is called; empty where it has none.
        bytes: of its files.
        new_bytes: of the objects that were not there.
        new_objects: how many these are.
        unchanged: the current version held the same already, so that none was written.
    """

    name: str
    version: int
    kind: str
    manifest: str
    base_name: str
    bytes: int
    new_bytes: int
    new_objects: int
    unchanged: bool


def add(
    place: Place,
    path: str | Path,
    *,
    name: str | None = None,
    base: str | None = None,
    parent: str | None = None,
    note: str = "",
    expect: int | None = None,
    probe: bool = False,
) -> Added:
    """See `Store.add`."""
    name = check_name(stem(Path(path)) if name is None else name)
    given = inputs.look_at(path)
    its_base = _base(place, given, base)
    report = given.report | ({"probe": _probe(place, given, Path(path), its_base)} if probe else {})
    forebear = None if parent is None else place.refs.resolve(parent).manifest
    files = _files(given)

    def propose(newest: Version | None) -> Manifest | None:
        before = newest.manifest if newest else None
        proposed = Manifest(
            kind=given.kind,
            name=name,
            files=files,
            base=its_base,
            parent=before if forebear is None else forebear,
            codec=given.codec,
            fingerprint=given.fingerprint,
            reference_bytes=given.reference_bytes,
            report=report,
            created_by=created_by(),
            created=now(),
        )
        if before is not None and _is_same(place, before, proposed, probe):
            return None
        return proposed

    require_spelling(place, name)
    objects = {segment.hash: segment.size for file in files for segment in file.segments}
    written: set[str] = set()
    with writing(place.backend, f"add {name}") as lease, progress(f"add {name}", sum(objects.values())) as advance:
        put = _putter(place, objects, given, written, advance)
        version, changed = commit(place, lease, name, put, propose, note=note, expect=expect)
    assert version.manifest is not None
    return Added(
        name=name,
        version=version.number,
        kind=given.kind,
        manifest=version.manifest,
        base_name=its_base.name if its_base else "",
        bytes=sum(file.size for file in files),
        new_bytes=sum(objects[hash] for hash in written),
        new_objects=len(written),
        unchanged=not changed,
    )


def commit(
    place: Place,
    lease: Lease,
    name: str,
    put: Callable[[], None],
    propose: Callable[[Version | None], Manifest | None],
    *,
    note: str = "",
    expect: int | None = None,
    again: Manifest | None = None,
) -> tuple[Version, bool]:
    """Make what `propose` gives the current version of a name.

    Args:
        place: the store.
        lease: held; it is taken anew where a gc took us for dead, and then everything is looked at again.
        name: of the version.
        put: writes the objects that are missing.
        propose: the manifest, given the newest version; None where that one will do.
        note: of the version.
        expect: the number that must be current; 0 for a name that is not there.
        again: a manifest to write also where nothing is proposed, in case it is damaged.

    Returns:
        The current version, and whether it was written.

    Raises:
        StoreError: `expect` is not current.
    """
    put()
    while True:
        newest = place.refs.newest(name)
        _require_current(name, newest, expect)
        proposed = propose(newest)
        if proposed is None:
            assert newest is not None
            _put(place, lease, put, again)
            return newest, False
        _put(place, lease, put, proposed)
        hash = hash_of(proposed.to_bytes())
        number = newest.number + 1 if newest else 1
        if place.refs.create(name, number, hash, note):
            break
    while lease.renewed():  # a gc may have come between the objects and the reference to them
        put()
        _put(place, lease, put, proposed)
    return place.refs.read(name, number), True


def _put(place: Place, lease: Lease, put: Callable[[], None], manifest: Manifest | None) -> None:
    """Write a manifest; and the objects again, as often as a gc has come between."""
    while lease.renewed():
        put()
    if manifest is not None:
        data = manifest.to_bytes()
        path = manifest_path(hash_of(data))
        place.backend.put(path, lambda: [data])
        place.backend.sync([path])


def _require_current(name: str, newest: Version | None, expect: int | None) -> None:
    current = newest.number if newest and newest.manifest else 0
    if expect is not None and expect != current:
        has = f"is at version {current}" if current else "is not in the store"
        raise StoreError(
            f"`{name}` {has}, version {expect} was expected: somebody else was first",
            hint=f"kinfold store log {name}",
        )


def _is_same(place: Place, before: str, proposed: Manifest, probe: bool) -> bool:
    try:
        known = place.manifest(before)
        return known.same_content(proposed) and not (probe and known.report.get("probe") != proposed.report["probe"])
    except StoreError:  # what cannot be read is no reason to refuse a sound copy
        return False


def _putter(
    place: Place, objects: dict[str, int], given: Given, written: set[str], advance: Callable[[int], object]
) -> Callable[[], None]:
    places = given.places

    def put() -> None:
        written.update(put_missing(place.backend, objects, lambda hash: lambda: read(*places[hash]), advance))

    return put


def _files(given: Given) -> list[File]:
    try:
        return [
            File(path=path, size=one.size, hash=one.hash, segments=one.segments)
            for path, one in sorted(given.scans.items())
        ]
    except (ValidationError, UnicodeError) as cause:
        raise StoreError(f"a file cannot be kept under its name: {problem(cause)}", hint="rename it") from cause


def _probe(place: Place, given: Given, path: Path, base: BaseModelOf | None) -> dict[str, Any]:
    """What the variant answers to the probe; its base must be in the store."""
    if given.kind != "pack" or base is None:
        raise StoreError(f"a probe is of packs; `{path}` is a {given.kind}", hint="leave --probe out")
    name = index.models(place).get(base.fingerprint)
    if name is None:
        raise StoreError(
            f"the base of `{path}`, `{base.name}`, is not in the store, so no probe can be run",
            hint=f"kinfold store add DIRECTORY --name {base.name}",
        )
    return probe_pack(path, materialise.path(place, name))


def _base(place: Place, given: Given, base: str | None) -> BaseModelOf | None:
    """The base as the manifest names it: the one the user names, or the model of that fingerprint, or what it says."""
    if base is None:
        known = index.models(place).get(given.base.fingerprint) if given.base else None
        return BaseModelOf(fingerprint=given.base.fingerprint, name=known) if given.base and known else given.base
    manifest = place.manifest_of(place.refs.resolve(base))
    if manifest.kind != "model" or manifest.fingerprint is None:
        raise StoreError(f"`{base}` is a {manifest.kind}; a base is a model", hint="kinfold store ls")
    if given.base and given.base.fingerprint != manifest.fingerprint:
        raise StoreError(
            f"this {given.kind} was made from `{given.base.name}` with fingerprint {given.base.fingerprint[:16]}..., "
            f"`{base}` is {manifest.fingerprint[:16]}...",
            hint="leave the base out; it is found by its fingerprint",
        )
    return BaseModelOf(fingerprint=manifest.fingerprint, name=parse(base).name)


def require_spelling(place: Place, name: str) -> None:
    """Refuse a name that only case tells from another: not every disk can keep both."""
    for other in place.refs.numbers():
        if other != name and other.lower() == name.lower():
            raise StoreError(f"`{name}` and `{other}`, which is there, differ only in case", hint="choose another name")
