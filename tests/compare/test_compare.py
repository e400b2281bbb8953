"""`compare`: what it says of a codec is what packing, restoring and measuring by hand gives."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import kinfold
from kinfold.compare import Cell, Comparison
from kinfold.errors import BudgetError, CalibrationError, CheckpointError, MetricError
from models import Pair, pico, raw, save

CODECS = ["truncsvd:value_bits=4", "dare:value_bits=1"]


def distance(directory: Path, variant: Path) -> float:
    """Euclidean distance of all weights, in float64."""
    there, own = raw(directory), raw(variant)
    parts = [np.frombuffer(there[n][2], np.float32) - np.frombuffer(own[n][2], np.float32).astype(float) for n in own]
    return float(np.sqrt(sum((part**2).sum() for part in parts)))


def cell(found: Comparison, codec: str, budget: str) -> Cell:
    return next(cell for cell in found.cells if (cell.codec, cell.budget) == (codec, budget))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_cells_are_what_packing_and_restoring_gives(llama_pair: Pair, tmp_path: Path, temporary: Path) -> None:
    asked: list[Path] = []

    def closeness(directory: Path) -> float:
        assert not any(path.exists() for path in asked if path != llama_pair.variant)  # one at a time
        asked.append(directory)
        return -distance(directory, llama_pair.variant)

    found = kinfold.compare(*llama_pair, budgets=["24kB", "1/2"], codecs=CODECS, metric=closeness, seed=3)
    assert asked[0] == llama_pair.variant
    assert len(asked) == 2 + 4
    assert {path.name for path in asked[1:]} == {"variant"}
    assert os.listdir(temporary) == []
    bare = distance(llama_pair.base, llama_pair.variant)
    assert found.bare.score == pytest.approx(-bare)
    assert (found.uncompressed.gain, found.bare.gain, found.measure) == (1.0, 0.0, "gain")
    assert (found.budgets, found.codecs, found.seed) == (["24kB", "1/2"], CODECS, 3)
    for codec in CODECS:
        for budget in found.budgets:
            name, option = codec.split(":value_bits=")
            report = kinfold.pack(
                *llama_pair,
                tmp_path / "p",
                codec=name,
                options={"value_bits": int(option)},
                budget=budget,
                seed=3,
                overwrite=True,
            )
            kinfold.restore(tmp_path / "p", llama_pair.base, tmp_path / "back", overwrite=True)
            there = cell(found, codec, budget)
            away = distance(tmp_path / "back", llama_pair.variant)
            assert there.bytes == os.stat(tmp_path / "p").st_size
            assert there.quality is not None
            assert there.quality.error == report.error == pytest.approx(away / bare, rel=0.02)  # kept to three digits
            assert there.quality.score == pytest.approx(-away)
            assert there.quality.gain == pytest.approx((bare - away) / bare)
    assert found.reference_bytes == report.reference_bytes


def test_without_a_metric_the_least_divergence_is_best(llama_pair: Pair) -> None:
    found = kinfold.compare(*llama_pair, budgets="24kB,200kB", codecs="dare:value_bits=1,osd,exact")
    assert (found.measure, found.divergence_unit, found.metric) == ("divergence", "nats", None)
    assert [c.codec for c in found.best("24kB")] == ["osd"]
    assert [c.codec for c in found.best("200kB")] == ["exact"]
    exact = cell(found, "exact", "200kB").quality
    assert exact is not None
    assert exact.error == exact.divergence == 0.0 == found.uncompressed.divergence
    assert found.bare.divergence is not None
    assert found.bare.divergence > max(c.quality.divergence or 0 for c in found.cells if c.quality)
    assert found.inputs == "16 rows of 32 random tokens, seed 0"


def test_the_same_seed_gives_the_same_comparison(bert_pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [3, 4]}\n')
    options = {"budgets": "24kB", "codecs": "dare", "rows": tmp_path / "rows.jsonl"}
    first, again, other = (kinfold.compare(*bert_pair, seed=seed, **options) for seed in (0, 0, 1))
    assert first == again
    assert first.divergence_unit == "relative"
    assert first.bare == other.bare
    assert first.cells != other.cells  # another mask


def test_a_budget_that_cannot_be_met_names_the_smallest(llama_pair: Pair, tmp_path: Path) -> None:
    found = kinfold.compare(*llama_pair, budgets="1/256,24kB", codecs="bitdelta,exact")
    small = cell(found, "bitdelta", "1/256")
    assert small.bytes is None
    assert small.quality is None
    assert small.least_bytes is not None
    kinfold.pack(*llama_pair, tmp_path / "p", codec="bitdelta", budget=small.least_bytes)
    exact = kinfold.pack(*llama_pair, tmp_path / "e", codec="exact")
    assert cell(found, "exact", "24kB") == Cell("exact", "24kB", None, exact.file_bytes, None)
    assert found.best("1/256") == []


def test_calibration_reaches_the_codec(llama_pair: Pair) -> None:
    rows = kinfold.Calibration([{"input_ids": [3, 14, 15]}, {"input_ids": [9, 2, 6]}])
    found = kinfold.compare(*llama_pair, budgets="24kB", codecs="osd:score=fisher", calibration=rows)
    assert found.cells[0].quality is not None


def test_a_variant_no_better_than_the_bare_base_has_no_gain(llama_pair: Pair) -> None:
    found = kinfold.compare(*llama_pair, budgets="24kB", codecs="dare,osd", metric=lambda _: 0.5)
    assert found.measure == "score"
    assert found.notes == ["the variant scores 0.5, the bare base 0.5: there is no gain to recover"]
    assert all(c.quality and c.quality.gain is None for c in found.cells)
    assert [c.codec for c in found.best("24kB")] == ["dare", "osd"]  # equal


def test_a_model_that_transformers_does_not_know_needs_a_metric(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformers cannot load") as error:
        kinfold.compare(*pair, budgets="12kB", codecs="osd")
    assert "--metric" in error.value.hint
    found = kinfold.compare(*pair, budgets="12kB,1/256", codecs="osd", metric=lambda d: -distance(d, pair.variant))
    assert found.measure == "gain"
    assert cell(found, "osd", "1/256").quality is None
    assert found.divergence_unit is None
    assert found.bare.divergence is None
    assert "outputs were not compared" in found.notes[0]
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [3, 4]}\n')
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        kinfold.compare(*pair, budgets="12kB", rows=tmp_path / "rows.jsonl", metric=lambda _: 0.0)


def test_one_changed_tensor_is_enough(tmp_path: Path) -> None:
    tensors = pico()
    for name in ("norm.weight", "layer.0.weight"):
        changed = {**tensors, name: tensors[name] + torch.randn(tensors[name].shape) * 0.01}
        base, variant = save(tmp_path / f"b-{name}", tensors), save(tmp_path / f"v-{name}", changed)
        found = kinfold.compare(base, variant, budgets="8kB", metric=lambda d, v=variant: -distance(d, v))
        assert found.reference_bytes == 2 * tensors[name].numel()
        assert found.best("8kB")


def test_mistakes_are_named_before_the_work(llama_pair: Pair, tmp_path: Path) -> None:
    calls: list[Path] = []
    with pytest.raises(CheckpointError, match="no delta to compare"):
        kinfold.compare(llama_pair.base, llama_pair.base, metric=lambda d: calls.append(d) or 0.0)
    with pytest.raises(BudgetError, match="no budget"):
        kinfold.compare(*llama_pair, budgets=[])
    with pytest.raises(MetricError, match="module:function"):
        kinfold.compare(*llama_pair, metric="accuracy")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(CalibrationError, match="line 1"):
        kinfold.compare(*llama_pair, rows=tmp_path / "rows.jsonl", metric=lambda d: calls.append(d) or 0.0)
    assert calls == []
    with pytest.raises(MetricError, match="gave nan"):
        kinfold.compare(*llama_pair, metric=lambda _: float("nan"))
