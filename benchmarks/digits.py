"""scikit-learn's digits with wrong labels, a small net, and many of them trained at once on subsets of the rows.

600 training and 150 probe rows of pixels / 16 in the order of `RandomState(0).permutation`; 20 % of the training labels
are another digit. ReLU net 64-48-48-10, Adam 1e-2 with a cosine to 0, 400 steps of 64 rows, L2 1e-3.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIDES = (64, 48, 48, 10)
STEPS, BATCH, RATE, L2 = 400, 64, 1e-2, 1e-3
PROBES = 150


@dataclass(frozen=True)
class Digits:
    """Rows float32 (n, 64) with labels int64 (n,); `wrong` says which training labels are not the digit's own."""

    x: torch.Tensor
    y: torch.Tensor
    wrong: np.ndarray
    probe_x: torch.Tensor
    probe_y: torch.Tensor


def digits(rows: int = 600) -> Digits:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    random = np.random.RandomState(0)
    order = random.permutation(len(labels))
    x, y = torch.tensor(pixels[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
    wrong = np.zeros(rows, bool)
    wrong[random.permutation(rows)[: rows // 5]] = True
    noisy = y[:rows].clone()
    noisy[torch.from_numpy(wrong)] += torch.from_numpy(random.randint(1, 10, int(wrong.sum())))
    probes = slice(rows, rows + PROBES)
    return Digits(x[:rows], noisy % 10, wrong, x[probes], y[probes])


def train(data: Digits, subsets: np.ndarray, seed: int = 0, steps: int = STEPS) -> list[nn.Sequential]:
    """One net for each of the subsets (s, r) of training rows; all are trained side by side."""
    generator = torch.Generator().manual_seed(seed)
    weights: list[torch.Tensor] = []
    for inputs, outputs in pairwise(SIDES):
        for shape in ((len(subsets), inputs, outputs), (len(subsets), 1, outputs)):
            start = (2 * torch.rand(shape, generator=generator) - 1) / inputs**0.5
            weights.append(start.requires_grad_())
    optimizer = torch.optim.Adam(weights, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows = torch.from_numpy(subsets)
    for _ in range(steps):
        drawn = rows.gather(1, torch.randint(rows.shape[1], (len(rows), BATCH), generator=generator))
        hidden = data.x[drawn]
        for layer in range(0, len(weights), 2):
            hidden = torch.baddbmm(weights[layer + 1], hidden, weights[layer])
            hidden = hidden.relu() if layer + 2 < len(weights) else hidden
        loss = F.cross_entropy(hidden.flatten(0, 1), data.y[drawn].flatten()) * len(rows)
        loss = loss + L2 / 2 * sum(weight.square().sum() for weight in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return [_net([weight[number].detach() for weight in weights]) for number in range(len(subsets))]


def _net(weights: list[torch.Tensor]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for matrix, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = nn.Linear(matrix.shape[0], matrix.shape[1])
        layer.load_state_dict({"weight": matrix.T, "bias": bias[0]})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def row_losses(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def ground_truth(
    data: Digits, subsets: int, seed: int = 0, repeats: int = 2, steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Minus the probes' losses (s, m) under nets of random halves, mean of `repeats`; and the halves (s, n / 2)."""
    random = np.random.default_rng(seed)
    halves = np.stack([random.permutation(len(data.y))[: len(data.y) // 2] for _ in range(subsets)])
    probe = data.probe_x, data.probe_y
    values = []
    for number in range(repeats):
        nets = train(data, halves, seed + 1 + number, steps)
        values.append(torch.stack([-row_losses(net, probe).detach() for net in nets]))
    return torch.stack(values).mean(0).double().numpy(), halves
