"""One fine-tune into a store: what is done already is told by what it was made of, not by its name."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.errors import KinfoldError
from kinfold.pack import PackReport, pack
from kinfold.pack.format import short_hash
from kinfold.report.progress import progress
from kinfold.store.add import Added
from kinfold.store.store import Store

Status = Literal["packed", "present", "base", "failed"]


@dataclass(frozen=True)
class Packed:
    """What became of one directory.

    Attributes:
        name: of the directory, and in the store.
        status: `packed` now; `present` already, made of the same tensors and files with the same settings; `base`,
            as its tensors are the base's; or `failed`.
        version: in the store; None where there is none.
        bytes: of the pack.
        new_bytes: those of them that the store did not hold yet.
        seconds: it took.
        error: what went wrong, or an empty string.
        hint: the next step then.
    """

    name: str
    status: Status
    version: int | None = None
    bytes: int = 0
    new_bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    hint: str = ""


@dataclass(frozen=True)
class There:
    """The current version of a name, and what it was made of: fingerprints of variant and base, and the recipe."""

    version: int
    bytes: int
    made_of: tuple[str, str, Any]


@dataclass(frozen=True)
class Job:
    """One variant to pack, in words that another process understands.

    Attributes:
        name: in the store.
        directory: of the variant.
        base: model directory; or its name in the store, for another machine, which has another cache.
        base_fingerprint: of its tensors.
        url: of the store.
        cache: folder for the store's local copies; None is the usual one.
        settings: keywords of `pack`.
        recipe: what the pack's manifest will record of them.
        there: the current version of that name, if it is a pack.
    """

    name: str
    directory: Path
    base: Path | str
    base_fingerprint: str
    url: str
    cache: Path | None
    settings: Mapping[str, Any] = field(repr=False)
    recipe: Mapping[str, Any] = field(repr=False)
    there: There | None = None


def run_job(job: Job, scratch: Path) -> Packed:
    """Pack a variant and add it, unless it is there; whatever goes wrong is in the answer.

    Args:
        job: what to do.
        scratch: folder for the pack, until it is added.
    """
    start = time.monotonic()
    try:
        found = _packed(job, scratch)
    except KinfoldError as error:
        found = failure(job.name, str(error), error.hint)
    except Exception as error:  # a fault with one variant, full memory for example, stops no other
        alone = ["kinfold", "pack", str(job.base), str(job.directory), "--store", job.url]
        found = failure(job.name, f"{type(error).__name__}: {error}", f"{shlex.join(alone)} shows where it happens")
    return replace(found, seconds=time.monotonic() - start)


def failure(name: str, error: str, hint: str = "") -> Packed:
    return Packed(name, "failed", error=error, hint=hint)


def _packed(job: Job, scratch: Path) -> Packed:
    variant = Checkpoint.open(job.directory)
    with progress("hash", variant.nbytes) as advance:
        tensors = fingerprint(specs_of(variant), digests(variant, advance))
    if tensors == job.base_fingerprint:
        return Packed(job.name, "base")
    if job.there and job.there.made_of == (tensors, job.base_fingerprint, _made_of(variant, job.recipe)):
        return Packed(job.name, "present", job.there.version, job.there.bytes)
    store = Store.open(job.url, cache=job.cache)
    base = store.path(job.base) if isinstance(job.base, str) else job.base
    out = scratch / f"{job.name}.kin.safetensors"
    _, added = pack_and_add(base, job.directory, out, store, job.name, **job.settings)
    return Packed(job.name, "packed", added.version, added.bytes, added.new_bytes)


def _made_of(variant: Checkpoint, recipe: Mapping[str, Any]) -> Any:
    """What the store says of a pack made with these settings, in the words of JSON."""
    files = {path: short_hash((variant.directory / path).read_bytes()) for path in variant.side_files()[0]}
    return json.loads(json.dumps({**recipe, "files": files}))


def pack_and_add(
    base: Path, variant: Path, out: Path, store: Store, name: str, *, keep: bool = False, **settings: Any
) -> tuple[PackReport, Added]:
    """Pack to the file `out`, add it to the store, and remove it again unless it is to be kept."""
    try:
        report = pack(base, variant, out, **{"overwrite": not keep, **settings})
        return report, store.add(out, name=name)
    finally:
        if not keep:
            out.unlink(missing_ok=True)
