"""Processes that start at once: one imports kinfold and forks for each job, and never works itself.

A process that has hashed on several threads must not fork, so pytest's own cannot.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """A forked process; what it prints goes to `out`."""

    zygote: Zygote
    pid: int
    out: Path

    def lines(self) -> list[str]:
        """Lines printed so far, whole ones only."""
        text = self.out.read_text()
        assert "Traceback" not in text, text
        return text.split("\n")[:-1]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Exit status, negative the signal."""
        return self.zygote.ask({"wait": self.pid})

    def wait_for_lines(self, count: int, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while len(self.lines()) < count:
            assert time.monotonic() < until, self.out.read_text()
            time.sleep(0.005)


class Zygote:
    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, code: str, arguments: Sequence[Any] = ()) -> Job:
        """Run Python code in a new process, `arguments` as `sys.argv[1:]`."""
        self.jobs += 1
        out = self.folder / f"job{self.jobs}.txt"
        out.touch()
        pid = self.ask({"code": code, "arguments": [str(one) for one in arguments], "out": str(out)})
        return Job(self, pid, out)

    def ask(self, question: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate("")


def _fork(question: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        handle = os.open(question["out"], os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = ["job", *question["arguments"]]
        exec(compile(question["code"], "job", "exec"), {"__name__": "job"})
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _main() -> None:
    import kinfold.store  # noqa: F401
    from kinfold.store import add, copy, gc, verify  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:
            answer = _fork(question)
        sys.__stdout__.write(f"{answer}\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    _main()
