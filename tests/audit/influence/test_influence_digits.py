"""Digits with wrong labels: scores rank nets that were really trained again. Small, seeded; bounds are loose."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinfold.audit.influence.attributor import MaskedInfluence
from kinfold.audit.influence.baselines import gradient_cosine
from kinfold.audit.influence.estimate import Estimate
from kinfold.audit.influence.metrics import lds, mislabel_auc
from kinfold.audit.influence.settings import Spec


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[3] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = _load("digits")


@pytest.fixture(scope="module")
def trained() -> Any:
    """Data, one net on all rows, and what nets on 40 random halves answer."""
    data = bench.digits()
    return data, bench.train(data, np.arange(600)[None])[0], bench.ground_truth(data, 40, repeats=1)


def test_masked_scores_rank_retrained_nets(trained: Any) -> None:
    data, net, truth = trained
    train, probe = [(data.x, data.y)], [(data.probe_x, data.probe_y)]

    def quality(scores: Any) -> float:
        return float(np.nanmean(lds(np.asarray(scores), truth)))

    found = {
        keep: MaskedInfluence(bench.row_losses, net, Spec(keep=keep)).cache(train) for keep in (64, 256, 1024, 1 << 20)
    }
    scores = {keep: quality(one.attribute(train, probe)) for keep, one in found.items()}
    whole = found[1 << 20]
    cosine = quality(gradient_cosine(whole.gradients(train), whole.gradients(probe)))
    assert scores[1 << 20] > 0.4
    assert scores[1024] > scores[1 << 20] - 0.12
    assert scores[1024] > scores[64] + 0.1
    assert scores[256] > cosine
    for keep in (256, 1024):
        assert mislabel_auc(found[keep].self_attribute(train).numpy(), data.wrong) > 0.95
    one = found[256]
    gradients = one.gradients(train)
    curvature = Estimate.of([(gradients, np.ones(600))], one.layout, 600, "fisher").damped(0.3)
    other = MaskedInfluence(bench.row_losses, net, Spec(keep=256, seed=1)).gradients(probe)
    assert quality(gradients @ curvature.directions(other)) < 0.15  # masks that are not shared are noise


def test_the_best_damping_is_near_the_default(trained: Any) -> None:
    data, net, truth = trained
    train, probe = [(data.x, data.y)], [(data.probe_x, data.probe_y)]
    one = MaskedInfluence(bench.row_losses, net, Spec(keep=256)).cache(train)
    tried = {
        damping: np.nanmean(lds(one.damped(damping).attribute(train, probe).numpy(), truth))
        for damping in (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
    }
    assert 0.1 <= max(tried, key=lambda damping: tried[damping]) <= 3.0
