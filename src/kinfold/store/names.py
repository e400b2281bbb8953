"""What names, tags and references to them may look like."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from kinfold.errors import StoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True)
class Reference:
    """`NAME`, `NAME@VERSION` or `NAME:TAG`, taken apart."""

    name: str
    version: int | None = None
    tag: str | None = None


def is_name(text: str) -> bool:
    # `NUL.txt` too is a device on Windows
    return bool(_NAME.fullmatch(text)) and not text.endswith(".") and text.split(".")[0].lower() not in _DEVICES


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if an entry (or a tag) can be called so; it becomes a part of paths on every kind of disk.

    Raises:
        StoreError: it cannot.
    """
    if not is_name(name):
        raise StoreError(
            f"{name!r} is no {what}: letters, digits, `.`, `_` and `-` make one, at most 128, beginning with a letter "
            "or digit, not ending in a dot, and no device of Windows",
            hint="choose another with --name" if what == "name" else "choose another",
        )
    return name


def parse(ref: str) -> Reference:
    """Take `NAME`, `NAME@VERSION` or `NAME:TAG` apart.

    Raises:
        StoreError: it is none of these.
    """
    name, sign, rest = re.fullmatch(r"([^@:]*)([@:]?)(.*)", ref, re.DOTALL).groups()  # type: ignore[union-attr]
    check_name(name)
    if sign == ":":
        return Reference(name, tag=check_name(rest, "tag"))
    if sign == "@" and not (rest.isascii() and rest.isdecimal() and len(rest) <= 8):
        raise StoreError(f"`{ref}` names no version; NAME@VERSION has a whole number", hint=f"kinfold store log {name}")
    return Reference(name, version=int(rest) if sign else None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Words for an error: the known names most like `name`."""
    near = difflib.get_close_matches(name, sorted(known), 5, 0.4)
    return f"; near it are {', '.join(near)}" if near else ""
