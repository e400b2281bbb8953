"""Immutable bytes named by their hash: looked for, written, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from blake3 import blake3

from kinfold.errors import KinfoldError, StoreError
from kinfold.store.backend import Backend
from kinfold.store.threads import side_by_side

Source = Callable[[], Iterable[bytes]]


class DamagedError(StoreError):
    """An object or manifest is missing, or its bytes are not those of its name.

    Attributes:
        hash: its name.
        problem: `is missing` or `is damaged`, and what was done about it.
        what: `object` or `manifest`.
    """

    def __init__(self, hash: str, problem: str, what: str = "object", harms: str = "") -> None:
        super().__init__(
            f"{what} {hash} {problem}{harms}",
            hint="kinfold store verify tells what is harmed; kinfold store push from another copy mends it",
        )
        self.hash, self.problem, self.what = hash, problem, what


def object_path(hash: str) -> str:
    return f"objects/{hash[:2]}/{hash}"


def manifest_path(hash: str) -> str:
    return f"manifests/{hash}.json"


def missing(backend: Backend, objects: Mapping[str, int]) -> list[str]:
    """Those that are not there, or of another size."""

    def look(hash: str) -> tuple[str, bool]:
        return hash, backend.size(object_path(hash)) == objects[hash]

    absent = {hash for hash, there in side_by_side(look, objects, lambda _: 0) if not there}
    return [hash for hash in objects if hash in absent]


def put_missing(
    backend: Backend, objects: Mapping[str, int], source: Callable[[str], Source], advance: Callable[[int], object]
) -> list[str]:
    """Write the objects that are not there; all of `objects` outlast a power cut on return.

    Args:
        backend: to write to.
        objects: bytes of each, by hash.
        source: gives the bytes of one.
        advance: gets the bytes that are done, there or written.

    Returns:
        Hashes of those written.
    """
    absent = missing(backend, objects)
    advance(sum(objects.values()) - sum(objects[hash] for hash in absent))

    def put(hash: str) -> int:
        backend.put(object_path(hash), lambda: checked(hash, source(hash)()))
        return objects[hash]

    for size in side_by_side(put, absent, objects.__getitem__):
        advance(size)
    # also those of another writer, who may not have come so far
    backend.sync(object_path(hash) for hash in objects)
    return absent


def checked(hash: str, blocks: Iterable[bytes], wrong: Callable[[], Exception] | None = None) -> Iterator[bytes]:
    """Pass blocks through; after the last, raise unless they hash to `hash`."""
    hasher = blake3(max_threads=blake3.AUTO)
    for block in blocks:
        hasher.update(block)
        yield block
    if hasher.hexdigest() != hash:
        raise (
            wrong()
            if wrong
            else StoreError(
                f"the bytes of object {hash[:16]}... changed while they were copied", hint="run the same command again"
            )
        )


def read(backend: Backend, hash: str) -> Iterator[bytes]:
    """The bytes of an object in pieces; what was yielded is good only if no error comes.

    Raises:
        DamagedError: it is missing, or its hash differs; then it is moved to `quarantine/` where that can be.
    """
    try:
        yield from checked(hash, backend.blocks(object_path(hash)), lambda: DamagedError(hash, "is damaged"))
    except FileNotFoundError:
        raise DamagedError(hash, "is missing") from None
    except DamagedError:
        moved = "; it was moved to quarantine" if quarantine(backend, hash) else ""
        raise DamagedError(hash, f"is damaged{moved}") from None


def quarantine(backend: Backend, hash: str) -> bool:
    """Move a damaged object aside, so that it counts as missing and a good copy can take its place."""
    path, aside = object_path(hash), f"quarantine/{hash}"
    try:
        if _sound(backend, path, hash):  # a good one has come, or the first reading failed
            return False
        backend.move(path, aside)
        if _sound(backend, aside, hash):
            backend.move(aside, path)
            return False
    except (KinfoldError, FileNotFoundError):  # a store that cannot be written
        return False
    return True


def _sound(backend: Backend, path: str, hash: str) -> bool:
    hasher = blake3(max_threads=blake3.AUTO)
    for block in backend.blocks(path):
        hasher.update(block)
    return hasher.hexdigest() == hash
