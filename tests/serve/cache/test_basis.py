"""Oja's rule, ranks and the file of a basis."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kinfold.errors import CacheError, OutputError
from kinfold.serve.cache.basis import KVBasis, energy_left, energy_rank, leading_directions, oja, ratio_rank, residual

WIDTH = 16


def random_basis(seed: int, width: int = WIDTH, rank: int = 5) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, rank, generator=torch.Generator().manual_seed(seed))).Q


def tokens_of(spectrum: np.ndarray, seed: int) -> torch.Tensor:
    """(d, d) tokens whose second moment has exactly this spectrum in random directions."""
    turn = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(seed))).Q
    return torch.from_numpy(np.sqrt(spectrum)).float()[:, None] * turn


def captured(basis: torch.Tensor, tokens: torch.Tensor) -> float:
    moment = tokens.numpy().astype(np.float64).T @ tokens.numpy().astype(np.float64)
    u = basis.numpy().astype(np.float64)
    return float(np.trace(u.T @ moment @ u) / np.trace(moment))


spectra = st.tuples(
    st.floats(1 / WIDTH, 0.99), st.lists(st.floats(1e-3, 1.0), min_size=WIDTH - 1, max_size=WIDTH - 1)
).map(lambda drawn: np.array([drawn[0], *(np.array(drawn[1]) / sum(drawn[1]) * (1 - drawn[0]))]) * WIDTH)


@settings(max_examples=60, deadline=None)
@given(spectra, st.floats(1e-3, 10.0), st.integers(0, 99))
def test_the_stable_step_never_loses_energy(spectrum: np.ndarray, eta: float, seed: int) -> None:
    tokens, basis = tokens_of(spectrum, seed), random_basis(seed + 1)
    before = captured(basis, tokens)
    for _ in range(10):
        basis = oja(basis, tokens, eta)
        assert (basis.mT @ basis - torch.eye(5)).abs().max() < 1e-5
        after = captured(basis, tokens)
        assert after >= before * (1 - 1e-5)
        before = after


@pytest.mark.parametrize("seed", range(5))
def test_many_steps_reach_the_leading_directions(seed: int) -> None:
    spectrum = np.geomspace(0.99, 0.01, WIDTH)
    spectrum *= WIDTH / spectrum.sum()
    basis = oja(random_basis(seed), tokens_of(spectrum, seed), 0.5, 200)
    assert captured(basis, tokens_of(spectrum, seed)) > 0.99 * spectrum[:5].sum() / WIDTH


def test_both_forms_agree_at_small_rates() -> None:
    spectrum = np.full(WIDTH, 0.5)
    spectrum[0] = WIDTH - 7.5
    tokens, basis = tokens_of(spectrum, 3), random_basis(4)
    eta = 0.01 / spectrum[0]
    spans = [oja(basis, tokens, eta, update=form).double() for form in ("stable", "published")]
    angle = torch.linalg.svdvals(spans[0].mT @ spans[1]).min().clamp(max=1).acos()
    assert float(angle) < 1e-3


def test_the_published_form_can_lose_the_best_direction() -> None:
    """What the stable form is for: a rate that overshoots, on a spectrum as keys have it."""
    spectrum = np.full(WIDTH, 0.2)
    spectrum[0] = WIDTH - 3
    tokens, basis = tokens_of(spectrum, 1), random_basis(2)
    stable, published = (captured(oja(basis, tokens, 0.5, 20, form), tokens) for form in ("stable", "published"))
    assert stable > 0.8
    assert published < stable


def test_one_step_is_the_formula() -> None:
    tokens, basis = torch.randn(2, 30, WIDTH, generator=torch.Generator().manual_seed(0)), random_basis(1)
    found = oja(basis, tokens, 0.3)
    for row, span in zip(tokens.double(), found.double(), strict=True):
        moment = row.mT @ row
        moment *= WIDTH / moment.trace()
        for form, eta, got in (
            ("stable", 0.3, span),
            ("published", 0.2, oja(basis, row, 0.2, 1, "published").double()),
        ):
            u = basis.double()
            change = moment @ u if form == "stable" else moment @ u - u @ u.mT @ moment @ u
            q = torch.linalg.qr(u + eta * change).Q
            torch.testing.assert_close(got @ got.mT, q @ q.mT, atol=1e-5, rtol=0)


def test_tokens_of_zeros_turn_nothing() -> None:
    basis = random_basis(0)
    found = oja(basis, torch.zeros(4, WIDTH), 0.5, 20)
    torch.testing.assert_close(found @ found.mT, basis @ basis.mT)


def test_residual() -> None:
    basis, tokens = random_basis(0), torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))
    left = residual(tokens, basis)
    torch.testing.assert_close(left @ basis, torch.zeros(7, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(left + tokens @ basis @ basis.mT, tokens)


def test_ranks() -> None:
    assert [ratio_rank(ratio, 64) for ratio in (0.8, 0.6, 1.0, 0.001)] == [52, 39, 64, 1]
    assert ratio_rank(0.7, 10) == 7
    values = torch.tensor([[6.0, 3.0, 1.0, 0.0], [10.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert [energy_rank(values, share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    for ratio in (0.0, 1.1, math.nan):
        with pytest.raises(CacheError, match="above 0 and at most 1"):
            ratio_rank(ratio, 64)


def test_what_lies_outside() -> None:
    rows = torch.randn(2, 50, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moment = rows.mT @ rows
    values, vectors = leading_directions(moment)
    assert (values.diff() <= 0).all()
    basis = vectors[..., :6]
    wanted = (residual(rows, basis.float()).double().square().sum((1, 2)) / rows.square().sum((1, 2))).tolist()
    assert energy_left(moment, basis) == pytest.approx(wanted, abs=1e-6)
    assert energy_left(torch.zeros(1, WIDTH, WIDTH, dtype=torch.float64), basis[:1]) == (0.0,)


def basis_of(layers: int = 2, rank: int = 5) -> KVBasis:
    key = {n: torch.stack([random_basis(9 * n + h, rank=rank) for h in range(2)]) for n in range(layers)}
    value = {n: torch.stack([random_basis(99 * n + h + 50, rank=rank + 1) for h in range(2)]) for n in range(layers)}
    energies = dict.fromkeys(range(layers), (0.9, 0.8))
    return KVBasis(key, value, energies, energies, "ab" * 32, 12, {"ratio": 0.3, "seed": 0})


def test_round_trip(tmp_path: Path) -> None:
    basis, path = basis_of(), tmp_path / "b.kvbasis.safetensors"
    basis.save(path)
    found = KVBasis.load(path)
    assert all(torch.equal(found.key[n], basis.key[n]) and torch.equal(found.value[n], basis.value[n]) for n in (0, 1))
    assert (found.key_energy, found.base, found.tokens) == (basis.key_energy, basis.base, 12)
    assert found.options == basis.options
    assert found.nbytes == 4 * 2 * (5 + 6) * 2 * WIDTH
    before = path.read_bytes()
    with pytest.raises(OutputError):
        basis.save(path)
    basis.save(path, overwrite=True)
    assert path.read_bytes() == before


def test_cut_keeps_the_first_columns() -> None:
    basis = basis_of()
    assert basis.cut(None).key_energy == basis.key_energy
    cut = basis.cut(3 / WIDTH)
    assert torch.equal(cut.key[1], basis.key[1][..., :3])
    assert torch.equal(cut.value[1], basis.value[1][..., :3])
    assert (cut.key_energy, cut.value_energy) == ({}, {})
    cut = basis.cut(5 / WIDTH, 2 / WIDTH)
    assert cut.key_energy == basis.key_energy
    assert cut.value[0].shape == (2, WIDTH, 2)
    with pytest.raises(CacheError, match=r"holds 0\.312") as refused:
        basis.cut(0.8)
    assert "kinfold kv calibrate" in refused.value.hint


def rewrite(path: Path, change: dict[str, torch.Tensor | None], header: dict[str, object] | None = None) -> None:
    basis = basis_of()
    tensors = {f"key.{n}": basis.key[n] for n in (0, 1)} | {f"value.{n}": basis.value[n] for n in (0, 1)}
    told = {"format": 1, "base": "", "tokens": 1, "options": {}, "key_energy": {}, "value_energy": {}}
    tensors = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    save_file(tensors, path, {"kinfold.kvbasis": json.dumps({**told, **(header or {})})})


@pytest.mark.parametrize(
    ("change", "header", "reason"),
    [
        ({"key.0": torch.ones(2, WIDTH, 5)}, {}, "not orthonormal"),
        ({"key.0": torch.full((2, WIDTH, 5), math.nan)}, {}, "not orthonormal"),
        ({"key.0": torch.ones(2, WIDTH, 5, dtype=torch.float64)}, {}, "no float32"),
        ({"key.0": torch.ones(WIDTH, 5)}, {}, "no float32 of three"),
        ({"key.0": torch.ones(2, 4, 5)}, {}, "impossible shape"),
        ({"key.0": None}, {}, "both"),
        ({"key.x": torch.ones(2, 4, 5)}, {}, "no sound KV basis"),
        ({"other": torch.ones(2, 4, 5)}, {}, "both"),
        ({}, {"format": 2}, "not one this version writes"),
        ({}, {"more": 1}, "not one this version writes"),
        ({}, {"key_energy": {"7": [1.0]}}, "of other layers"),
    ],
)
def test_damaged_files(tmp_path: Path, change: dict, header: dict, reason: str) -> None:
    rewrite(tmp_path / "b", {})
    KVBasis.load(tmp_path / "b")
    rewrite(tmp_path / "b", change, header)
    with pytest.raises(CacheError, match=reason) as refused:
        KVBasis.load(tmp_path / "b")
    assert "kinfold kv calibrate" in refused.value.hint


def test_other_files(tmp_path: Path) -> None:
    save_file({"key.0": torch.ones(1)}, tmp_path / "b")
    with pytest.raises(CacheError, match="holds no KV basis"):
        KVBasis.load(tmp_path / "b")
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-1])
    with pytest.raises(CacheError, match="no valid safetensors"):
        KVBasis.load(tmp_path / "b")
    with pytest.raises(CacheError):
        KVBasis.load(tmp_path / "none")
