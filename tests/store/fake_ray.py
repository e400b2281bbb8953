"""A ray of this process: what `run_on_ray` uses of it, so that jobs run here, one after the other."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class FakeRay(ModuleType):
    """What `run_on_ray` uses of ray, in this process; a task that dies raises as ray's would."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.calls: list[tuple[str, Any]] = []
        self.initialized = False
        self.refuse: Exception | None = None

        class RayError(Exception):
            pass

        self.exceptions = SimpleNamespace(RayError=RayError)

    def is_initialized(self) -> bool:
        return self.initialized

    def init(self, **keywords: Any) -> None:
        if self.refuse:
            raise self.refuse
        self.calls.append(("init", keywords))
        self.initialized = True

    def shutdown(self) -> None:
        self.calls.append(("shutdown", None))
        self.initialized = False

    def remote(self, **keywords: Any) -> Any:
        self.calls.append(("remote", keywords))
        return lambda function: SimpleNamespace(remote=lambda *given: _Promise(function, given))

    def wait(self, promises: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return promises[-num_returns:], promises[:-num_returns]  # not in the order they were begun

    def get(self, promise: Any) -> Any:
        if getattr(promise.given[1], "do", "") == "kill":
            raise self.exceptions.RayError("The worker died unexpectedly\nwhile it ran")
        return promise.function(*promise.given)


class _Promise:
    def __init__(self, function: Any, given: Any) -> None:
        self.function, self.given = function, given


def install(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Make `import ray` give a fake one, and leave the threads of this process alone."""
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("kinfold.store.workers.use_cores", lambda count: None)
    return ray
