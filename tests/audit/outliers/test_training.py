"""Training many nets at once, against torch's own modules trained one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from kinfold.audit.outliers import TCCM, training
from kinfold.audit.outliers.nets import Model
from kinfold.audit.outliers.settings import Settings

ROWS = np.random.default_rng(0).normal(size=(30, 5)) * [1, 2, 3, 4, 5]


def settings(**changes: object) -> Settings:
    return Settings.of(TCCM(**{"max_steps": 12, "hidden": 16, "n_ensemble": 3, **changes}).get_params())  # type: ignore[arg-type]


def by_hand(
    z: torch.Tensor, start: list[torch.Tensor], k: int, drawn: list[training.Draw], lr: list[float]
) -> torch.Tensor:
    """f_k(z, 1) + z after a training of one net from nn.Linear, MSELoss and Adam."""
    sides = [len(start[0][k]), 16, 16, z.shape[1]]
    linear = [torch.nn.Linear(a, b) for a, b in pairwise(sides)]
    net = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2])
    with torch.no_grad():
        for layer, weight, bias in zip(linear, start[::2], start[1::2], strict=True):
            layer.weight.copy_(weight[k].T)
            layer.bias.copy_(bias[k, 0])

    def inputs(rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        w = torch.tensor([10000 ** (-i / 64) for i in range(64)])
        angles = t[:, None] * w
        return torch.cat([rows, angles.sin(), angles.cos()], dim=1)

    optimizer = torch.optim.Adam(net.parameters())
    for rate, (rows, t) in zip(lr, drawn, strict=True):
        batch = z if rows is None else z[rows]
        loss = torch.nn.functional.mse_loss(net(inputs(batch, t[k])), -batch)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (net(inputs(z, torch.ones(len(z)))) + z).detach()


def test_nets_side_by_side_learn_what_each_learns_alone() -> None:
    chosen = settings(batch_size=8)
    generator = torch.Generator().manual_seed(4)
    tables = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 30, 5)).astype(np.float32))
    start = training.initial(5, chosen, generator)
    drawn = list(training.draws(30, 12, chosen, generator))
    found = training.descended(tables, start, drawn, 12, chosen)
    rates = [0.5 * 5e-3 * (1 + np.cos(np.pi * s / 12)) for s in range(12)]
    for z, nets in zip(tables, found, strict=True):
        for k, residual in enumerate(nets.folded(1.0).residuals(z.numpy())):
            np.testing.assert_allclose(residual, by_hand(z, start, k, drawn, rates), rtol=1e-4, atol=1e-4)


def test_the_start_is_torchs_own() -> None:
    start = training.initial(5, settings(hidden=400, time_embed_dim=0), torch.Generator().manual_seed(0))
    for part, inputs in zip(start, [5, 5, 400, 400, 400, 400], strict=True):
        bound = inputs**-0.5  # of nn.Linear's kaiming_uniform(a=sqrt(5)) and of its bias
        assert float(part.abs().max()) <= bound
        if part.numel() > 100:
            assert float(part.std()) * 3**0.5 / bound > 0.9


def test_every_row_is_drawn_once_a_pass_and_the_short_slice_is_used() -> None:
    drawn = list(training.draws(20, 6, settings(batch_size=8), torch.Generator().manual_seed(0)))
    sizes = [len(rows) for rows, _ in drawn if rows is not None]
    assert sizes == [8, 8, 4, 8, 8, 4]
    for part in (drawn[:3], drawn[3:]):
        assert sorted(int(i) for rows, _ in part if rows is not None for i in rows) == list(range(20))
    assert [tuple(t.shape) for _, t in drawn] == [(3, size) for size in sizes]
    assert all(float(t.min()) >= 0 and float(t.max()) < 1 for _, t in drawn)
    assert all(rows is None for rows, _ in training.draws(20, 3, settings(), torch.Generator()))


def test_models_of_a_group_are_those_of_single_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [np.delete(ROWS, i, 0) for i in range(5)]
    together = [model.scores(ROWS) for model in training.fit_models(tables, settings())]
    monkeypatch.setattr(training, "_PARAMETERS", 1)  # each table alone
    for one, scores in zip(training.fit_models(tables, settings()), together, strict=True):
        np.testing.assert_allclose(one.scores(ROWS), scores, rtol=1e-4)
    assert list(training.fit_models([], settings())) == []


def test_trimming_trains_again_without_the_worst() -> None:
    spoilt = np.concatenate([ROWS, np.full((3, 5), 60.0)])
    [plain] = training.fit_models([spoilt], settings(max_steps=60))
    worst = np.sort(np.argsort(-plain.scores(spoilt))[:6])
    [trimmed] = training.fit_models([spoilt], settings(max_steps=60, trim=0.2))  # floor(0.2 * 33) = 6 rows
    [wanted] = training.fit_models([np.delete(spoilt, worst, 0)], settings(max_steps=60))
    assert {30, 31, 32} <= set(worst.tolist())
    assert isinstance(trimmed, Model)
    np.testing.assert_array_equal(trimmed.scores(spoilt), wanted.scores(spoilt))
