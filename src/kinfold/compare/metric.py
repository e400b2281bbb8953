"""The user's own metric: found by name, called on model directories, and held to a finite number."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from kinfold.errors import KinfoldError, MetricError

EXAMPLE = "--metric package.module:function"


@dataclass(frozen=True)
class Metric:
    """A function of a model directory; higher is better.

    Attributes:
        name: `package.module:function`.
        function: takes the directory's path and gives a number.
    """

    name: str
    function: Callable[[Path], float]

    @classmethod
    def find(cls, given: str | Callable[[Path], float]) -> Metric:
        """A function as it is, or the one that `package.module:function` names.

        Raises:
            MetricError: the text is not of that form, or there is no such function.
        """
        if not isinstance(given, str):
            return cls(f"{given.__module__}:{getattr(given, '__qualname__', type(given).__name__)}", given)
        module, _, name = given.partition(":")
        if not module or not name:
            raise MetricError(
                f"`{given}` is no metric; give a function of a model directory as module:function", hint=EXAMPLE
            )
        try:
            there = import_module(module)
        except Exception as cause:  # the user's module may fail in any way
            raise MetricError(
                f"cannot import `{module}` for the metric: {type(cause).__name__}: {cause}",
                hint=shlex.join(["python", "-c", f"import {module}"]),
            ) from cause
        if not callable(getattr(there, name, None)):
            near = difflib.get_close_matches(name, [key for key, value in vars(there).items() if callable(value)], 1)
            raise MetricError(
                f"`{module}` has no function `{name}`", hint=f"--metric {module}:{near[0]}" if near else EXAMPLE
            )
        return cls(given, getattr(there, name))

    def __call__(self, directory: Path) -> float:
        """The score of a model directory.

        Raises:
            MetricError: the function raised, or gave no finite number.
        """
        try:
            given = self.function(directory)
        except KinfoldError:
            raise  # it says itself what to do
        except Exception as cause:  # the user's function may fail in any way
            raise MetricError(
                f"the metric `{self.name}` failed on `{directory}`: {type(cause).__name__}: {cause}",
                hint="call it on the variant's directory yourself; it gets a pathlib.Path",
            ) from cause
        try:
            score = float(given)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise MetricError(
                f"the metric `{self.name}` gave {given!r} for `{directory}`; a finite number is wanted, the higher "
                "the better"
            )
        return score
