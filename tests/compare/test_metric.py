"""The user's metric: found by name, held to a finite number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kinfold.compare.metric import Metric
from kinfold.errors import DataError, MetricError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_function_is_found_by_name(module: Path) -> None:
    (module / "own_metrics.py").write_text("level = 3\ndef accuracy(directory):\n    return len(directory.name)\n")
    metric = Metric.find("own_metrics:accuracy")
    assert metric.name == "own_metrics:accuracy"
    assert metric(Path("abc")) == 3.0
    with pytest.raises(MetricError, match="no function `acuracy`") as error:
        Metric.find("own_metrics:acuracy")
    assert error.value.hint == "--metric own_metrics:accuracy"
    with pytest.raises(MetricError, match="no function `level`"):
        Metric.find("own_metrics:level")


def test_a_callable_is_taken_as_it_is() -> None:
    def accuracy(directory: Path) -> Any:
        return torch.tensor(0.5)

    metric = Metric.find(accuracy)
    assert metric.name.endswith("accuracy")
    assert metric(Path("a")) == 0.5


@pytest.mark.parametrize("given", ["accuracy", "accuracy:", ":accuracy", ""])
def test_what_names_no_function(given: str) -> None:
    with pytest.raises(MetricError, match="module:function") as error:
        Metric.find(given)
    assert error.value.hint == "--metric package.module:function"


def test_a_module_that_cannot_be_imported(module: Path) -> None:
    with pytest.raises(MetricError, match="ModuleNotFoundError: No module named 'nowhere_at_all'"):
        Metric.find("nowhere_at_all:f")
    (module / "broken_metrics.py").write_text("1 / 0\n")
    with pytest.raises(MetricError, match="ZeroDivisionError") as error:
        Metric.find("broken_metrics:f")
    assert error.value.hint == "python -c 'import broken_metrics'"


@pytest.mark.parametrize("given", [float("nan"), float("inf"), None, "good", [1.0, 2.0]])
def test_only_a_finite_number_counts(given: Any) -> None:
    with pytest.raises(MetricError, match="a finite number is wanted"):
        Metric("m:f", lambda _: given)(Path("a"))


def test_a_metric_that_fails_is_named_with_its_reason() -> None:
    def fails(directory: Path) -> float:
        raise ValueError("no test rows")

    with pytest.raises(MetricError, match="`m:f` failed on `a`: ValueError: no test rows"):
        Metric("m:f", fails)(Path("a"))


def test_errors_of_our_own_pass_with_their_hint() -> None:
    def fails(directory: Path) -> float:
        raise DataError("no package", hint="pip download it")

    with pytest.raises(DataError, match="no package"):
        Metric("m:f", fails)(Path("a"))
