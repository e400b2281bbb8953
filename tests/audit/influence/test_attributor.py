"""`MaskedInfluence` against the unmasked estimator, written with numpy on autograd's gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import batches, full_gradients, loss, mlp, rows
from torch import nn

from kinfold.audit.influence.attributor import MaskedInfluence
from kinfold.audit.influence.settings import Spec
from kinfold.errors import AuditError

MODEL, TRAIN, PROBE = mlp(), rows(40), rows(6, seed=1)
SIZES = [30, 15]  # values of the two weights


def estimator(train: np.ndarray, probe: np.ndarray, damping: float, blocks: str = "module") -> np.ndarray:
    ends = [slice(0, 30), slice(30, 45)] if blocks == "module" else [slice(0, 45)]
    scores = np.zeros((len(train), len(probe)))
    for columns in ends:
        g, p = train[:, columns], probe[:, columns]
        fisher = g.T @ g / len(g)
        term = damping * np.trace(fisher) / min(g.shape)
        scores += g @ np.linalg.solve(fisher + term * np.eye(g.shape[1]), p.T)
    return scores


def attributor(model: nn.Module = MODEL, **settings: Any) -> MaskedInfluence:
    return MaskedInfluence(loss, model, Spec(**settings))


@pytest.mark.parametrize("count", [40, 12])  # more rows than coordinates, and fewer
@pytest.mark.parametrize("blocks", ["module", "joint"])
@pytest.mark.parametrize("compressor", ["entry", "neuron", "none", "pca"])
def test_everything_kept_is_the_unmasked_estimator(count: int, blocks: Any, compressor: Any) -> None:
    data = TRAIN[0][:count], TRAIN[1][:count]
    full, asked = full_gradients(MODEL, data), full_gradients(MODEL, PROBE)
    found = attributor(keep=1 << 20, blocks=blocks, compressor=compressor)
    scores = found.attribute(batches(data, 7), batches(PROBE, 4)).numpy()
    exact = compressor != "pca"  # its directions are float32, and it has no more of them than rows
    if exact or count == 40:
        expected = estimator(full, asked, 0.3, blocks)
        np.testing.assert_allclose(scores, expected, atol=(1e-10 if exact else 1e-4) * abs(expected).max())


@pytest.mark.parametrize("size", [40, 6])
@pytest.mark.parametrize("compressor", ["entry", "neuron", "gaussian"])
def test_self_is_the_diagonal(size: int, compressor: Any) -> None:
    loader = batches(TRAIN, size)
    one = attributor(keep=20, compressor=compressor).cache(loader)
    own, pairs = one.self_attribute(loader), one.attribute(loader, loader)
    assert pairs.shape == (40, 40)
    torch.testing.assert_close(own, pairs.diagonal(), rtol=1e-8, atol=0)
    again = attributor(keep=20, compressor=compressor).self_attribute(batches(TRAIN, 11))
    torch.testing.assert_close(again, own, rtol=1e-8, atol=0)


def test_curvature_is_that_of_the_cached_rows() -> None:
    found = attributor(keep=1 << 20).cache(batches(TRAIN, 9))
    part = TRAIN[0][:5], TRAIN[1][:5]
    scores = found.attribute(batches(part, 5), batches(PROBE, 6)).numpy()
    expected = estimator(full_gradients(MODEL, TRAIN), full_gradients(MODEL, PROBE), 0.3)
    np.testing.assert_allclose(scores, expected[:5], atol=1e-10 * abs(expected).max())
    np.testing.assert_allclose(found.self_attribute(batches(part, 5)), found.self_attribute(batches(TRAIN, 9))[:5])


def test_damping_changes_without_new_gradients() -> None:
    found = attributor(keep=1 << 20).cache(batches(TRAIN, 9)).damped(1.0)
    expected = estimator(full_gradients(MODEL, TRAIN), full_gradients(MODEL, PROBE), 1.0)
    scores = found.attribute(batches(TRAIN, 9), batches(PROBE, 6)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-10 * abs(expected).max())
    with pytest.raises(AuditError, match="no curvature"):
        attributor().damped(1.0)


def test_identity_is_the_inner_product() -> None:
    found = attributor(keep=1 << 20, curvature="identity").attribute(batches(TRAIN, 9), batches(PROBE, 6))
    np.testing.assert_allclose(found, full_gradients(MODEL, TRAIN) @ full_gradients(MODEL, PROBE).T, atol=1e-10)
    one = attributor(curvature="identity", keep=1 << 20).self_attribute(batches((TRAIN[0][:1], TRAIN[1][:1]), 1))
    np.testing.assert_allclose(one, np.square(full_gradients(MODEL, TRAIN)[:1]).sum(1), atol=1e-12)


def test_several_masks_are_averaged() -> None:
    scores = [attributor(keep=12, seed=seed).attribute(batches(TRAIN, 9), batches(PROBE, 6)) for seed in (5, 6)]
    both = attributor(keep=24, seed=5, masks=2).attribute(batches(TRAIN, 9), batches(PROBE, 6))
    torch.testing.assert_close(both, (scores[0] + scores[1]) / 2)


@pytest.mark.parametrize("blocks", ["module", "joint"])
def test_several_masks_of_everything_are_one(blocks: Any) -> None:
    scores = [
        attributor(keep=1 << 20, masks=masks, blocks=blocks).attribute(batches(TRAIN, 9), batches(PROBE, 6))
        for masks in (1, 3)
    ]
    torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize("compressor", ["entry", "neuron", "gaussian"])
def test_inner_products_are_kept_in_the_mean(compressor: Any) -> None:
    random = np.random.default_rng(0)
    full = random.normal(size=(40, 3)) @ random.normal(size=(3, 600))
    expected, total = full @ full.T, np.zeros((40, 40))
    for seed in range(400):
        (one,) = Spec(keep=100, seed=seed, compressor=compressor).compressors({"w": (20, 30)})
        kept = one.full(torch.from_numpy(full)).numpy() * one.rescale
        total += kept @ kept.T / 400
    assert np.linalg.norm(total - expected) < 0.02 * np.linalg.norm(expected)


def test_the_scale_of_the_loss_does_not_matter() -> None:
    def seven(model: Any, batch: Any) -> torch.Tensor:
        return 7 * loss(model, batch)

    found = [
        MaskedInfluence(one, MODEL, Spec(keep=20)).attribute(batches(TRAIN, 9), batches(PROBE, 6))
        for one in (loss, seven)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)


def test_the_mode_of_the_model_is_its_own() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()
    found = [attributor(model, keep=20).attribute(batches(TRAIN, 9), batches(PROBE, 6)) for _ in range(2)]
    assert torch.equal(found[0], found[1])
    assert model.training


def test_map_bytes_are_of_matrices_only() -> None:
    assert attributor(keep=20).map_bytes == 0
    gaussian = attributor(keep=20, compressor="gaussian")
    assert gaussian.map_bytes == 4 * sum(s * c.width for s, c in zip(SIZES, gaussian.compressors, strict=True))


def test_layout_of_several_masks() -> None:
    one = attributor(keep=24, masks=2, blocks="joint")
    assert [(c.start, c.stop) for c, _ in one.layout.groups] == [(0, 12), (12, 24)]
    assert [size for _, size in one.layout.groups] == [45, 45]


def test_what_does_not_fit() -> None:
    with pytest.raises(AuditError, match="needs 2 or more") as caught:
        attributor(keep=20).cache(batches((TRAIN[0][:1], TRAIN[1][:1]), 1))
    assert "identity" in caught.value.hint
    with pytest.raises(AuditError, match="gives no batch"):
        attributor(keep=20).cache([])
    with pytest.raises(AuditError, match="at least 8"):
        attributor(keep=7)
    broken = TRAIN[0].clone()
    broken[3] = torch.nan
    with pytest.raises(AuditError, match="rows 3 are not finite"):
        attributor(keep=20).cache(batches((broken, TRAIN[1]), 9))
    with pytest.raises(AuditError, match="would need matrices of"):
        attributor(nn.Linear(1 << 12, 1 << 10), keep=1 << 12, compressor="gaussian")


@pytest.mark.parametrize(
    "settings",
    [{"compressor": "svd"}, {"quota": "x"}, {"blocks": "x"}, {"curvature": "x"}, {"masks": 0}, {"keep": 1, "masks": 2},
     {"damping": 0.0}, {"damping": float("nan")}, {"seed": 1 << 62}, {"compressor": "pca", "masks": 2}],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(AuditError):
        Spec(**settings)
