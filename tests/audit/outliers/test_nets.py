"""Scores in numpy: against a forward pass written out here, and in a process that has no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import kinfold
from kinfold.audit.outliers import TCCM, nets
from kinfold.audit.outliers.nets import Model, Nets, time_embedding
from kinfold.audit.outliers.settings import Settings
from kinfold.audit.outliers.training import trained

ROWS = np.random.default_rng(0).normal(size=(40, 6)) * [1, 2, 3, 4, 5, 0.1] + 3


def unfolded(steps: int = 15, **changes: object) -> tuple[Nets, np.ndarray]:
    """Nets as training leaves them, and the rows they saw."""
    settings = Settings.of(TCCM(max_steps=steps, hidden=24, n_ensemble=3, **changes).get_params())  # type: ignore[arg-type]
    z = ((ROWS - ROWS.mean(0)) / ROWS.std(0)).astype(np.float32)
    return trained(z[None], settings)[0], z


def forward(one: Nets, k: int, z: np.ndarray, t: float) -> np.ndarray:
    """f_k([z ; e(t)]) in float64, as the paper writes it."""
    size = one.w1.shape[1] - z.shape[1]
    w = np.array([10000 ** (-i / (size // 2)) for i in range(size // 2)])
    inputs = np.concatenate([z, np.tile(np.concatenate([np.sin(t * w), np.cos(t * w)]), (len(z), 1))], axis=1)
    hidden = np.maximum(inputs @ one.w1[k].astype(float) + one.b1[k], 0)
    return np.maximum(hidden @ one.w2[k].astype(float) + one.b2[k], 0) @ one.w3[k].astype(float) + one.b3[k]


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_folding_the_time_changes_nothing(t: float) -> None:
    whole, z = unfolded()
    for k, residual in enumerate(whole.folded(t).residuals(z)):
        np.testing.assert_allclose(residual, forward(whole, k, z, t) + z, rtol=1e-5, atol=1e-5)


def test_without_steps_the_score_is_that_of_the_first_nets() -> None:
    whole, z = unfolded(steps=0)
    wanted = np.sqrt(np.mean([np.square(forward(whole, k, z, 1.0) + z).sum(1) for k in range(3)], axis=0))
    model = TCCM(max_steps=0, hidden=24, n_ensemble=3, threshold="in_sample").fit(ROWS)
    np.testing.assert_allclose(model.decision_function(ROWS), wanted, rtol=1e-5)


def test_no_time_is_no_column() -> None:
    assert time_embedding(1.0, 0).size == 0
    whole, z = unfolded(time_embed_dim=0)
    assert whole.w1.shape == (3, 6, 24)
    np.testing.assert_allclose(next(whole.folded(1.0).residuals(z)), forward(whole, 0, z, 1.0) + z, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 8192])
@pytest.mark.parametrize("ensemble", [1, 3])
def test_squares_of_the_parts_add_up_to_the_score(ensemble: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "CHUNK", chunk)
    model = TCCM(max_steps=10, hidden=24, n_ensemble=ensemble, threshold="in_sample").fit(ROWS)
    rows = np.random.default_rng(1).normal(size=(50, 6)) * 10
    parts = model.explain(rows)
    np.testing.assert_allclose(np.square(parts).sum(1), model.decision_function(rows) ** 2, rtol=1e-5)
    assert (parts >= 0).all()
    np.testing.assert_array_equal(np.abs(model.explain(rows, signed=True)), parts)


def test_a_part_is_above_zero_where_the_row_is_larger_than_expected() -> None:
    model = TCCM(max_steps=100, hidden=24, threshold="in_sample").fit(ROWS)
    far = np.tile(ROWS.mean(0), (2, 1))
    far[0, 2] += 100
    far[1, 2] -= 100
    signed = model.explain(far, signed=True)
    assert signed[0, 2] > 3
    assert signed[1, 2] < -3


def test_columns_may_change_places_with_their_parameters() -> None:
    whole, _ = unfolded()
    order = np.array([3, 1, 5, 0, 2, 4])
    plain = Model(ROWS.mean(0), ROWS.std(0), whole.folded(1.0))
    f = plain.nets
    turned = Nets(f.w1[:, order], f.b1, f.w2, f.b2, f.w3[:, :, order], f.b3[:, order])
    moved = Model(plain.mean[order], plain.scale[order], turned)
    np.testing.assert_allclose(moved.attributions(ROWS[:, order]), plain.attributions(ROWS)[:, order], rtol=1e-4)


def test_the_score_is_as_steep_as_lipschitz_says_and_no_steeper() -> None:
    model = TCCM(max_steps=60, hidden=24, threshold="in_sample").fit(ROWS)
    generator = np.random.default_rng(2)
    a, b = (generator.normal(size=(10_000, 6)) * generator.exponential(2, (10_000, 1)) for _ in range(2))
    b[::2] = a[::2] + 0.01 * b[::2]  # near ones too
    raw = [z * model.scale_ + model.mean_ for z in (a, b)]
    moved = np.abs(model.decision_function(raw[0]) - model.decision_function(raw[1]))
    assert (moved <= model.lipschitz_ * np.linalg.norm(a - b, axis=1)).all()


def test_lipschitz_is_the_mean_over_the_nets_of_the_products_of_spectral_norms() -> None:
    folded = unfolded()[0].folded(1.0)
    layers = [[float(np.linalg.svd(m.astype(float))[1][0]) for m in w] for w in (folded.w1, folded.w2, folded.w3)]
    each = np.prod(layers, axis=0)
    assert folded.lipschitz() == pytest.approx(np.sqrt(np.mean([(bound + 1) ** 2 for bound in each])), rel=1e-9)


def test_scoring_needs_no_torch(tmp_path: Path) -> None:
    """The very bits of a process with torch come out of one where importing it fails."""
    model = TCCM(max_steps=5, hidden=24, threshold="in_sample").fit(ROWS)._model
    arrays = {name: getattr(model.nets, name) for name in ("w1", "b1", "w2", "b2", "w3", "b3")}
    save_file({**arrays, "mean": model.mean, "scale": model.scale, "rows": ROWS}, tmp_path / "arrays.safetensors")
    package = Path(kinfold.__file__).parent
    program = f"""
import sys, types
sys.modules["torch"] = None
for name in ("kinfold", "kinfold.audit", "kinfold.audit.outliers"):  # packages whose own imports do not run
    module = types.ModuleType(name)
    module.__path__ = [{str(package)!r} + "/" + "/".join(name.split(".")[1:])]
    sys.modules[name] = module
from safetensors.numpy import load_file
from kinfold.audit.outliers.nets import Model, Nets
found = load_file({str(tmp_path / "arrays.safetensors")!r})
rows, mean, scale = (found.pop(name) for name in ("rows", "mean", "scale"))
sys.stdout.write(Model(mean, scale, Nets(**found)).scores(rows).tobytes().hex())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == model.scores(ROWS).tobytes().hex()
