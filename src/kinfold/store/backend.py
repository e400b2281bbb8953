"""What a store needs of the place where it lies, and which kind of place a URL names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 8 << 20  # bytes read or written at once


class Listed(NamedTuple):
    """A file in a listing: its bytes, and a word that changes when the file does."""

    size: int
    mark: str


class Backend(ABC):
    """A tree of files. Paths are relative, with `/`; FileNotFoundError passes through, all else is a KinfoldError.

    Attributes:
        url: of the root.
    """

    url: str

    @abstractmethod
    def read(self, path: str) -> bytes:
        """All bytes of a small file."""

    @abstractmethod
    def blocks(self, path: str) -> Iterator[bytes]:
        """The bytes of a file in pieces of at most 8 MiB."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def put(self, path: str, blocks: Callable[[], Iterable[bytes]]) -> None:
        """Write or replace a file, which appears whole or not at all; an error in `blocks` leaves nothing."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a file only where none is; False where another writer's is there. It is durable on return.

        `data` must be unlike any other writer's: after a cut connection it tells who was first.
        """

    @abstractmethod
    def announce(self, path: str, data: bytes) -> None:
        """Write a file that says that somebody is at work."""

    @abstractmethod
    def touch(self, path: str, data: bytes) -> bool:
        """Make an announced file young again; False where it is gone, and it stays gone."""

    @abstractmethod
    def modified(self, path: str) -> float | None:
        """When a file was written, in seconds of the backend's own clock; None where it keeps no such time."""

    @abstractmethod
    def list(self, folder: str) -> dict[str, Listed]:
        """All files in a folder and below, by path; no temporaries."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""

    @abstractmethod
    def move(self, path: str, to: str) -> None:
        """Rename a file."""

    @abstractmethod
    def sync(self, paths: Iterable[str]) -> None:
        """Make files that were put, and the absence of those removed, outlast a power cut."""

    def temporaries(self) -> list[str]:
        """Paths of what killed writers left half written."""
        return []

    def local(self, path: str) -> Path | None:
        """The file as a path of this machine, where it is one."""
        return None


def connect(url: str | Path) -> Backend:
    """The backend of a local folder or an fsspec URL.

    Raises:
        StoreError: fsspec knows no such protocol.
        MissingExtraError: the package for it is not installed.
    """
    text = str(url)
    if text.startswith(("file://", "local://")):
        text = text.split("://", 1)[1]
    if "://" in text:
        from kinfold.store.remote import RemoteBackend

        return RemoteBackend(text)
    from kinfold.store.local import LocalBackend

    return LocalBackend(Path(text))
