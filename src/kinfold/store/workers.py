"""Many jobs in processes of their own, here or on a Ray cluster; one that dies takes no other along."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn, Protocol, TypeVar

from kinfold.codec.threads import use_cores
from kinfold.errors import MissingExtraError, StoreError
from kinfold.report.progress import told


class Named(Protocol):
    @property
    def name(self) -> str: ...


J = TypeVar("J", bound=Named)
R = TypeVar("R")
Work = Callable[[J, Path], R]  # a job, and a folder for what it writes on the way
Outcome = tuple[J, R | str]  # a string tells how the process died
Watch = Callable[[str, str, int, int], None]  # the job's name, label, done, total

_SPAWN = get_context("spawn")  # a fork would take the threads of torch along, half alive


def run_here(work: Work[J, R], jobs: Sequence[J], workers: int, watch: Watch) -> Iterator[Outcome[J, R]]:
    """Run jobs in `workers` spawned processes that share out the cores; each outcome as it comes.

    A process that dies is replaced, and only its own job is lost. If the calling process is killed, they
    end too, at once.

    Args:
        work: a function of a module, called with a job and a scratch folder; it must not raise.
        jobs: with names, for `watch`.
        workers: processes at a time.
        watch: hears of the progress of each.
    """
    waiting = deque(jobs)
    idle: list[_Process] = []
    running: dict[Any, tuple[_Process, J]] = {}
    cores = max(1, (os.cpu_count() or 1) // workers)
    with tempfile.TemporaryDirectory(prefix="kinfold-", ignore_cleanup_errors=True) as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    process = idle.pop() if idle else _Process(Path(scratch), cores)
                    job = waiting.popleft()
                    running[process.pipe] = process, job
                    process.begin(work, job)
                for pipe in connection.wait(list(running)):
                    process, job = running[pipe]
                    kind, *facts = process.hear()
                    if kind == "progress":
                        watch(job.name, *facts)
                        continue
                    del running[pipe]
                    if kind == "done":
                        idle.append(process)
                    yield job, facts[0]
        finally:
            for process in [*idle, *(process for process, _ in running.values())]:
                process.kill()


class _Process:
    """A process and a pipe to it."""

    def __init__(self, scratch: Path, cores: int) -> None:
        self.pipe, there = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(there, scratch, cores), daemon=True)
        self._process.start()
        there.close()  # the process alone holds it open, so that its death is heard

    def begin(self, work: Work[J, R], job: J) -> None:
        with suppress(OSError):  # it died while it waited: `hear` tells
            self.pipe.send((work, job))

    def hear(self) -> tuple[Any, ...]:
        """("progress", label, done, total), ("done", result) or ("died", how)."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            self.pipe.close()
            return "died", _how(self._process.exitcode or 0)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _how(code: int) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        return "its process was killed, as the system does when memory runs out"
    if code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def _serve(pipe: Any, scratch: Path, cores: int) -> None:
    """The life of a process: jobs in, progress and results out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller ends this process
    Thread(target=_end_with_the_caller, args=(scratch,), daemon=True).start()
    use_cores(cores)
    with suppress(EOFError, OSError):
        while True:
            work, job = pipe.recv()
            with told(lambda *facts: pipe.send(("progress", *facts))):
                result = work(job, scratch)
            pipe.send(("done", result))


def _end_with_the_caller(scratch: Path) -> NoReturn:
    """A caller that is killed cannot end its processes, nor remove what they wrote."""
    caller = parent_process()
    assert caller is not None
    caller.join()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def run_on_ray(work: Work[J, R], jobs: Sequence[J], address: str) -> Iterator[Outcome[J, R]]:
    """Run jobs on a Ray cluster, one core each; each outcome as it comes. Everything they name must be reachable there.

    Args:
        work: as in `run_here`.
        jobs: likewise.
        address: of the cluster; `auto` for the one this machine is part of, `local` starts one here.

    Raises:
        MissingExtraError: ray is not installed.
        StoreError: there is no cluster.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as cause:
        raise MissingExtraError("ray", "ray") from cause
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as cause:
            raise StoreError(f"no Ray cluster at `{address}`: {cause}", hint="pass --workers N to pack here") from cause
    try:
        remote = ray.remote(num_cpus=1, max_retries=0)(_alone)
        running = {remote.remote(work, job): job for job in jobs}
        while running:
            for finished in ray.wait(list(running), num_returns=1)[0]:
                job = running.pop(finished)
                try:
                    outcome = ray.get(finished)
                except ray.exceptions.RayError as error:  # a worker or its node died
                    outcome = f"on Ray: {str(error).splitlines()[0]}"
                yield job, outcome
    finally:
        if ours:
            ray.shutdown()


def _alone(work: Work[J, R], job: J) -> R:
    use_cores(1)
    with tempfile.TemporaryDirectory(prefix="kinfold-", ignore_cleanup_errors=True) as scratch:
        return work(job, Path(scratch))
