"""Processes of their own: what they say, how they die, and that nothing else dies with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_ray import FakeRay, install

from kinfold.codec.threads import ordered_map
from kinfold.errors import MissingExtraError, StoreError
from kinfold.report.progress import progress
from kinfold.store.workers import _how, run_here, run_on_ray


@dataclass(frozen=True)
class Task:
    name: str
    do: str = "answer"


def work(task: Task, scratch: Path) -> tuple[str, int]:
    assert scratch.is_dir()
    if task.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.do == "count":
        with progress("counting", 30) as advance, progress("within", 5):
            for _ in range(3):
                time.sleep(0.11)
                advance(10)
    if task.do == "cores":
        return task.name, torch.get_num_threads() * len({*ordered_map(lambda _: _thread(), range(20))})
    return task.name, os.getpid()


def _thread() -> int:
    import threading

    time.sleep(0.01)
    return threading.get_ident()


def quiet(*_: object) -> None:
    pass


def test_a_process_that_dies_takes_its_own_job_only() -> None:
    tasks = [Task("a"), Task("killed", "kill"), Task("b"), Task("c")]
    found = {task.name: outcome for task, outcome in run_here(work, tasks, 2, quiet)}
    assert found.keys() == {task.name for task in tasks}
    answers = {name: outcome for name, outcome in found.items() if not isinstance(outcome, str)}
    assert {name: answer[0] for name, answer in answers.items()} == {name: name for name in "abc"}
    pids = {answer[1] for answer in answers.values()}
    assert len(pids) <= 2
    assert os.getpid() not in pids
    assert "killed" in found["killed"]
    assert "memory" in found["killed"]


def test_how_a_process_died() -> None:
    assert _how(7) == "its process ended with exit code 7"
    assert _how(-signal.SIGABRT) == "its process died of SIGABRT"


def test_progress_is_heard_and_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    heard: list[tuple[str, str, int, int]] = []
    tasks = [Task("one", "count"), Task("two", "cores")]
    outcomes = dict(run_here(work, tasks, 1, lambda *facts: heard.append(facts)))
    assert heard[0] == ("one", "counting", 0, 30)
    assert heard[-1] == ("one", "counting", 30, 30)
    assert {label for _, label, _, _ in heard} == {"counting"}  # not of what is within it
    assert outcomes[tasks[1]] == ("two", 2 * 2)  # threads of torch, and of `ordered_map`


def test_who_stops_listening_ends_the_processes_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcomes = run_here(work, [Task("a"), Task("b"), Task("c")], 1, quiet)
    _, (_, pid) = next(outcomes)  # type: ignore[misc]
    assert list(tmp_path.iterdir())
    outcomes.close()  # type: ignore[attr-defined]
    assert not _alive(pid)
    assert list(tmp_path.iterdir()) == []


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


SCRIPT = """
import os, sys, time
from pathlib import Path
from kinfold.store.workers import run_here
sys.path.insert(0, {here!r})
from test_workers import Task, quiet
from stand_still import stand_still
if __name__ == "__main__":
    list(run_here(stand_still, [Task("a"), Task("b")], 2, quiet))
"""
STAND_STILL = """
import os, time
def stand_still(task, scratch):
    (scratch / f"{task.name}.pid").write_text(str(os.getpid()))
    time.sleep(600)
"""


def test_processes_end_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "stand_still.py").write_text(STAND_STILL)
    (tmp_path / "script.py").write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = str(Path(sys.modules["kinfold"].__file__ or "").parents[1])
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": source}
    caller = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment)
    pids = _eventually(
        lambda: [int(p.read_text() or 0) for p in scratch.glob("*/*.pid")], lambda found: len(found) == 2
    )
    assert all(_alive(pid) for pid in pids)
    caller.kill()
    caller.wait()
    assert not _eventually(lambda: [pid for pid in pids if _running(pid)], lambda found: not found)
    assert not _eventually(lambda: list(scratch.iterdir()), lambda found: not found)


def _running(pid: int) -> bool:
    """Whether a process runs; one without a parent to bury it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _eventually(look: Any, enough: Any) -> Any:
    for _ in range(600):
        found = look()
        if enough(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"still {found}")


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return install(monkeypatch)


def test_ray_runs_every_job(fake_ray: FakeRay) -> None:
    found = {
        task.name: outcome for task, outcome in run_on_ray(work, [Task("a"), Task("x", "kill"), Task("b")], "local")
    }
    assert found["a"] == ("a", os.getpid())
    assert found["b"] == ("b", os.getpid())
    assert "on Ray: The worker died unexpectedly" in found["x"]
    assert fake_ray.calls[0][0] == "init"
    assert fake_ray.calls[0][1]["address"] == "local"
    assert fake_ray.calls[-1][0] == "shutdown"


def test_a_ray_that_was_started_by_others_goes_on(fake_ray: FakeRay) -> None:
    fake_ray.initialized = True
    assert len(list(run_on_ray(work, [Task("a")], "auto"))) == 1
    assert [name for name, _ in fake_ray.calls] == ["remote"]


def test_no_cluster(fake_ray: FakeRay) -> None:
    fake_ray.refuse = ConnectionError("nobody answers")
    with pytest.raises(StoreError, match="no Ray cluster at `ray://nowhere`: nobody answers"):
        list(run_on_ray(work, [Task("a")], "ray://nowhere"))


def test_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught:
        list(run_on_ray(work, [Task("a")], "local"))
    assert caught.value.hint == "pip install 'kinfold[ray]'"
