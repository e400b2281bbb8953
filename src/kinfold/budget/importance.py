"""Fisher information and mean gradient of each matrix, from a few calibration rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import save_file

from kinfold.codec import Importance
from kinfold.report.progress import progress
from kinfold.tasks import Row, Task, divergence, drawn_loss, labelled_loss, read_rows


@dataclass(frozen=True)
class Calibration:
    """A small set of inputs.

    Attributes:
        rows: each with `text`, `input_ids` or `prompt` and `completion`; `label` where `labels` is `data`.
        labels: whose answers the Fisher information is taken at: drawn from the `model`, or the `data`'s.
    """

    rows: list[Row] = field(repr=False)
    labels: Literal["model", "data"] = "model"

    @classmethod
    def read(cls, path: str | Path, labels: Literal["model", "data"] = "model") -> Calibration:
        """Read a JSONL file; see `kinfold.tasks.read_rows` for what it raises."""
        return cls(read_rows(path), labels)

    @property
    def digest(self) -> str:
        """BLAKE3 (32 hex digits) of the rows: recorded in the pack, so that a rerun can be told apart."""
        return blake3(repr((self.labels, self.rows)).encode()).hexdigest()[:32]


def targets(variant: Task, calibration: Calibration) -> list[torch.Tensor]:
    """The variant's output for every row: what a restored model should answer."""
    with torch.no_grad():
        return [variant.output(row) for row in calibration.rows]


def answers(variant: Task, calibration: Calibration) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Token ids of the rows, those of one length together, and the variant's outputs for them."""
    batches = variant.batches(calibration.rows)
    with torch.no_grad():
        return batches, [variant.outputs(ids) for ids in batches]


def measure(
    task: Task,
    names: Sequence[str],
    calibration: Calibration,
    wanted: Sequence[torch.Tensor],
    seed: int,
    path: Path,
) -> None:
    """Write Fisher and gradient of every named matrix, float32, to the safetensors file `path`.

    Rows are taken one at a time: the square of a batch's gradient is not the Fisher information. The
    gradient is that of KL(variant || model); the Fisher that of the model's own answers, or of the
    data's labels.

    Args:
        task: the model at the point where gradients are taken.
        names: parameters, as the checkpoint names them.
        calibration: the rows.
        wanted: the variant's output for each row.
        seed: of the answers drawn from the model.
        path: where the result goes; twice the bytes of the matrices in float32.
    """
    parameters = task.parameters(names)
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    sums = {f"{name}#{kind}": torch.zeros_like(p) for name, p in parameters.items() for kind in ("fisher", "gradient")}
    generator = torch.Generator().manual_seed(seed)
    with progress("calibrate", len(calibration.rows)) as advance:
        for row, target in zip(calibration.rows, wanted, strict=True):
            output = task.output(row)
            own = calibration.labels == "model"
            loss = drawn_loss(output, task.has_logits, generator) if own else labelled_loss(output, row)
            away = divergence(target, output, task.has_logits)
            for kind, scalar in (("fisher", loss), ("gradient", away)):
                gradients = torch.autograd.grad(
                    scalar, list(parameters.values()), retain_graph=kind == "fisher", allow_unused=True
                )
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        sums[f"{name}#{kind}"] += gradient.square() if kind == "fisher" else gradient
            advance(1)
    save_file({name: total / len(calibration.rows) for name, total in sums.items()}, path)


def read_importance(path: Path, name: str, shape: tuple[int, ...]) -> Importance:
    """One matrix's importance from the file that `measure` wrote, as (n, d) matrices."""
    with safe_open(path, "pt") as file:
        fisher, gradient = (file.get_tensor(f"{name}#{kind}")[: shape[0]] for kind in ("fisher", "gradient"))
    return Importance(gradient.reshape(shape[0], -1), fisher.reshape(shape[0], -1))


def mean_divergence(task: Task, calibration: Calibration, wanted: Sequence[torch.Tensor]) -> float:
    """Mean KL(variant || model) over the rows, nats."""
    with torch.no_grad():
        total = sum(
            float(divergence(target, task.output(row), task.has_logits))
            for row, target in zip(calibration.rows, wanted, strict=True)
        )
    return total / len(calibration.rows)
