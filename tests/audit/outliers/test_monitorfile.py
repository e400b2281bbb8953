"""Files of a monitor that are damaged or not one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from kinfold.audit.outliers import RequestMonitor
from kinfold.errors import AuditError

Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Facts]:
    """Arrays and facts of a monitor with all kinds of terms: a head beside neighbours."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    RequestMonitor(filter="knn").fit(generator.normal(size=(60, 4)), None, generator.normal(size=(30, 4)), None).save(
        path
    )
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    return load_file(path), json.loads(metadata["kinfold.monitor"])


def write(path: Path, arrays: Arrays, facts: Facts) -> Path:
    save_file(arrays, path, {"kinfold.monitor": json.dumps(facts)})
    return path


def test_the_safetensors_library_writes_the_same_content(saved: tuple[Arrays, Facts], tmp_path: Path) -> None:
    arrays, facts = saved
    assert sorted(arrays) == [
        "head.bias", "head.reference", "head.weight", "knn.folds", "knn.reference", "knn.seen", "reference_scores",
    ]  # fmt: skip
    loaded = RequestMonitor.load(write(tmp_path / "m", arrays, facts))
    np.testing.assert_array_equal(loaded.reference_scores_, arrays["reference_scores"])


HARM: dict[str, Callable[[Arrays, Facts], object]] = {
    "version": lambda a, f: f.update(version=9),
    "no version": lambda a, f: f.pop("version"),
    "a list of terms": lambda a, f: f.update(terms="head"),
    "no terms": lambda a, f: f.update(terms=[]),
    "unknown terms": lambda a, f: f.update(terms=["medix"]),
    "terms twice": lambda a, f: f.update(terms=["head", "head", "knn"]),
    "fewer terms": lambda a, f: f.update(terms=["head"]),
    "no parameters": lambda a, f: f.pop("params"),
    "parameters of another": lambda a, f: f.update(params={"depth": 3}),
    "parameters out of range": lambda a, f: f["params"].update(fdr=7),
    "columns": lambda a, f: f.update(columns=5),
    "columns in words": lambda a, f: f.update(columns="4"),
    "variant": lambda a, f: f.update(variant=None),
    "an array too many": lambda a, f: a.update(more=np.ones(3)),
    "an array too few": lambda a, f: a.pop("head.bias"),
    "dtype": lambda a, f: a.update({"head.weight": a["head.weight"].astype(np.float32)}),
    "shape": lambda a, f: a.update({"knn.seen": a["knn.seen"][:7]}),
    "empty": lambda a, f: a.update({k: a[k][:0] for k in a if k not in ("head.weight", "head.bias")}),
    "not finite": lambda a, f: a["head.weight"].__setitem__(0, np.nan),
    "not sorted": lambda a, f: a.update(reference_scores=a["reference_scores"][::-1].copy()),
    "one fold": lambda a, f: a.update({"knn.folds": np.zeros(60)}),
}


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused(name: str, saved: tuple[Arrays, Facts], tmp_path: Path) -> None:
    arrays, facts = {key: value.copy() for key, value in saved[0].items()}, json.loads(json.dumps(saved[1]))
    HARM[name](arrays, facts)
    with pytest.raises(AuditError, match="no monitor that was saved"):
        RequestMonitor.load(write(tmp_path / "m", arrays, facts))


def test_other_files_are_refused(saved: tuple[Arrays, Facts], tmp_path: Path) -> None:
    save_file(saved[0], tmp_path / "bare")
    with pytest.raises(AuditError, match="no monitor that was saved"):
        RequestMonitor.load(tmp_path / "bare")
    (tmp_path / "text").write_text("hello")
    for name in ("text", "nowhere"):
        with pytest.raises(AuditError, match="no valid safetensors file"):
            RequestMonitor.load(tmp_path / name)
