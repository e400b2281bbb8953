"""Outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinfold.errors import OutputError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an OutputError that names the place."""
    try:
        yield
    except OSError as cause:
        full = cause.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        what = "no room left" if full else str(cause)
        raise OutputError(f"cannot write `{path}`: {what}", hint=f"df -h {path.parent}" if full else "") from cause


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError when `path` exists and may not be replaced."""
    if not path.name or path.name == "..":
        raise OutputError(f"`{path}` is no name for an output", hint="choose another -o")
    if path.exists() and not overwrite:
        raise OutputError(f"`{path}` exists", hint="choose another name, or pass --overwrite to replace it")
    if not path.parent.is_dir():
        raise OutputError(f"the folder `{path.parent}` does not exist", hint=f"mkdir -p {path.parent}")


def probe_file(path: Path) -> None:
    """Raise OutputError unless a file can be written at `path`; before work that takes long. Leaves nothing."""
    if path.is_dir():
        raise OutputError(f"`{path}` is a directory, a file is written there", hint="choose another -o")
    temporary = _beside(path, "tmp")
    with disk_errors(path):
        temporary.touch()
        temporary.unlink()


def sync_directory(directory: Path) -> None:
    """Make what was renamed in a directory outlast a power cut."""
    if os.name == "posix":  # a rename is durable only once its directory is
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; fsync and rename it on success, remove it on failure."""
    refuse_existing(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; rename it on success, remove it on failure."""
    refuse_existing(path, overwrite)
    temporary = _beside(path, "tmp")
    try:
        with disk_errors(path):
            temporary.mkdir()
            yield temporary
            put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file or directory that is complete to `path`, and remove what was there."""
    retired = _beside(path, "old")
    try:
        if path.exists():
            os.replace(path, retired)
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        if retired.exists() and not path.exists():  # what was there comes back
            os.replace(retired, path)
        _remove(retired)


def _beside(path: Path, ending: str) -> Path:
    """A name that no thread and no killed process has used; in a container every process may have the same number."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{ending}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
