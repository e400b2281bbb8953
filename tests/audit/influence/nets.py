"""Small float64 models for the tests, and their gradients by torch.autograd alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Batch = tuple[torch.Tensor, torch.Tensor]


def mlp(seed: int = 0, inputs: int = 6, hidden: int = 5, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()


def rows(count: int, seed: int = 0, inputs: int = 6, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def batches(data: Batch, size: int) -> list[Batch]:
    return [(x, y) for x, y in zip(data[0].split(size), data[1].split(size), strict=True)]


def loss(model: Any, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def weight_gradients(model: nn.Module, losses: Iterable[torch.Tensor], weights: list[torch.Tensor]) -> np.ndarray:
    """Gradients of each loss by all weights, laid end to end: (rows, values)."""
    found = []
    for one in losses:
        parts = torch.autograd.grad(one, weights, retain_graph=True)
        found.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.stack(found)


def full_gradients(model: nn.Sequential, data: Batch) -> np.ndarray:
    """Of an `mlp`, by the weights of its two layers."""
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    return weight_gradients(model, loss(model, data), weights)
