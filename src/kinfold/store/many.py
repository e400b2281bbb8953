"""A folder of fine-tunes into a store: each packed in a process of its own, and only what is not there yet."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfold.budget import Calibration
from kinfold.errors import CheckpointError, KinfoldError, StoreError
from kinfold.pack import PackReport
from kinfold.pack.member import Base
from kinfold.pack.write import recipe
from kinfold.report.board import board
from kinfold.store.add import Added
from kinfold.store.job import Job, Packed, Status, There, failure, pack_and_add, run_job
from kinfold.store.lease import writing
from kinfold.store.look import Entry
from kinfold.store.names import check_name, parse
from kinfold.store.store import Store
from kinfold.store.workers import run_here, run_on_ray


@dataclass(frozen=True)
class PackedAll:
    """What `pack_all` did.

    Attributes:
        store: its URL.
        base: model directory, or name in the store.
        variants: in order of name.
        skipped: folders that are no model directory.
        seconds: all of it took.
    """

    store: str
    base: str
    variants: list[Packed]
    skipped: list[str]
    seconds: float

    def of(self, status: Status) -> list[Packed]:
        """Those that ended so."""
        return [variant for variant in self.variants if variant.status == status]


@dataclass(frozen=True)
class PackedInto:
    """What `pack` and the store's `add` tell of one fine-tune."""

    pack: PackReport
    added: Added


def pack_all(
    folder: str | Path,
    store: Store | str | Path,
    *,
    base: str | Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    codec: str = "fold",
    budget: str | int | None = None,
    options: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
    retries: int = 0,
    told: Callable[[Packed], None] | None = None,
) -> PackedAll:
    """Pack every model directory in a folder, and add each pack to a store under the directory's name.

    Each is finished on its own: what is in the store stays there whatever becomes of the rest, a failure stops
    none of the others, and a rerun packs only what is missing or has changed since. Processes are spawned, so a
    script calls this under `if __name__ == "__main__":`.

    Args:
        folder: with model directories, each config.json and safetensors; other folders are skipped.
        store: or its URL.
        base: model directory, or a model's name in the store; the store's only model where not given. It is left
            out where it lies in the folder.
        workers: processes at a time; half the cores where not given.
        ray: pack on this Ray cluster instead: its address, `auto`, or `local` for one started here. Its machines
            must reach folder, base and store under the same names.
        codec, budget, options, calibration, seed: as `pack` takes them, the same for all.
        retries: how often what failed is tried again.
        told: hears of each variant as it is finished.

    Raises:
        StoreError: no store, no such base in it, or no model directory in the folder.
        OutputError: the store cannot be written.
        CheckpointError: the base or the folder cannot be read.
        BudgetError, CodecError: the settings contradict each other.
        MissingExtraError: `ray` is given and not installed.
    """
    start = time.monotonic()
    _check_workers(workers, ray, retries)
    store = store if isinstance(store, Store) else Store.open(str(store))
    settings = {"codec": codec, "budget": budget, "options": options, "calibration": calibration, "seed": seed}
    made_by = recipe(codec, options, budget, calibration, seed)
    directories, skipped = _scan(Path(folder).absolute())
    base = base_of(store, base)
    here = _local(store, base)
    same = Base.open(here).fingerprint
    todo, done = [], []

    def finished(found: Packed) -> None:
        done.append(found)
        if told is not None:
            told(found)

    known = {entry.name: entry for entry in store.ls()}
    for directory in directories:
        name = directory.name
        if directory.resolve() == here.resolve():
            finished(Packed(name, "base"))
            continue
        try:
            there = _there(store, known[name]) if check_name(name) in known else None
        except KinfoldError as error:
            finished(failure(name, str(error), _under_another_name(base, directory, store)))
            continue
        todo.append(Job(name, directory, base if ray else here, same, store.url, store.cache, settings, made_by, there))
    if todo:
        _require_writable(store)
    cores = workers or max(1, (os.cpu_count() or 1) // 2)
    for found in _run(todo, cores, ray, retries):
        finished(found)
    done.sort(key=lambda one: one.name)
    return PackedAll(store.url, str(base), done, skipped, time.monotonic() - start)


def pack_into(
    base: str | Path,
    variant: str | Path,
    store: Store | str | Path,
    *,
    name: str | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> PackedInto:
    """Pack one fine-tune and add it to a store.

    Args:
        base: model directory, or a model's name in the store.
        variant: model directory of the fine-tune.
        store: or its URL.
        name: in the store; that of the variant's directory where not given.
        out: keep the pack in this file too.
        settings: of `pack`.

    Raises:
        StoreError: no store, no such base, or no name for the store.
        CheckpointError, BudgetError, CodecError, CalibrationError, OutputError: as `pack`.
    """
    store = store if isinstance(store, Store) else Store.open(str(store))
    name = check_name(name or Path(variant).resolve().name)
    here = _local(store, base_of(store, base))
    _require_writable(store)
    if out is not None:
        return PackedInto(*pack_and_add(here, Path(variant), Path(out), store, name, keep=True, **settings))
    with tempfile.TemporaryDirectory(prefix="kinfold-", ignore_cleanup_errors=True) as scratch:
        file = Path(scratch) / f"{name}.kin.safetensors"
        return PackedInto(*pack_and_add(here, Path(variant), file, store, name, **settings))


def base_of(store: Store, base: str | Path | None) -> Path | str:
    """The base as a model directory, or its name in the store; None is the store's only model.

    Raises:
        StoreError: it is neither, or the store has none, or several.
    """
    if base is not None and (Path(base).exists() or os.sep in str(base)):
        return Path(base).absolute()
    models = [entry.name for entry in store.ls() if entry.kind == "model"]
    has = f"has {len(models)} models{': ' if models else ''}{', '.join(sorted(models)[:9])}"
    if base is None and len(models) != 1:
        raise StoreError(
            f"no base is given, and the store at `{store.url}` {has}",
            hint="pass --base with a model directory or a name in the store, or first: kinfold store add BASE",
        )
    name = models[0] if base is None else str(base)
    if parse(name).name not in models:
        raise StoreError(
            f"`{name}` is neither a model directory nor a model in the store at `{store.url}`, which {has}",
            hint=f"kinfold store ls --store {store.url}",
        )
    return name


def _require_writable(store: Store) -> None:
    """Refuse a store that cannot be written before the work is done, not after.

    Raises:
        OutputError: it cannot.
    """
    with writing(store._place.backend, "pack"):
        pass


def _local(store: Store, base: Path | str) -> Path:
    return store.path(base) if isinstance(base, str) else base


def _check_workers(workers: int | None, ray: str | None, retries: int) -> None:
    if workers is not None and ray is not None:
        raise StoreError(f"{workers} workers here, or a Ray cluster at `{ray}`; not both", hint="leave one of them out")
    if workers is not None and workers < 1:
        raise StoreError(f"workers are processes at a time, at least 1, got {workers}", hint="--workers 1")
    if retries < 0:
        raise StoreError(f"retries is how often a failure is tried again, 0 or more, got {retries}", hint="retries=0")


def _scan(folder: Path) -> tuple[list[Path], list[str]]:
    """Model directories in a folder, and the names of other folders there; hidden ones are neither."""
    if not folder.is_dir():
        raise CheckpointError(
            f"`{folder}` is no folder; one with model directories is wanted", hint=f"ls {folder.absolute().parent}"
        )
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    models = [path for path in folders if (path / "config.json").is_file() and any(path.glob("*.safetensors"))]
    if not models:
        alone = any(folder.glob("*.safetensors"))
        raise StoreError(
            f"no folder directly in `{folder}` is a model directory, with config.json and *.safetensors",
            hint=f"kinfold pack BASE {folder} --store URL packs this one" if alone else f"ls {folder}",
        )
    return models, [path.name for path in folders if path not in models]


def _under_another_name(base: Path | str, directory: Path, store: Store) -> str:
    command = ["kinfold", "pack", str(base), str(directory), "--store", store.url, "--name", "NAME"]
    return f"{shlex.join(command)}, or rename the folder"


def _there(store: Store, entry: Entry) -> There | None:
    if entry.kind != "pack":
        return None
    made_of = entry.fingerprint, entry.base_fingerprint, store.manifest(entry.name).report.get("recipe")
    return There(entry.version, entry.bytes, made_of)


def _run(jobs: list[Job], workers: int, ray: str | None, retries: int) -> Iterator[Packed]:
    """Outcomes as they come; what failed is tried again at the end."""
    if not jobs:
        return
    with board("pack", len(jobs)) as shown:
        for attempt in range(retries + 1):
            outcomes = run_on_ray(run_job, jobs, ray) if ray else run_here(run_job, jobs, workers, shown.running)
            again = []
            for job, outcome in outcomes:
                found = failure(job.name, outcome, _DIED) if isinstance(outcome, str) else outcome
                if found.status == "failed" and attempt < retries:
                    again.append(job)
                    continue
                shown.finished(job.name)
                yield found
            jobs = again
            if not jobs:
                return


_DIED = "run the same command again; where memory is short, with fewer --workers"
