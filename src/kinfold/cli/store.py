"""The commands on stores: `kinfold store ...`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from kinfold.cli import show_store
from kinfold.cli.app import AsFormat, Output, Switch, app
from kinfold.cli.output import DONE, FOUND, emit, err
from kinfold.errors import StoreError

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
Yes = Annotated[bool, Parameter(name=["--yes", "-y"], negative="")]


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


@dataclass(frozen=True)
class Removed:
    """Names that were removed, or in a dry run would be."""

    store: str
    names: list[str]
    dry_run: bool


def default_store() -> str:
    """Where the store is when nobody says."""
    return os.environ.get(VARIABLE) or DEFAULT


def _open(url: str) -> Store:
    from kinfold.store import Store

    return Store.open(url)


def _agreed(question: str, yes: bool) -> bool:
    """Ask on a terminal; elsewhere the command itself is the answer."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    err.print(f"{question} [y/N] ", end="", markup=False)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    err.print("nothing was removed")
    return False


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
    store
        A folder or a URL.
    format
        human or json.
    """
    added = _open(store).add(path, name=name, base=base, parent=parent, note=note, expect=expect)

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
    opened = _open(store)
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
    opened = _open(store)
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
    found = _open(store).info(ref)

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
    found = _open(store).diff(a, b)

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
    opened = _open(store)
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
    opened = _open(store)
    opened.tag(ref, tag)
    entry = opened.info(ref).entry

    emit(entry, format, lambda: show_store.tagged(entry, tag, store))


@group.command
def verify(*names: str, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> int:
    """Read every object again and compare it with its hash. Exits with 3 on damage.

    Parameters
    ----------
    names
        Only these; all where none is given.
    store
        A folder or a URL.
    format
        human or json.
    """
    report = _open(store).verify(list(names) or None)

    emit(report, format, lambda: show_store.verified(report, store))
    return DONE if report.sound else FOUND


@group.command
def rm(
    *names: str,
    dry_run: Annotated[bool, Switch] = False,
    yes: Yes = False,
    store: StoreUrl = DEFAULT,
    format: AsFormat = "human",
) -> None:
    """Remove names with all their versions; the bytes go with the next gc.

    Parameters
    ----------
    names
        In the store.
    dry_run
        Only say what would be removed.
    yes
        Do not ask.
    store
        A folder or a URL.
    format
        human or json.
    """
    if not names:
        raise CycloptsError(msg="no name is given; kinfold store rm NAME... [--store URL]")
    opened = _open(store)
    for name in names:
        if set(name) & set("@:"):
            raise StoreError(f"`{name}` is one version; all versions of a name go together", hint="give the name alone")
    entries = [opened.info(name).entry for name in names]  # all of them are there, or none is removed
    if dry_run or _agreed(f"remove {', '.join(names)} from {opened.url}?", yes):
        for name in names if not dry_run else ():
            opened.rm(name)
        removed = Removed(opened.url, list(names), dry_run)
        emit(removed, format, lambda: show_store.removed(entries, dry_run, store))


@group.command
def gc(
    *,
    dry_run: Annotated[bool, Switch] = False,
    prune_history: Annotated[bool, Switch] = False,
    wait: float = 60.0,
    yes: Yes = False,
    store: StoreUrl = DEFAULT,
    format: AsFormat = "human",
) -> None:
    """Delete the bytes that no name needs any more. Others may read and add meanwhile.

    Parameters
    ----------
    dry_run
        Only say what would go.
    prune_history
        Delete old versions too, but for those with a tag.
    wait
        Seconds to wait for those who are writing.
    yes
        Do not ask.
    store
        A folder or a URL.
    format
        human or json.
    """
    opened = _open(store)
    what = "and every old version without a tag " if prune_history else ""
    if dry_run or _agreed(f"delete what no name needs {what}from {opened.url}?", yes):
        found = opened.gc(dry_run=dry_run, prune_history=prune_history, wait=wait)
        emit(found, format, lambda: show_store.collected(found, dry_run, store))


@group.command
def push(target: str, *names: str, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """Copy names to another store; only what it lacks travels, so a push that broke off goes on.

    Parameters
    ----------
    target
        The other store, which is there; kinfold store init --store TARGET makes one.
    names
        Only these; all where none is given.
    store
        The store to copy from.
    format
        human or json.
    """
    copied = _open(store).push(_open(target), list(names) or None)

    emit(copied, format, lambda: show_store.copied(copied, target))


@group.command
def pull(source: str, *names: str, store: StoreUrl = DEFAULT, format: AsFormat = "human") -> None:
    """Copy names from another store into this one; only what is lacking travels.

    Parameters
    ----------
    source
        The store to copy from.
    names
        Only these; all where none is given.
    store
        The store to copy to.
    format
        human or json.
    """
    copied = _open(store).pull(_open(source), list(names) or None)

    emit(copied, format, lambda: show_store.copied(copied, store))
