"""The second stage of Medix and SAL: a head trained end to end with a copy of the model (arXiv 2402.03502)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from kinfold.audit.outliers.answers import Ids, hidden_states
from kinfold.audit.outliers.head import Rows, Score, Train
from kinfold.tasks import Task

BATCH, LR, LEAST_LR, MOMENTUM, DECAY, WEIGHT = 128, 1e-3, 1e-6, 0.9, 5e-4, 10.0
EPOCHS = 100


@dataclass
class _Copy:
    """A copy of a classifier and a head of one output on its features."""

    task: Task
    head: torch.nn.Linear

    @classmethod
    def of(cls, task: Task) -> _Copy:
        own = None if task.head is None else tuple(part.clone().requires_grad_(True) for part in task.head)
        model = copy.deepcopy(task.model)
        device = next(model.parameters()).device
        head = torch.nn.Linear(model.config.hidden_size, 1).to(device)
        return cls(Task(model, task.tokenizer, own), head)  # type: ignore[arg-type]  # a pair, as `head` is

    def parameters(self) -> list[torch.nn.Parameter | torch.Tensor]:
        return [*self.task.model.parameters(), *self.head.parameters(), *(self.task.head or ())]

    def answers(self, texts: Sequence[Ids], numbers: Rows) -> Iterator[tuple[Rows, torch.Tensor, torch.Tensor]]:
        """Logits and the head's answers, a batch of one length at a time."""
        lengths = np.array([len(texts[i]) for i in numbers])
        device = self.head.weight.device
        with hidden_states(self.task) as hidden:
            for length in np.unique(lengths):
                some = numbers[lengths == length]
                hidden.clear()
                logits = self.task.outputs(torch.tensor([texts[i] for i in some], device=device))
                yield some, logits, self.head(hidden[-1].mean(1))[:, 0]


def finetune_trainer(
    task: Task, reference: Sequence[Ids], labels: Sequence[int], wild: Sequence[Ids], *, epochs: int = EPOCHS, seed: int
) -> Train:
    """Trains a copy of the model and a head: cross-entropy on the reference + 10 * binary cross-entropy of the head.

    SGD with Nesterov momentum 0.9 and weight decay 5e-4, learning rate from 1e-3 to 1e-6 by a cosine, 128 reference
    rows and 128 outliers a step. The score is the head's logit with its sign turned. The model given stays as it is.

    Args:
        task: a classifier.
        reference: token ids.
        labels: of the reference, classes.
        wild: token ids of the log.
        epochs: passes over the reference.
        seed: of the head's start, of dropout and of the order of rows.
    """

    def train(known: Rows, outliers: Rows) -> Score:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trained = _Copy.of(task)
            _descend(trained, reference, labels, wild, known, outliers, epochs, seed)
        trained.task.model.eval()
        return lambda some, others: (_scores(trained, reference, some), _scores(trained, wild, others))

    return train


def _descend(
    trained: _Copy,
    reference: Sequence[Ids],
    labels: Sequence[int],
    wild: Sequence[Ids],
    known: Rows,
    outliers: Rows,
    epochs: int,
    seed: int,
) -> None:
    optimizer = torch.optim.SGD(trained.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    steps = epochs * math.ceil(len(known) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, LEAST_LR)
    generator = np.random.default_rng(seed)
    trained.task.model.train()
    classes = np.asarray(labels)
    for _ in range(steps):
        optimizer.zero_grad()
        inside = generator.choice(known, min(BATCH, len(known)), replace=False)
        outside = generator.choice(outliers, min(BATCH, len(outliers)), replace=False)
        for some, logits, told in trained.answers(reference, inside):
            wanted = torch.from_numpy(classes[some]).to(logits.device)
            loss = F.cross_entropy(logits, wanted, reduction="sum") / len(inside)
            loss = loss + WEIGHT * _binary(told, 1.0) / (len(inside) + len(outside))
            loss.backward()
        for _, _, told in trained.answers(wild, outside):
            (WEIGHT * _binary(told, 0.0) / (len(inside) + len(outside))).backward()
        optimizer.step()
        schedule.step()


def _binary(told: torch.Tensor, target: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(told, torch.full_like(told, target), reduction="sum")


def _scores(trained: _Copy, texts: Sequence[Ids], rows: Rows) -> np.ndarray:
    found = np.empty(len(rows))
    with torch.inference_mode():
        for some, _, told in trained.answers(texts, rows):
            found[np.isin(rows, some)] = -told.double().cpu().numpy()
    return found
