"""What an output is worth: the kind of a model, the loss of a row, how far two outputs are apart.

Two outputs are compared by the KL divergence of the distributions they stand for: categorical for logits, Gaussian of
unit variance for hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from kinfold.errors import CalibrationError, KinfoldError
from kinfold.tasks.model import Task
from kinfold.tasks.rows import Row
from kinfold.tasks.tokens import is_causal

TASKS = ("auto", "causal-lm", "sequence-classification", "pooled-head")


class Answers(nn.Module):
    """A task's model and head as one module: token ids (rows, tokens) to outputs, as `Task.outputs`."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.head: nn.Linear | None = None
        if task.head is not None:
            weight, bias = task.head
            head = self.head = nn.Linear(weight.shape[1], weight.shape[0])
            head.load_state_dict({"weight": weight, "bias": bias})
        self._task = replace(task, head=None)
        self.requires_grad_(False)  # derivatives are taken by outputs of modules, never by weights

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        outputs = self._task.outputs(ids)
        return outputs if self.head is None else self.head(outputs)


def kind_of(model: Answers, wanted: str, error: type[KinfoldError]) -> str:
    """Which of `TASKS` a model is for: `causal-lm`, `sequence-classification` or `pooled-head`.

    Raises:
        error: its class has no loss of a row, or another one than of one class among several, or it is not for the
            task that is wanted.
    """
    name = type(model.model).__name__
    if model.head is not None:
        kind = "pooled-head"
    elif is_causal(model.model):
        kind = "causal-lm"
    elif name.endswith("ForSequenceClassification"):
        kind = "sequence-classification"
    else:
        raise error(
            f"no loss of a row is known for {name}; causal language models, sequence classifiers, and encoders with "
            "`head.weight` and `head.bias` beside them are known"
        )
    config = model.model.config
    if kind == "sequence-classification":
        other = config.problem_type
        if config.num_labels == 1 or other in ("regression", "multi_label_classification"):
            what = f"problem_type {other!r}" if other else "one output"
            raise error(f"{name} has {what}; the loss is that of one class among two or more")
    if wanted not in ("auto", kind):
        raise error(f"task {wanted!r} was asked for, the variant is of {kind!r}")
    return kind


def divergence(target: torch.Tensor, output: torch.Tensor, has_logits: bool) -> torch.Tensor:
    """KL(target || output), a scalar in nats; mean over rows, and over the positions of a causal LM."""
    if not has_logits:
        return 0.5 * (target - output).square().sum(-1).mean()
    p, q = target.log_softmax(-1), output.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def drawn_loss(output: torch.Tensor, has_logits: bool, generator: torch.Generator) -> torch.Tensor:
    """Negative log-likelihood of an answer drawn from the output itself; its squared gradient is the Fisher."""
    if not has_logits:
        drawn = output.detach() + torch.randn(output.shape, generator=generator)
        return 0.5 * (drawn - output).square().sum()
    flat = output.reshape(-1, output.shape[-1])
    drawn = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(flat, drawn)


def labelled_loss(output: torch.Tensor, row: Row) -> torch.Tensor:
    """Cross-entropy against the row's own integer `label`.

    Raises:
        CalibrationError: the row has no label that fits the output.
    """
    label = row.get("label")
    if type(label) is not int or output.dim() != 1 or not 0 <= label < output.numel():
        raise CalibrationError(
            f"a row has label {label!r}; labels=data needs an integer below {output.shape[-1]} in every row"
        )
    return F.cross_entropy(output[None], torch.tensor([label], device=output.device))


def row_losses(
    outputs: torch.Tensor,
    ids: torch.Tensor,
    rows: Sequence[Row],
    reduction: Literal["mean", "sum"] = "mean",
    first: Sequence[int] | None = None,
) -> torch.Tensor:
    """The training loss of each row of a batch, in nats.

    Args:
        outputs: what `Task.outputs` gives: (rows, classes) of a classifier, (rows, tokens - 1 or more, vocabulary)
            of a causal LM.
        ids: (rows, tokens), the rows' own tokens.
        rows: with an integer `label` each, for a classifier.
        reduction: of the tokens of a row, for a causal LM.
        first: place of the first token that is counted, a row, from 1 on; None for the second token of all.

    Returns:
        (rows,).

    Raises:
        CalibrationError: a row has no label that fits the output.
    """
    if outputs.dim() == 2:
        return torch.stack([labelled_loss(output, row) for output, row in zip(outputs, rows, strict=True)])
    tokens = F.cross_entropy(outputs[:, : ids.shape[1] - 1].transpose(1, 2), ids[:, 1:], reduction="none")
    starts = torch.tensor([1] * len(rows) if first is None else first, device=ids.device)[:, None]
    counted = torch.arange(1, ids.shape[1], device=ids.device) >= starts
    sums = tokens.where(counted, 0.0).sum(1)
    return sums / counted.sum(1) if reduction == "mean" else sums
