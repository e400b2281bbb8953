"""A store behind any fsspec URL: an object store, a server, or the memory of this process."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from datetime import datetime
from typing import Any, TypeVar

from kinfold.errors import KinfoldError, MissingExtraError, StoreError
from kinfold.store.backend import BLOCK, Backend, Listed

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE = 0.1  # seconds, doubled after each attempt: some three seconds in all

_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, NotImplementedError)
_FINAL_NUMBERS = {errno.EINVAL, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOSYS, errno.ENAMETOOLONG}
_CREATING = threading.Lock()  # fsspec's memory looks and writes in two steps


class RemoteBackend(Backend):
    """Every request is tried several times; each is safe to repeat."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        protocol = url.split("://", 1)[0]
        try:
            # listings are never cached: others write
            self._fs, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as cause:
            if protocol in ("s3", "s3a"):
                raise MissingExtraError("s3fs", "s3") from cause
            raise StoreError(f"`{url}` needs a package that is not installed: {cause}") from cause
        except ValueError as cause:
            raise StoreError(
                f"`{url}` is no place for a store: {cause}", hint="a folder, or s3://BUCKET/PATH"
            ) from cause
        self.url = url.rstrip("/")
        self._root = root.rstrip("/")
        self._alone = _CREATING if protocol == "memory" else nullcontext()

    def read(self, path: str) -> bytes:
        return b"".join(self.blocks(path))

    def blocks(self, path: str) -> Iterator[bytes]:
        start, block = 0, b""
        while start == 0 or len(block) == BLOCK:
            try:
                block = self._try(self._fs.cat_file, self._at(path), start=start, end=start + BLOCK)
            except StoreError:
                if self.size(path) != start:  # else there was nothing more, which some call an error
                    raise
                return
            start += len(block)
            yield block
            if not block:
                return

    def size(self, path: str) -> int | None:
        try:
            info = self._info(path)
        except FileNotFoundError:
            return None
        return int(info["size"]) if info.get("type") == "file" else None

    def put(self, path: str, blocks: Callable[[], Iterable[bytes]]) -> None:
        data = bytearray()
        for block in blocks():  # joining a list of them would hold a segment twice
            data += block
        self._try(self._fs.pipe_file, self._at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        for attempt in range(ATTEMPTS):
            try:
                with self._alone:
                    self._fs.pipe_file(self._at(path), data, mode="create")
                return True
            except Exception as cause:  # refused, or cut off: what lies there tells
                try:
                    return self.read(path) == data
                except FileNotFoundError:
                    if attempt == ATTEMPTS - 1 or not _transient(cause):
                        raise self._error(cause) from cause
            _pause(attempt)
        raise AssertionError

    def announce(self, path: str, data: bytes) -> None:
        self._try(self._fs.pipe_file, self._at(path), data)

    def touch(self, path: str, data: bytes) -> bool:
        if self.size(path) is None:
            return False
        self.announce(path, data)
        return True

    def modified(self, path: str) -> float | None:
        try:
            when = self._try(self._fs.modified, self._at(path), fresh=True)
        except (NotImplementedError, KeyError):
            return None
        return when.timestamp() if isinstance(when, datetime) else None

    def list(self, folder: str) -> dict[str, Listed]:
        try:
            found = self._try(self._fs.find, self._at(folder), detail=True, fresh=True)
        except FileNotFoundError:
            return {}
        cut = len(self._root) + 1
        return {name[cut:]: Listed(int(info["size"] or 0), _mark(info)) for name, info in found.items()}

    def remove(self, path: str) -> None:
        try:
            self._try(self._fs.rm_file, self._at(path))
        except FileNotFoundError:
            return

    def move(self, path: str, to: str) -> None:
        self._try(self._fs.cp_file, self._at(path), self._at(to))
        self.remove(path)

    def sync(self, paths: Iterable[str]) -> None:
        """What a request has acknowledged lasts."""

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _info(self, path: str) -> dict[str, Any]:
        return self._try(self._fs.info, self._at(path), fresh=True)

    def _try(self, function: Callable[..., T], *arguments: Any, fresh: bool = False, **options: Any) -> T:
        for attempt in range(ATTEMPTS):
            try:
                if fresh:  # some file systems cache whatever they are told
                    self._fs.invalidate_cache()
                return function(*arguments, **options)
            except (FileNotFoundError, NotImplementedError, KeyError, KinfoldError):
                raise
            except Exception as cause:
                if attempt == ATTEMPTS - 1 or not _transient(cause):
                    raise self._error(cause) from cause
            _pause(attempt)
        raise AssertionError

    def _error(self, cause: Exception) -> StoreError:
        what = str(cause) or type(cause).__name__
        if isinstance(cause, PermissionError):
            return StoreError(f"`{self.url}` refuses access: {what}", hint="check the credentials and the policy")
        return StoreError(
            f"`{self.url}` cannot be used: {what}", hint="run the same command again; it goes on from here"
        )


def _mark(info: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "LastModified", "mtime", "created", "size")
    return " ".join(str(info[key]) for key in keys if key in info)


def _transient(error: Exception) -> bool:
    return not isinstance(error, _FINAL) and getattr(error, "errno", None) not in _FINAL_NUMBERS


def _pause(attempt: int) -> None:
    time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1))
