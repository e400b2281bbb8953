"""The commands on a store as a whole: `kinfold store verify`, rm, gc, push, pull."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from cyclopts import CycloptsError, Parameter

from kinfold.cli import show_store
from kinfold.cli.app import AsFormat, Switch
from kinfold.cli.output import DONE, FOUND, emit, err
from kinfold.cli.store import DEFAULT, StoreUrl, group, open_store
from kinfold.errors import StoreError

Yes = Annotated[bool, Parameter(name=["--yes", "-y"], negative="")]


@dataclass(frozen=True)
class Removed:
    """Names that were removed, or in a dry run would be."""

    store: str
    names: list[str]
    dry_run: bool


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
    report = open_store(store).verify(list(names) or None)

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
    opened = open_store(store)
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
    opened = open_store(store)
    what = "and every old version without a tag " if prune_history else ""
    if dry_run or _agreed(f"delete what no name needs {what}from {opened.url}?", yes):
        found = opened.gc(dry_run=dry_run, prune_history=prune_history, wait=wait)
        emit(found, format, lambda: show_store.collected(found, prune_history, store))


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
    copied = open_store(store).push(open_store(target), list(names) or None)

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
    copied = open_store(store).pull(open_store(source), list(names) or None)

    emit(copied, format, lambda: show_store.copied(copied, store))
