"""The commands on what a store holds: `kinfold store init`, add, ls, log, info, diff, get, tag."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from kinfold.cli import show_store
from kinfold.cli.app import AsFormat, Output, Switch, app
from kinfold.cli.output import emit

if TYPE_CHECKING:
    from kinfold.store import Store

group = App(
    name="store",
    help="Keep bases, packs and families in one content-addressed place. STORE is a folder or a URL (s3://...), "
    "by --store, KINFOLD_STORE, or ./kinfold-store.",
    help_format="plaintext",
)
app.command(group)

DEFAULT = "./kinfold-store"
VARIABLE = "KINFOLD_STORE"
StoreUrl = Annotated[str, Parameter(name="--store", env_var=VARIABLE)]


@dataclass(frozen=True)
class Listing:
    """Entries of a store, as JSON shows them."""

    store: str
    entries: list[Any]


@dataclass(frozen=True)
class Made:
    """A store that was made."""

    store: str
    id: str


@dataclass(frozen=True)
class Written:
    """Where files of a store were written to."""

    ref: str
    path: str


def default_store() -> str:
    """Where the store is when nobody says."""
    return os.environ.get(VARIABLE) or DEFAULT


def open_store(url: str) -> Store:
    from kinfold.store import Store

    return Store.open(url)


@group.command
def init(*, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """Make an empty store.

    Example: kinfold store init --store s3://bucket/models

    Parameters
    ----------
    store
        A folder, which is made, or a URL.
    format
        human or json.
    """
    from kinfold.store import Store

    made = Store.init(store)

    emit(Made(made.url, made.id), format, lambda: show_store.made(made.url, made.id, store))


@group.command
def add(
    path: Path,
    *,
    name: str | None = None,
    base: str | None = None,
    parent: str | None = None,
    note: str = "",
    expect: int | None = None,
    probe: Annotated[bool, Switch] = False,
    store: StoreUrl = DEFAULT,
    format: AsFormat = "human",
) -> None:
    """Add a model, a pack, a family or a PEFT adapter; what the store holds already costs nothing.

    Parameters
    ----------
    path
        A model directory, a pack or family file, or an adapter's folder.
    name
        In the store; the stem of the path where not given. The same name again is its next version.
    base
        Name in the store of the base that it must belong to; found by its fingerprint where not given.
    parent
        What it was made from: NAME, NAME@VERSION or NAME:TAG; the version before where not given.
    note
        A line for kinfold store log.
    expect
        The version that must be the current one, 0 for a new name; else nothing is added.
    probe
        Of a pack: run the restored model once and keep what it answers, for servers to compare with.
    store
        A folder or a URL.
    format
        human or json.
    """
    place = open_store(store)
    added = place.add(path, name=name, base=base, parent=parent, note=note, expect=expect, probe=probe)

    emit(added, format, lambda: show_store.added(added, store))


@group.command
def ls(*, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """List the current version of everything, each under its base.

    Parameters
    ----------
    store
        A folder or a URL.
    format
        human or json.
    """
    opened = open_store(store)
    entries = opened.ls()

    emit(Listing(opened.url, entries), format, lambda: show_store.listing(entries, store))


@group.command
def log(name: str, *, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """List all versions of a name, the newest first.

    Parameters
    ----------
    name
        In the store.
    store
        A folder or a URL.
    format
        human or json.
    """
    opened = open_store(store)
    entries = opened.log(name)

    emit(Listing(opened.url, entries), format, lambda: show_store.history(entries, store))


@group.command
def info(ref: str, *, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """Show one version in full: files, tags, lineage, errors.

    Parameters
    ----------
    ref
        NAME, NAME@VERSION or NAME:TAG.
    store
        A folder or a URL.
    format
        human or json.
    """
    found = open_store(store).info(ref)

    emit(found, format, lambda: show_store.info(found, store))


@group.command
def diff(a: str, b: str, *, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """Show what two versions share, and what sets them apart.

    Parameters
    ----------
    a
        NAME, NAME@VERSION or NAME:TAG.
    b
        Likewise.
    store
        A folder or a URL.
    format
        human or json.
    """
    found = open_store(store).diff(a, b)

    emit(found, format, lambda: show_store.difference(found))


@group.command
def get(
    ref: str,
    *,
    output: Output,
    overwrite: Annotated[bool, Switch] = False,
    store: StoreUrl = DEFAULT,
    format: AsFormat = "human",
) -> None:
    """Write the files of a version as they were added, every byte checked.

    Parameters
    ----------
    ref
        NAME, NAME@VERSION or NAME:TAG.
    output
        A file for a pack or a family, a directory for a model or an adapter.
    overwrite
        Replace an existing output.
    store
        A folder or a URL.
    format
        human or json.
    """
    opened = open_store(store)
    path = opened.get(ref, output, overwrite=overwrite)

    emit(Written(ref, str(path)), format, lambda: show_store.written(opened.info(ref).entry, path))


@group.command
def tag(ref: str, tag: str, *, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """Give a version a second name, such as prod; NAME:TAG then means this version. A tag can be moved.

    Parameters
    ----------
    ref
        NAME, NAME@VERSION or NAME:OTHER_TAG.
    tag
        The new tag.
    store
        A folder or a URL.
    format
        human or json.
    """
    opened = open_store(store)
    opened.tag(ref, tag)
    entry = opened.info(ref).entry

    emit(entry, format, lambda: show_store.tagged(entry, tag, store))
