"""Fisher and gradient against the closed form of a linear model, and against finite differences."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kinfold.budget import Calibration
from kinfold.budget.importance import mean_divergence, measure, read_importance, targets
from kinfold.errors import CalibrationError
from kinfold.tasks import Task

CLASSES, WIDTH, WORDS = 3, 4, 6


class Linear(nn.Module):
    """logits = W e, where e is the sum of the tokens' fixed embeddings."""

    base_model_prefix = "core"
    config = SimpleNamespace()

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(WORDS, WIDTH, _weight=torch.randn(WORDS, WIDTH, generator=generator))
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH, generator=generator))
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.base_model = None  # a head stands on something else, so the output is logits

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        assert attention_mask.all()
        return SimpleNamespace(logits=self.embedding(input_ids).sum(1) @ self.weight.T)


ROWS = [{"input_ids": [0, 1], "label": 2}, {"input_ids": [3], "label": 0}, {"input_ids": [5, 5, 2], "label": 1}]


@pytest.fixture
def task() -> Task:
    return Task(Linear().eval(), None, None)


def closed_form(task: Task, wanted: list[torch.Tensor], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(Fisher, gradient) of W in float64: rows of (p - y) e^T and (p - t) e^T, squared and not."""
    weight, table = (p.detach().double().numpy() for p in (task.model.weight, task.model.embedding.weight))
    fisher, gradient = np.zeros_like(weight), np.zeros_like(weight)
    for row, target, label in zip(ROWS, wanted, labels, strict=True):
        e = table[row["input_ids"]].sum(0)
        p = np.exp(weight @ e) / np.exp(weight @ e).sum()
        t = np.exp(target.double().numpy()) / np.exp(target.double().numpy()).sum()
        fisher += np.outer(p - np.eye(CLASSES)[label], e) ** 2 / len(ROWS)
        gradient += np.outer(p - t, e) / len(ROWS)
    return fisher, gradient


WANTED = [torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([-2.0, 1.0, 1.0])]


def test_labels_of_the_data(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "i.safetensors"
    measure(task, ["weight", "unused"], Calibration(ROWS, "data"), WANTED, 0, path)
    found = read_importance(path, "weight", (CLASSES, WIDTH))
    fisher, gradient = closed_form(task, WANTED, [row["label"] for row in ROWS])
    assert np.allclose(found.fisher.numpy(), fisher, rtol=1e-5, atol=1e-7)
    assert np.allclose(found.gradient.numpy(), gradient, rtol=1e-5, atol=1e-7)
    unused = read_importance(path, "unused", (2, 2))
    assert not unused.fisher.any()
    assert not unused.gradient.any()


def test_labels_of_the_model_are_drawn_from_its_output(task: Task, tmp_path: Path) -> None:
    """One row at a time, every Fisher is that of some label, and the labels come as often as p says."""
    row, target = ROWS[0], WANTED[0]
    table = task.model.embedding.weight.detach().double().numpy()
    e = table[row["input_ids"]].sum(0)
    logits = task.model.weight.detach().double().numpy() @ e
    p = np.exp(logits) / np.exp(logits).sum()
    candidates = [np.outer(p - np.eye(CLASSES)[label], e) ** 2 for label in range(CLASSES)]
    seen = np.zeros(CLASSES)
    for seed in range(120):
        measure(task, ["weight"], Calibration([row]), [target], seed, tmp_path / "i")
        found = read_importance(tmp_path / "i", "weight", (CLASSES, WIDTH)).fisher.numpy()
        distances = [np.abs(found - candidate).max() for candidate in candidates]
        assert min(distances) < 1e-5
        seen[int(np.argmin(distances))] += 1
    assert np.allclose(seen / 120, p, atol=0.15)


def test_the_seed_decides_the_drawn_labels(task: Task, tmp_path: Path) -> None:
    results = []
    for seed in (1, 1, 2, 3, 4, 5):
        measure(task, ["weight"], Calibration(ROWS), WANTED, seed, tmp_path / "i")
        results.append(read_importance(tmp_path / "i", "weight", (CLASSES, WIDTH)).fisher.numpy().tobytes())
    assert results[0] == results[1]
    assert len(set(results)) > 1


def test_gradient_against_finite_differences(tmp_path: Path, classifier_pair: Any) -> None:
    """d KL(variant || model) / d w on a real encoder in float64, at entries of three matrices."""
    task = Task.load(classifier_pair.variant)
    task.model.double()
    rows = [{"input_ids": [5, 17, 3, 90]}, {"input_ids": [41, 2]}]
    calibration = Calibration(rows)
    wanted = [logits + torch.tensor([0.5, -0.5, 0.2]).double() for logits in targets(task, calibration)]
    names = ["bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.0.attention.self.value.weight"]
    names.append("bert.embeddings.word_embeddings.weight")
    measure(task, names, calibration, wanted, 0, tmp_path / "i")
    entries = [(3, 7), (11, 30), (17, 5)]
    for name, entry in zip(names, entries, strict=True):
        parameter = task.parameters([name])[name].data
        found = float(read_importance(tmp_path / "i", name, tuple(parameter.shape)).gradient[entry])
        step, values = 1e-5, []
        for sign in (1, -1):
            parameter[entry] += sign * step
            values.append(mean_divergence(task, calibration, wanted))
            parameter[entry] -= sign * step
        assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)
        assert abs(found) > 1e-6


def test_mean_divergence(task: Task) -> None:
    total = 0.0
    for row, target in zip(ROWS, WANTED, strict=True):
        output = task.output(row).detach().double().numpy()
        p, q = (np.exp(x) / np.exp(x).sum() for x in (target.double().numpy(), output))
        total += float((p * np.log(p / q)).sum())
    assert mean_divergence(task, Calibration(ROWS), WANTED) == pytest.approx(total / 3, rel=1e-5)
    own = targets(task, Calibration(ROWS))
    assert mean_divergence(task, Calibration(ROWS), own) == pytest.approx(0, abs=1e-7)


def test_a_missing_label_is_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="label None"):
        measure(task, ["weight"], Calibration([{"input_ids": [1]}], "data"), WANTED[:1], 0, tmp_path / "i")


def test_importance_is_read_as_a_matrix_of_the_rows_asked_for(tmp_path: Path) -> None:
    fisher, gradient = torch.arange(120.0).reshape(5, 2, 3, 4), -torch.arange(120.0).reshape(5, 2, 3, 4)
    save_file({"x#fisher": fisher, "x#gradient": gradient}, tmp_path / "i")
    found = read_importance(tmp_path / "i", "x", (4, 2, 3, 4))
    assert torch.equal(found.fisher, fisher[:4].reshape(4, 24))
    assert torch.equal(found.gradient, gradient[:4].reshape(4, 24))


def test_the_digest_names_rows_and_labels(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"input_ids": [1]}\n{"text": "a"}\n')
    read = Calibration.read(tmp_path / "r.jsonl")
    assert read == Calibration([{"input_ids": [1]}, {"text": "a"}])
    others = [
        Calibration.read(tmp_path / "r.jsonl", "data"),
        Calibration([{"text": "a"}, {"input_ids": [1]}]),
        Calibration([{"input_ids": [1]}, {"text": "b"}]),
    ]
    assert len({read.digest, *(other.digest for other in others)}) == 4
    assert len(read.digest) == 32
