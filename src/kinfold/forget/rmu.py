"""RMU, a rival: hidden states of the forget rows are led to one random direction, those of the others are held.

WMDP, arXiv 2403.03218, equations 1 and 2: |h_l(f) - c v|^2 + a |h_l(r) - h_l,variant(r)|^2, means over tokens and
dimensions. It changes no loss by itself, so under targets it ends when the losses have followed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinfold.errors import ForgetOptionError
from kinfold.forget.adapter import Adapter
from kinfold.forget.config import ForgetConfig
from kinfold.forget.problem import Batch
from kinfold.forget.rivals import Rival
from kinfold.forget.subject import Subject
from kinfold.forget.tokens import Tokens


def rmu(
    subject: Subject,
    adapter: Adapter,
    forget: Sequence[Tokens],
    retain: Sequence[Tokens],
    config: ForgetConfig,
    seed: int,
) -> Rival:
    """The method for a causal LM with an adapter attached; with the adapter off, its model is the variant.

    Raises:
        ForgetOptionError: the model has no such layer.
    """
    layers = subject.task.model.config.num_hidden_layers
    layer = config.rmu_layer or max(1, layers // 3)
    if layer > layers:
        raise ForgetOptionError(f"rmu_layer is {layer}; the variant has layers 1 to {layers}")
    width = subject.task.model.config.hidden_size
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    aim = (config.rmu_scale * drawn / drawn.norm()).float().to(subject.device)

    def lead(batch: Batch) -> torch.Tensor:
        states, mask = subject.hidden(_of(forget, batch.forget), layer)
        return (states - aim)[mask].square().mean()

    def hold(batch: Batch) -> torch.Tensor:
        rows = _of(retain, batch.retain)
        adapter.tuner.disable_adapter_layers()
        try:
            with torch.no_grad():
                before, _ = subject.hidden(rows, layer)
        finally:
            adapter.tuner.enable_adapter_layers()
        states, mask = subject.hidden(rows, layer)
        return config.rmu_weight * (states - before)[mask].square().mean()

    return Rival(lead, hold)


def _of(rows: Sequence[Tokens], numbers: torch.Tensor) -> list[Tokens]:
    return [rows[number] for number in numbers.tolist()]
