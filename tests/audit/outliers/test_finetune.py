"""The head trained with a copy of the model: a plain padded training loop is the other route."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kinfold.audit.outliers import finetune
from kinfold.audit.outliers.finetune import finetune_trainer
from kinfold.tasks import Task
from models import bert

GENERATOR = np.random.default_rng(0)
REFERENCE = [GENERATOR.integers(1, 60, GENERATOR.integers(2, 6)).tolist() for _ in range(12)]
WILD = [GENERATOR.integers(80, 150, GENERATOR.integers(2, 6)).tolist() for _ in range(9)]
LABELS = [i % 3 for i in range(12)]


def classifier() -> Task:
    return Task(bert(classes=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), None, None)


def padded(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.tensor(text) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def test_it_is_the_published_recipe() -> None:
    task = classifier()
    known, outliers = np.arange(2, 12), np.arange(1, 8)
    score = finetune_trainer(task, REFERENCE, LABELS, WILD, epochs=3, seed=5)(known, outliers)
    own, found = score(np.array([0, 1]), np.array([0, 8]))

    torch.manual_seed(5)
    model, head = classifier().model, torch.nn.Linear(32, 1)
    torch.manual_seed(5)
    head.reset_parameters()
    optimizer = torch.optim.SGD(
        [*model.parameters(), *head.parameters()], lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3, 1e-6)
    model.train()

    def logits(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = padded(texts)
        result = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        pooled = (result.hidden_states[-1] * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return result.logits, head(pooled)[:, 0]

    inside, outside = [REFERENCE[i] for i in known], [WILD[i] for i in outliers]  # fewer than 128: all, each step
    for _ in range(3):
        optimizer.zero_grad()
        classes, told = logits(inside)
        _, foreign = logits(outside)
        both = torch.cat([told, foreign])
        target = torch.cat([torch.ones(10), torch.zeros(7)])
        loss = F.cross_entropy(classes, torch.tensor([LABELS[i] for i in known]))
        (loss + 10 * F.binary_cross_entropy_with_logits(both, target)).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        wanted = -logits([REFERENCE[0], REFERENCE[1], WILD[0], WILD[8]])[1]
    np.testing.assert_allclose(np.concatenate([own, found]), wanted.numpy(), atol=1e-4)


def test_the_model_stays_and_a_head_beside_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "BATCH", 4)
    torch.manual_seed(1)
    task = Task(bert(), None, (torch.randn(3, 32), torch.randn(3)))
    assert task.head is not None
    before = [value.clone() for value in (*task.model.state_dict().values(), *task.head)]
    state = torch.get_rng_state()
    train = finetune_trainer(task, REFERENCE, LABELS, WILD, epochs=4, seed=0)
    scores = [train(np.arange(12), np.arange(9))(np.arange(12), np.arange(9)) for _ in range(2)]
    np.testing.assert_array_equal(np.concatenate(scores[0]), np.concatenate(scores[1]))
    assert scores[0][1].mean() > scores[0][0].mean()  # the log's are the outliers
    after = [*task.model.state_dict().values(), *task.head]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not task.model.training
