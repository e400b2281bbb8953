"""A store in a folder of this machine, or of a network drive that is mounted on it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kinfold.checkpoint.atomic import disk_errors, sync_directory
from kinfold.errors import StoreError
from kinfold.store.backend import BLOCK, Backend, Listed
from kinfold.store.threads import side_by_side

_TEMPORARIES = "objects"
_MARK = ".tmp-"
_TRIES = 5  # a gc that took us for dead may remove a temporary under our hands


class LocalBackend(Backend):
    """Files appear by rename or hard link, and are synced with their folders."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.url = str(self.root)

    def read(self, path: str) -> bytes:
        return b"".join(self.blocks(path))

    def blocks(self, path: str) -> Iterator[bytes]:
        with self._read_errors(path), (self.root / path).open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                yield block

    def size(self, path: str) -> int | None:
        try:
            with self._read_errors(path):
                return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, path: str, blocks: Callable[[], Iterable[bytes]]) -> None:
        def rename(temporary: Path, target: Path) -> None:
            os.replace(temporary, target)

        self._place(path, blocks, rename)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._place(path, lambda: [data], os.link)
        except FileExistsError:
            return False
        self.sync([path])
        return True

    def _place(self, path: str, blocks: Callable[[], Iterable[bytes]], appear: Callable[[Path, Path], None]) -> None:
        """Write a temporary file, sync it, and let it appear under its name."""
        target = self.root / path
        for left in reversed(range(_TRIES)):
            temporary = self.root / _TEMPORARIES / f"{_MARK}{uuid.uuid4().hex}"
            try:
                with self._write_errors(target):
                    for folder in (temporary.parent, target.parent):
                        folder.mkdir(parents=True, exist_ok=True)
                    _write(temporary, blocks())
                    appear(temporary, target)
                return
            except FileNotFoundError:
                if not left:
                    raise StoreError(f"temporary files of `{self.url}` vanish while they are written") from None
            finally:
                with suppress(OSError):  # mostly because it has its name; else gc removes it
                    temporary.unlink()

    def announce(self, path: str, data: bytes) -> None:
        target = self.root / path
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def touch(self, path: str, data: bytes) -> bool:
        try:
            with self._write_errors(self.root / path):
                os.utime(self.root / path)  # the time is that of the disk's machine
        except FileNotFoundError:
            return False
        return True

    def modified(self, path: str) -> float | None:
        with self._read_errors(path):
            return (self.root / path).stat().st_mtime

    def list(self, folder: str) -> dict[str, Listed]:
        found = {}
        for name, status in self._walk(folder):
            if not name.rsplit("/", 1)[-1].startswith("."):
                found[name] = Listed(status.st_size, f"{status.st_mtime_ns}")
        return found

    def temporaries(self) -> list[str]:
        return [name for name, _ in self._walk(_TEMPORARIES) if name.rsplit("/", 1)[-1].startswith(_MARK)]

    def _walk(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        def unreadable(cause: OSError) -> None:
            # what cannot be listed is not empty: a gc would take all of it for forgotten
            if not isinstance(cause, FileNotFoundError):
                raise StoreError(f"cannot list `{cause.filename}`: {cause}", hint="ls -ld the folder") from cause

        for directory, _, names in os.walk(self.root / folder, onerror=unreadable):
            for name in names:
                path = Path(directory, name)
                try:
                    yield path.relative_to(self.root).as_posix(), path.stat()
                except OSError as cause:  # or it was removed meanwhile
                    unreadable(cause)

    def remove(self, path: str) -> None:
        target = self.root / path
        with disk_errors(target):
            try:
                target.unlink(missing_ok=True)
            except PermissionError:  # Windows removes no read-only file
                target.chmod(0o666)
                target.unlink(missing_ok=True)

    def move(self, path: str, to: str) -> None:
        with self._write_errors(self.root / to):
            (self.root / to).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / path, self.root / to)

    def sync(self, paths: Iterable[str]) -> None:
        parents = {folder for path in paths for folder in (self.root / path).parents}
        folders = [folder for folder in parents if folder.is_relative_to(self.root)]
        for _ in side_by_side(_sync, folders, lambda _: 0):  # at once, so that the disk can join them
            pass

    def local(self, path: str) -> Path | None:
        return self.root / path

    @contextmanager
    def _read_errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as cause:
            raise FileNotFoundError(path) from cause
        except OSError as cause:
            raise StoreError(f"cannot read `{self.root / path}`: {cause}", hint=f"ls -l {self.root}") from cause

    @contextmanager
    def _write_errors(self, target: Path) -> Iterator[None]:
        with disk_errors(target):
            try:
                yield
            except (FileNotFoundError, FileExistsError) as cause:
                missing_or_there = cause  # these two are answers
            else:
                return
        raise missing_or_there


def _sync(folder: Path) -> None:
    with disk_errors(folder):
        if folder.is_dir():
            sync_directory(folder)


def _write(path: Path, blocks: Iterable[bytes]) -> None:
    # read-only from the start: what is written here never changes
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o444)
    with os.fdopen(handle, "wb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
