"""Training TCCM: many nets at once, those of an ensemble and those of the folds that a threshold is cross-fitted on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from kinfold.audit.outliers.nets import Model, Nets, frequencies
from kinfold.audit.outliers.rows import spread, standardised
from kinfold.audit.outliers.settings import Settings

if TYPE_CHECKING:
    import torch

_PARAMETERS = 1 << 22  # trained at once: 64 MiB with gradients and Adam's two moments
Draw = tuple["torch.Tensor | None", "torch.Tensor"]  # rows (m,), None for all of them; times (E, m)


def fit_models(tables: Iterable[np.ndarray], settings: Settings) -> Iterator[Model]:
    """A model of each table, every one as if it had been fitted alone with the same seed.

    Args:
        tables: float64 (n, d), all of one shape; a few are taken at a time.
        settings: of the training.
    """
    source = iter(tables)
    first = next(source, None)
    if first is None:
        return
    together = max(1, _PARAMETERS // (settings.n_ensemble * _net_size(first.shape[1], settings)))
    group = [first, *islice(source, together - 1)]
    while group:
        models = _fitted(group, settings)
        dropped = math.floor(settings.trim * len(first))
        if dropped:
            kept = [_trimmed(rows, model, dropped) for rows, model in zip(group, models, strict=True)]
            models = _fitted(kept, settings)
        yield from models
        group = list(islice(source, together))


def _trimmed(rows: np.ndarray, model: Model, dropped: int) -> np.ndarray:
    order = np.argsort(model.scores(rows), kind="stable")
    return rows[np.sort(order[: len(rows) - dropped])]


def _net_size(columns: int, settings: Settings) -> int:
    return settings.hidden * (2 * columns + settings.time_embed_dim + settings.hidden)


def _fitted(tables: Sequence[np.ndarray], settings: Settings) -> list[Model]:
    spreads = [spread(rows, settings.scale_floor) for rows in tables]
    z = np.stack([standardised(rows, *one) for rows, one in zip(tables, spreads, strict=True)]).astype(np.float32)
    nets = trained(z, settings)
    return [Model(mean, scale, one.folded(settings.t_score)) for (mean, scale), one in zip(spreads, nets, strict=True)]


def trained(z: np.ndarray, settings: Settings) -> list[Nets]:
    """Nets of S standardised tables, float32 (S, n, d), from one generator that no one else draws from."""
    import torch

    _, rows, columns = z.shape
    steps = settings.steps(rows)
    generator = torch.Generator().manual_seed(settings.seed)
    start = initial(columns, settings, generator)
    return descended(torch.from_numpy(z), start, draws(rows, steps, settings, generator), steps, settings)


def initial(columns: int, settings: Settings, generator: torch.Generator) -> list[torch.Tensor]:
    """torch's default initialisation of linear layers, uniform within 1 / sqrt(inputs): w1, b1, w2, b2, w3, b3."""
    import torch

    found = []
    sides = [columns + settings.time_embed_dim, settings.hidden, settings.hidden, columns]
    for inputs, outputs in pairwise(sides):
        for shape in ((inputs, outputs), (1, outputs)):
            drawn = torch.rand(settings.n_ensemble, *shape, generator=generator)
            found.append((2 * drawn - 1) / math.sqrt(inputs))
    return found


def draws(rows: int, steps: int, settings: Settings, generator: torch.Generator) -> Iterator[Draw]:
    """The rows and times of each step: slices of a permutation, of which the last may be short; t ~ U(0, 1)."""
    import torch

    order, position = torch.empty(0, dtype=torch.long), 0
    for _ in range(steps):
        chosen = None
        if rows > settings.batch_size:
            if position >= len(order):
                order, position = torch.randperm(rows, generator=generator), 0
            chosen = order[position : position + settings.batch_size]
            position += settings.batch_size
        count = rows if chosen is None else len(chosen)
        yield chosen, torch.rand(settings.n_ensemble, count, generator=generator)


def descended(
    z: torch.Tensor, start: Sequence[torch.Tensor], steps_drawn: Iterable[Draw], steps: int, settings: Settings
) -> list[Nets]:
    """Adam on mean((f(z, t) + z)^2), for E nets on each of S tables; nets do not see one another.

    Args:
        z: float32 (S, n, d).
        start: parameters of E nets, each (E, inputs or 1, outputs).
        steps_drawn: rows and times (E, m) of each step, the same for all tables.
        steps: how many they are.
        settings: of the training.

    Returns:
        S times E nets, unfolded.
    """
    import torch

    tables, ensemble = len(z), len(start[0])
    z = z.to(settings.device)
    params = [part.repeat(tables, 1, 1).to(settings.device).requires_grad_() for part in start]
    optimizer = torch.optim.Adam(params, lr=settings.lr, fused=True)
    w = torch.from_numpy(frequencies(settings.time_embed_dim)).float().to(settings.device)
    for step, (rows, t) in enumerate(steps_drawn):
        batch = z if rows is None else z[:, rows.to(settings.device)]
        batch = batch.repeat_interleave(ensemble, dim=0)
        angles = t.to(settings.device).unsqueeze(2) * w
        time = torch.cat([angles.sin(), angles.cos()], dim=2).repeat(tables, 1, 1)
        loss = (_output(torch.cat([batch, time], dim=2), params) + batch).square().mean(dim=(1, 2)).sum()
        optimizer.param_groups[0]["lr"] = settings.learning_rate(step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    arrays = [part.detach().cpu().numpy().reshape(tables, ensemble, *part.shape[1:]) for part in params]
    w1, b1, w2, b2, w3, b3 = arrays
    biases = [bias[:, :, 0] for bias in (b1, b2, b3)]
    return [Nets(w1[s], biases[0][s], w2[s], biases[1][s], w3[s], biases[2][s]) for s in range(tables)]


def _output(inputs: torch.Tensor, params: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    w1, b1, w2, b2, w3, b3 = params
    hidden = torch.baddbmm(b1, inputs, w1).relu()
    hidden = torch.baddbmm(b2, hidden, w2).relu()
    return torch.baddbmm(b3, hidden, w3)
