"""RMU: its two terms against a float64 re-computation, and its limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kinfold.errors import ForgetOptionError
from kinfold.forget import ForgetConfig, forget
from kinfold.forget.adapter import attached
from kinfold.forget.problem import Batch, Problem
from kinfold.forget.rmu import rmu
from kinfold.forget.subject import Subject
from kinfold.forget.tokens import Tokens
from models import Pair, llama

ROWS = [Tokens((5, 9, 3, 40, 7)), Tokens((8, 1)), Tokens((4, 17, 30))]


def test_both_terms_by_hand(llama_pair: Pair) -> None:
    from transformers import AutoModelForCausalLM

    subject = Subject.load(llama_pair.variant)
    config = ForgetConfig(rmu_layer=1, rmu_scale=3.0, rmu_weight=7.0, rank=2)
    model = AutoModelForCausalLM.from_pretrained(llama_pair.variant)
    with torch.no_grad():
        plain = [model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[1][0].numpy() for row in ROWS]
    with attached(subject, config, ROWS, 0) as adapter:
        for parameter in adapter.parameters:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
        with torch.no_grad():
            moved = [
                subject.task.model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[1][0].numpy()
                for row in ROWS
            ]
            rival = rmu(subject, adapter, ROWS, ROWS, config, 5)
            start = torch.zeros(3)
            problem = Problem(adapter.parameters, lambda n: n, lambda n: n, 3, config, torch.Generator(), start, start)
            batch = Batch(problem, torch.tensor([0, 1]), torch.tensor([2, 1]), torch.ones(2))
            assert rival.forget is not None
            assert rival.retain is not None
            lead, hold = float(rival.forget(batch)), float(rival.retain(batch))
            again = [subject.hidden([row], 1)[0][0].numpy() for row in ROWS]
    np.testing.assert_array_equal(again[2], moved[2])  # the adapter is on again
    drawn = torch.rand(32, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    aim = 3.0 * drawn / np.linalg.norm(drawn)
    states = np.concatenate([moved[0], moved[1]]).astype(np.float64)
    assert lead == pytest.approx(((states - aim) ** 2).mean(), rel=1e-5)
    change = np.concatenate([moved[2] - plain[2], moved[1] - plain[1]]).astype(np.float64)
    assert hold == pytest.approx(7 * (change**2).mean(), rel=1e-4)
    assert hold > 0


def test_layers_that_are_not_there(llama_pair: Pair) -> None:
    subject = Subject.load(llama_pair.variant)
    message = "rmu_layer is 3; the variant has layers 1 to 2"
    with attached(subject, ForgetConfig(), ROWS, 0) as adapter, pytest.raises(ForgetOptionError, match=message):
        rmu(subject, adapter, ROWS, ROWS, ForgetConfig(rmu_layer=3), 0)


def test_only_language_models_have_it(classifier_pair: Pair, tmp_path: Path) -> None:
    rows = [{"input_ids": [n + 1, 2], "label": n % 3} for n in range(4)]
    with pytest.raises(ForgetOptionError, match="method is 'rmu', which is for a causal LM"):
        forget(
            classifier_pair.base,
            classifier_pair.variant,
            forget=rows[:2],
            retain=rows[2:],
            out=tmp_path / "x",
            method="rmu",
        )


def test_it_runs(tmp_path: Path) -> None:
    llama(1).save_pretrained(tmp_path / "model")
    rows = [{"input_ids": [n + 1, n + 2, n + 3]} for n in range(6)]
    out, config = tmp_path / "x.kin.safetensors", ForgetConfig(rounds=1, inner_steps=2, rank=2)
    report = forget(
        tmp_path / "model", tmp_path / "model", forget=rows[:3], retain=rows[3:], out=out, method="rmu", config=config,
        target=9.0, relearn=0, force=True,
    )  # fmt: skip
    assert report.gradients > 0
    assert out.exists()
