"""`bitdelta` with its scales trained so that the outputs match the variant's. BitDelta, arXiv 2402.10193, section 3.2.

A codec sees no model, so the training comes first: one multiplier a matrix, all else fixed. The pack is then an
ordinary one of `bitdelta`, with the trained scale in the place of mean |D|. Following the paper, only these
scales are trained, in 200 steps of a few rows; ours are unlabelled texts, the loss is the divergence of
the outputs (the paper's: squared error of logits), and Adam moves the logarithm of the multiplier.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from kinfold.budget import Calibration
from kinfold.budget.importance import targets
from kinfold.checkpoint import Checkpoint
from kinfold.codec import Codec, Importance, Payload, tensor_seed
from kinfold.codec.bitdelta import BitDelta
from kinfold.tasks import Task, divergence

_STEPS = 200
_BATCH = 4
_RATE = 0.02


class Distilled(BitDelta):
    """`bitdelta` whose scales come from outside; its packs are read by `bitdelta`."""

    def __init__(self, multipliers: dict[int, float]) -> None:
        super().__init__()
        self.multipliers = multipliers  # by the tensor's seed: names do not reach a codec

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        payload = super()._encode(delta, budget_bits, importance, seed)
        scale = torch.frombuffer(bytearray(payload.data[:4]), dtype=torch.float32) * self.multipliers[seed]
        return Payload(scale.numpy().tobytes() + payload.data[4:], payload.params)


def distilled(base: Path, variant: Path, calibration: Calibration) -> Codec:
    """`bitdelta` with scales trained on the rows of `calibration`, for packs of seed 0."""
    task, old, new = Task.load(variant), Checkpoint.open(base), Checkpoint.open(variant)
    wanted = targets(task, calibration)
    names = [n for n in new.tensors if n in old.tensors and len(new.tensors[n].shape) == 2]
    names = [n for n in names if not torch.equal(new.read(n), old.read(n))]
    weights = {n: old.read(n).float() for n in names}
    signs = {n: _scaled_sign(new.read(n).float() - weights[n]) for n in names}
    found = _train(task, weights, signs, calibration, wanted)
    return Distilled({tensor_seed(0, name): value for name, value in found.items()})


def _scaled_sign(delta: torch.Tensor) -> torch.Tensor:
    return torch.where(delta >= 0, 1.0, -1.0) * delta.abs().mean()


def _train(
    task: Task,
    weights: dict[str, torch.Tensor],
    signs: dict[str, torch.Tensor],
    calibration: Calibration,
    wanted: list[torch.Tensor],
) -> dict[str, float]:
    """The multiplier of each matrix that makes base + multiplier x sign plane answer as the variant does."""
    task.model.requires_grad_(False)
    parameters = task.parameters(list(weights))
    logs = {name: torch.zeros(()) for name in weights}
    optimizer = torch.optim.Adam(logs.values(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    drawn = random.Random(0)
    for _ in range(_STEPS):
        for name, parameter in parameters.items():
            parameter.requires_grad_(False).copy_(weights[name] + logs[name].exp() * signs[name]).requires_grad_(True)
        rows = drawn.sample(range(len(wanted)), min(_BATCH, len(wanted)))
        losses = [divergence(wanted[row], task.output(calibration.rows[row]), task.has_logits) for row in rows]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            logs[name].grad = (gradient * signs[name]).sum() * logs[name].exp()
        optimizer.step()
        schedule.step()
    return {name: float(log.exp()) for name, log in logs.items()}
