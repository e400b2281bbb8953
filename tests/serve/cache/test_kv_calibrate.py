"""Calibration against numpy on the model's own keys, and drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import decoder, prompt
from transformers import DynamicCache
from wired import calibration_texts

from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.errors import CacheError
from kinfold.serve.cache import KVBasis, calibrate, drift
from kinfold.serve.cache.calibrate import base_of, mean_share
from models import llama

TEXTS = [prompt(1, 60, seed=3), prompt(1, 41, seed=4)]


def numpy_moments(model: Any, layer: int, value: bool = False) -> np.ndarray:
    """(kv_heads, d, d) of the plain cache's keys or values over both texts, float64."""
    total = np.zeros((2, 16, 16))
    for ids in TEXTS:
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(ids, past_key_values=cache)
        rows = getattr(cache.layers[layer], "values" if value else "keys")[0].double().numpy()
        total += np.einsum("hnd,hne->hde", rows, rows)
    return total


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bases_are_the_leading_directions_of_the_models_own(attention: str) -> None:
    model = decoder("qwen3", attention)
    basis = calibrate(model, TEXTS, ratio=0.5, value_ratio=0.25)
    assert (basis.tokens, sorted(basis.key), basis.base) == (101, [0, 1], "")
    for value, rank, bases, energies in (
        (False, 8, basis.key, basis.key_energy),
        (True, 4, basis.value, basis.value_energy),
    ):
        for layer in (0, 1):
            moments = numpy_moments(model, layer, value)
            for head, moment in enumerate(moments):
                values, vectors = np.linalg.eigh(moment)
                best = vectors[:, -rank:] @ vectors[:, -rank:].T
                found = bases[layer][head].double().numpy()
                assert found.shape == (16, rank)
                np.testing.assert_allclose(found @ found.T, best, atol=1e-4)
                assert energies[layer][head] == pytest.approx(values[-rank:].sum() / values.sum(), abs=1e-5)


def test_ranks_by_energy() -> None:
    model = decoder()
    basis = calibrate(model, TEXTS, ratio=None, energy=0.9)
    for layer in (0, 1):
        needed = 1
        for moment in numpy_moments(model, layer):
            values = np.linalg.eigvalsh(moment)[::-1]
            needed = max(needed, int(np.argmax(values.cumsum() / values.sum() >= 0.9)) + 1)
        assert basis.key[layer].shape[2] == needed
        assert min(basis.key_energy[layer]) >= 0.9


def test_queries_can_be_stacked() -> None:
    """With "paper" and "balanced" the key basis is of both moments, the value basis as ever."""
    model, seen = decoder(), []
    attention = model.model.layers[1].self_attn
    spied = model.model.layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"], kwargs)),
        with_kwargs=True,
    )
    plain = calibrate(model, TEXTS, ratio=0.5)
    spied.remove()
    queries = np.zeros((2, 16, 16))
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    with torch.inference_mode():
        for hidden, kwargs in seen:
            normed = model.model.layers[1].input_layernorm(hidden)
            query = attention.q_proj(normed).view(1, -1, 4, 16).transpose(1, 2)
            query, _ = apply_rotary_pos_emb(query, query, *kwargs["position_embeddings"])
            rows = query[0].double().numpy().reshape(2, -1, 16)
            queries += np.einsum("hnd,hne->hde", rows, rows)
    keys = numpy_moments(model, 1)
    for how in ("paper", "balanced"):
        basis = calibrate(model, TEXTS, ratio=0.5, stack_queries=how)
        assert torch.equal(basis.value[1], plain.value[1])
        for head in (0, 1):
            k, q = keys[head], queries[head]
            both = k + q if how == "paper" else k / np.trace(k) + q / np.trace(q)
            best = np.linalg.eigh(both)[1][:, -8:]
            found = basis.key[1][head].double().numpy()
            np.testing.assert_allclose(found @ found.T, best @ best.T, atol=1e-4)


def test_drift_of_the_base_is_what_calibration_left_out() -> None:
    model = decoder()
    basis = calibrate(model, TEXTS, ratio=0.5)
    report = drift(model, basis, TEXTS)
    assert report.tokens == 101
    for layer in (0, 1):
        assert report.key[layer] == pytest.approx([1 - e for e in basis.key_energy[layer]], abs=1e-4)
        assert report.own_value[layer] == pytest.approx(report.value[layer], abs=1e-4)
    assert report.key_mean == pytest.approx(np.mean([report.key[0], report.key[1]]))
    other = drift(decoder(seed=5), basis, TEXTS)
    assert other.key_mean > 1.5 * report.key_mean
    assert other.value_mean > report.value_mean
    assert np.isnan(mean_share({}))


def test_heads_without_energy(wired: Any) -> None:
    basis = calibrate(wired, calibration_texts(), ratio=0.25)
    assert basis.key_energy[0][1] == 1.0
    torch.testing.assert_close(basis.key[0].mT @ basis.key[0], torch.eye(16).expand(2, -1, -1), atol=1e-5, rtol=0)


def test_tokens_are_limited_and_the_seed_chooses() -> None:
    model, texts = llama(), [prompt(1, 90, seed=n) for n in range(5)]  # a context of 64
    assert calibrate(model, texts).tokens == 5 * 64
    found = [calibrate(model, texts, max_tokens=100, seed=seed) for seed in (0, 0, 1)]
    assert [basis.tokens for basis in found] == [100] * 3
    assert torch.equal(found[0].key[0], found[1].key[0])
    assert not torch.equal(found[0].key[0], found[2].key[0])
    assert found[2].options["seed"] == 1


def test_the_base_is_named_by_its_directory(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path / "m")
    model = type(decoder()).from_pretrained(tmp_path / "m")
    checkpoint = Checkpoint.open(tmp_path / "m")
    wanted = fingerprint(specs_of(checkpoint), digests(checkpoint))
    assert calibrate(model, TEXTS).base == base_of(model) == wanted
    gone = type(model).from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    assert base_of(gone) == ""
    assert base_of(model) == wanted


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"energy": 0.9}, "both of ratio and energy"),
        ({"ratio": None}, "neither of ratio and energy"),
        ({"ratio": 0.0}, "ratio of 0"),
        ({"value_ratio": 1.5}, r"ratio of 1\.5"),
        ({"ratio": None, "energy": 1.5}, r"energy of 1\.5"),
    ],
)
def test_bad_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(CacheError, match=reason):
        calibrate(decoder(), TEXTS, **options)


def test_bad_texts() -> None:
    with pytest.raises(CacheError, match="no tokens"):
        calibrate(decoder(), [torch.zeros(1, 0, dtype=torch.int64)])
    with pytest.raises(CacheError, match="token 97, the model knows those below 97"):
        calibrate(decoder(), [torch.tensor([[97]])])


def test_bad_models() -> None:
    model = decoder()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.inf
    with pytest.raises(CacheError, match="layer 1 gave keys or values that are not finite"):
        calibrate(model, TEXTS)
    assert model.config._attn_implementation == "sdpa"
    basis = calibrate(decoder(), TEXTS)
    with pytest.raises(CacheError, match="layers"):
        drift(llama(), basis, TEXTS)


def test_a_layer_that_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    model.model.layers = model.model.layers[:1]
    with pytest.raises(CacheError, match="layer 1 was not run"):
        calibrate(model, TEXTS)


def test_moments_take_no_second_pass() -> None:
    from kinfold.serve.cache.calibrate import _Moments

    with pytest.raises(CacheError, match="in one pass"):
        _Moments(0).append(torch.empty(0), torch.empty(0))


def test_the_file_holds_it_all(tmp_path: Path) -> None:
    basis = calibrate(decoder(), TEXTS, ratio=0.5)
    basis.save(tmp_path / "b")
    assert KVBasis.load(tmp_path / "b").options == basis.options
