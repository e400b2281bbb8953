"""A variant as a row of statistics, against numpy's SVD and scipy's kurtosis on the plain files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import kurtosis

import kinfold
from kinfold.audit.outliers import deltastats
from kinfold.audit.outliers.deltastats import groups, layer, log_kurtosis, ranks, row
from kinfold.checkpoint import Checkpoint
from kinfold.errors import AuditError, WrongBaseError
from models import Pair, Tensors, perturbed, pico, save

SHAPES = {
    "embed.weight": (30, 12),
    "layer.0.weight": (16, 12),
    "layer.0.bias": (16,),
    "layer.0.scale": (16,),
    "layer.1.conv.weight": (8, 4, 3, 3),
    "layer.1.bias": (8,),
    "empty.weight": (0, 4),
    "norm.weight": (12,),
}
MATRICES = ("embed.weight", "layer.0.weight", "layer.1.conv.weight")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("two")
    base = pico(shapes=SHAPES)
    return Pair(save(folder / "base", base), save(folder / "variant", changed(base)))


def changed(tensors: Tensors, seed: int = 1) -> Tensors:
    """A fine-tune; an empty tensor stays what it is."""
    full = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    return {**tensors, **perturbed(full, seed)}


def deltas(pair: Pair) -> dict[str, np.ndarray]:
    old, new = (load_file(directory / "model.safetensors") for directory in pair)
    return {name: (new[name] - old[name]).double().numpy() for name in old}


def as_dict(found: tuple[np.ndarray, list[str]]) -> dict[str, float]:
    return dict(zip(found[1], found[0].tolist(), strict=True))


def test_statistics_of_a_matrix_are_numpys_and_scipys(two: Pair) -> None:
    found, delta, base = as_dict(row(*two)), deltas(two), load_file(two.base / "model.safetensors")
    total = sum(float(np.square(d).sum()) for d in delta.values())
    for name in MATRICES:
        d = delta[name].reshape(len(delta[name]), -1)
        s = np.linalg.svd(d, compute_uv=False)
        p = s**2 / np.square(s).sum()
        wanted = {
            "norm": np.log10(np.linalg.norm(d) / np.linalg.norm(base[name].double().numpy())),
            "stable_rank": np.log(np.square(s).sum() / s[0] ** 2),
            "effective_rank": -(p * np.log(p)).sum(),
            "kurtosis": np.log(kurtosis(d, axis=None, fisher=False)),
            "energy": np.log10(np.square(d).sum() / total),
        }
        for statistic, value in wanted.items():
            assert found[f"{name}:{statistic}"] == pytest.approx(value, rel=1e-6), (name, statistic)


def test_vectors_of_a_layer_are_one(two: Pair) -> None:
    found, delta, base = as_dict(row(*two)), deltas(two), load_file(two.base / "model.safetensors")
    for called, names in {
        "layer.0 (vectors)": ["layer.0.bias", "layer.0.scale"],
        "layer.1 (vectors)": ["layer.1.bias"],
        "norm (vectors)": ["norm.weight"],
    }.items():
        both = np.concatenate([delta[name] for name in names])
        under = np.concatenate([base[name].double().numpy() for name in names])
        assert found[f"{called}:norm"] == pytest.approx(
            np.log10(np.linalg.norm(both) / np.linalg.norm(under)), rel=1e-6
        )
        assert found[f"{called}:kurtosis"] == pytest.approx(np.log(kurtosis(both, fisher=False)), rel=1e-6)
    assert len(found) == 3 * 5 + 3 * 3
    assert sum(10**value for name, value in found.items() if name.endswith(":energy")) == pytest.approx(1)


def test_matrices_of_a_layer_may_be_pooled(tmp_path: Path) -> None:
    shapes = {"h.0.a.weight": (9, 7), "h.0.b.weight": (5, 7), "h.0.bias": (9,), "h.1.a.weight": (9, 7)}
    base = pico(shapes=shapes)
    pair = Pair(save(tmp_path / "base", base), save(tmp_path / "variant", perturbed(base)))
    single, pooled = as_dict(row(*pair)), as_dict(row(*pair, level="layer"))
    delta = deltas(pair)
    for statistic in ("stable_rank", "effective_rank", "kurtosis"):
        mean = (single[f"h.0.a.weight:{statistic}"] + single[f"h.0.b.weight:{statistic}"]) / 2
        assert pooled[f"h.0 (matrices):{statistic}"] == pytest.approx(mean, rel=1e-12)
        assert pooled[f"h.1 (matrices):{statistic}"] == single[f"h.1.a.weight:{statistic}"]
    size = np.sqrt(sum(np.square(delta[f"h.0.{part}.weight"]).sum() for part in "ab"))
    under = np.sqrt(sum(float(base[f"h.0.{part}.weight"].double().square().sum()) for part in "ab"))
    assert pooled["h.0 (matrices):norm"] == pytest.approx(np.log10(size / under), rel=1e-6)
    both = 10 ** single["h.0.a.weight:energy"] + 10 ** single["h.0.b.weight:energy"]
    assert pooled["h.0 (matrices):energy"] == pytest.approx(np.log10(both), rel=1e-9)
    assert pooled["h.0 (vectors):norm"] == single["h.0 (vectors):norm"]


def test_what_did_not_change_has_set_values(two: Pair, tmp_path: Path) -> None:
    tensors: Tensors = load_file(two.base / "model.safetensors")
    for name in ("layer.0.weight", "layer.1.bias"):
        tensors[name] = changed(tensors)[name]
    found = as_dict(row(two.base, save(tmp_path / "v", tensors)))
    for name in ("embed.weight", "norm (vectors)"):
        assert found[f"{name}:norm"] == -8
        assert found[f"{name}:energy"] == -12
        assert found[f"{name}:kurtosis"] == np.log(3)
    assert found["embed.weight:stable_rank"] == found["embed.weight:effective_rank"] == 0
    blank = as_dict(row(two.base, two.base))
    assert {blank[f"{name}:energy"] for name in MATRICES} == {-12}


def test_minus_zero_is_no_change_and_a_base_of_zeros_no_division(tmp_path: Path) -> None:
    base = {"w": torch.ones(3, 4), "b": torch.zeros(5), "z": torch.zeros(4, 3)}
    new = {"w": torch.ones(3, 4), "b": torch.full((5,), 0.1), "z": -torch.zeros(4, 3)}
    found = as_dict(row(save(tmp_path / "base", base), save(tmp_path / "new", new)))
    assert found["z:norm"] == -8
    assert found["b (vectors):norm"] == pytest.approx(np.log10(0.1 * np.sqrt(5)), rel=1e-6)
    assert found["b (vectors):kurtosis"] == np.log(3)  # all entries equal: it has none


def test_kurtosis_is_the_same_in_pieces_and_of_any_mean() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 1e-3 + 0.5
    wanted = np.log(kurtosis(values.double().numpy(), fisher=False))
    assert log_kurtosis(values) == pytest.approx(wanted, rel=1e-9)


def test_above_the_limit_power_steps_stand_for_the_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tall = torch.randn(90, 40, generator=generator) + 3 * torch.randn(90, 1, generator=generator)
    monkeypatch.setattr(deltastats, "EXACT_SIDE", 39)
    monkeypatch.setattr(deltastats, "_ROWS", 7)
    for delta in (tall, tall.T.contiguous()):
        s = np.linalg.svd(delta.double().numpy(), compute_uv=False)
        energy = float(np.square(s).sum())
        stable, effective = ranks(delta, energy)
        assert stable == pytest.approx(np.log(energy / s[0] ** 2), rel=1e-6)
        assert effective == pytest.approx(np.log(energy**2 / (s**4).sum()), rel=1e-6)
    monkeypatch.setattr(deltastats, "EXACT_SIDE", 40)
    p = s**2 / energy
    assert ranks(tall, energy)[1] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("encoder.layer.3.output.dense.bias", "encoder.layer.3"),
        ("model.layers.11.mlp.experts.2.w1.weight", "model.layers.11.mlp.experts.2"),
        ("pooler.dense.bias", "pooler.dense"),
        ("h.0", "h.0"),
        ("conv2d.weight", "conv2d"),
        ("3.weight", "3"),
        ("bias", "bias"),
    ],
)
def test_a_layer_is_the_path_to_its_last_number(name: str, called: str) -> None:
    assert layer(name) == called


def test_levels_are_tensor_and_layer(two: Pair) -> None:
    checkpoint = Checkpoint.open(two.base)
    assert [group.name for group in groups(checkpoint, SHAPES, "layer")][:2] == [
        "embed (matrices)",
        "layer.0 (matrices)",
    ]
    with pytest.raises(ValueError, match="'tensor' and 'layer' are allowed"):
        groups(checkpoint, SHAPES, "model")


def test_a_pack_is_read_as_its_directory(two: Pair, tmp_path: Path) -> None:
    pack = tmp_path / "v.kin.safetensors"
    kinfold.pack(two.base, two.variant, pack, codec="exact", budget="exact")
    np.testing.assert_allclose(row(two.base, pack)[0], row(two.base, two.variant)[0], rtol=1e-9)
    other = save(tmp_path / "other", changed(pico(shapes=SHAPES), 9))
    with pytest.raises(WrongBaseError, match="fingerprint"):
        row(other, pack)


def test_a_new_head_is_not_in_the_row(classifier_pair: Pair) -> None:
    _, names = row(*classifier_pair)
    assert not any("classifier" in name for name in names)
    assert any(name.startswith("encoder.layer.1.output.dense.weight:") for name in names)


def test_no_tensor_of_the_bases_shape(two: Pair) -> None:
    with pytest.raises(AuditError, match="no tensor in the base's shape"):
        row(*two, tensors=["empty.weight"])


def test_a_delta_that_is_not_finite_is_named(two: Pair, tmp_path: Path) -> None:
    tensors = load_file(two.variant / "model.safetensors")
    tensors["layer.0.scale"][3] = torch.inf
    with pytest.raises(AuditError, match=r"`layer.0.scale` in .*NaN or infinity"):
        row(two.base, save(tmp_path / "v", tensors))
