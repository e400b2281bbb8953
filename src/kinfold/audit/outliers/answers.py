"""What a variant makes of texts: pooled features, logits or energies, and gradients, in batches of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kinfold.audit.outliers.gradients import find_module, gradients_at
from kinfold.errors import AuditError
from kinfold.report.progress import progress
from kinfold.tasks import Task

_LOGITS_AT_ONCE = 1 << 25  # 256 MiB in float64; a vocabulary is wide
Ids = list[int]


@dataclass(frozen=True)
class Answers:
    """Of n texts, in their order.

    Attributes:
        features: float64 (n, d), the mean of the last hidden states.
        logits: float64 (n, c); of a causal LM energies (n,), the mean negative log-likelihood of its tokens in nats;
            None where the model has neither.
        gradients: float64 (n, g), or None.
    """

    features: np.ndarray
    logits: np.ndarray | None
    gradients: np.ndarray | None


def read(
    task: Task, texts: Sequence[Ids], *, batch_size: int, at: str | None = None, labels: Sequence[int] | None = None
) -> Answers:
    """Run the model; nothing of it is changed.

    Args:
        task: the model, on its device.
        texts: token ids of each text, at least one.
        batch_size: texts of one length at once.
        at: a module, to take per-sample gradients at; none otherwise.
        labels: of the texts, for the gradients; the model's own predictions if not given.

    Raises:
        AuditError: no such module, no logits to take a gradient of, or logits that are not one answer a text.
    """
    place = None if at is None else find_module(task.model, at)
    if place is not None and not task.has_logits:
        raise AuditError(
            "the variant gives no logits, so there is no loss to take gradients of",
            hint="--filter knn looks at features only",
        )
    found: list[tuple[np.ndarray, ...] | None] = [None] * len(texts)
    with progress("read texts", 8 * sum(map(len, texts))) as advance, hidden_states(task) as hidden:
        for numbers in _batches(task, texts, batch_size):
            ids = torch.tensor([texts[i] for i in numbers], device=next(task.model.parameters()).device)
            known = None if labels is None else torch.tensor([labels[i] for i in numbers], device=ids.device)
            for i, row in zip(numbers, zip(*_read(task, ids, place, known, hidden), strict=True), strict=True):
                found[i] = row
            advance(ids.nbytes)
    columns = [np.stack(column) for column in zip(*(row for row in found if row is not None), strict=True)]
    logits = columns[1] if task.has_logits else None
    return Answers(columns[0], logits, columns[2] if place is not None else None)


def _read(
    task: Task,
    ids: torch.Tensor,
    place: tuple[str, torch.nn.Module] | None,
    labels: torch.Tensor | None,
    hidden: list[torch.Tensor],
) -> tuple[np.ndarray, ...]:
    """Features, what stands for logits, and what stands for gradients: n rows each."""
    hidden.clear()
    if place is None:
        with torch.inference_mode():
            logits, gradients = _outputs(task, ids), np.empty((len(ids), 0))
    else:
        logits, gradients = gradients_at(place, lambda: _outputs(task, ids), labels=labels, ids=ids)
    features = hidden[-1].detach().double().mean(1).cpu().numpy()
    if not task.has_logits:
        return features, np.empty((len(ids), 0)), gradients
    if logits.dim() == 3:
        return features, _surprise(logits, ids), gradients
    return features, logits.detach().double().cpu().numpy(), gradients


def _outputs(task: Task, ids: torch.Tensor) -> torch.Tensor:
    found = task.outputs(ids)
    if found.dim() == 3 and found.shape[1] != ids.shape[1] - 1:
        raise AuditError("the variant answers every token; a classifier of texts or a causal LM is needed")
    return found


def _surprise(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Mean negative log-likelihood of each text's tokens after the first, (n,); 0 where there is none."""
    if not logits.shape[1]:
        return np.zeros(len(ids))
    likelihood = logits.detach().double().log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1))
    return -likelihood[..., 0].mean(1).cpu().numpy()


@contextmanager
def hidden_states(task: Task) -> Iterator[list[torch.Tensor]]:
    """The last hidden states of each pass inside the block."""
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0])

    handle = task.model.base_model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _batches(task: Task, texts: Sequence[Ids], batch_size: int) -> Iterator[list[int]]:
    """Numbers of texts of one length: without padding, what a text gets does not depend on its neighbours."""
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(texts):
        by_length.setdefault(len(ids), []).append(i)
    config = task.model.config
    for length, numbers in sorted(by_length.items()):
        step = batch_size
        if type(task.model).__name__.endswith("CausalLM"):
            step = max(1, min(batch_size, _LOGITS_AT_ONCE // (length * config.vocab_size)))
        elif getattr(config, "pad_token_id", None) is None:
            step = 1  # classifiers made of decoders look for padding to find the last token, and refuse to guess
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step]
