"""Calibration of fold: the answers on the rows come nearer to the variant's, at the same bytes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import kinfold
from kinfold.errors import BudgetError
from kinfold.pack.steer import PASSES, Bench
from models import Pair, save

BUDGET = 2600  # bytes, of which the manifest takes 1900


def rows(count: int, vocabulary: int = 99) -> list[dict[str, Any]]:
    random.seed(4)
    return [{"input_ids": random.choices(range(1, vocabulary), k=random.choice([7, 9]))} for _ in range(count)]


def answers(directory: Path, some: list[dict[str, Any]]) -> list[np.ndarray]:
    """Log-probabilities of every next token but the last, float64, one row at a time, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].numpy() for row in some]
    return [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits]


def divergence(directory: Path, variant: Path, some: list[dict[str, Any]]) -> float:
    pairs = zip(answers(variant, some), answers(directory, some), strict=True)
    return float(np.mean([(np.exp(p) * (p - q)).sum(-1).mean() for p, q in pairs]))


def restored(pair: Pair, out: Path, **given: Any) -> Path:
    kinfold.pack(*pair, out, **given)
    back = out.with_suffix(".dir")
    kinfold.restore(out, pair.base, back)
    return back


def features(directory: Path, some: list[dict[str, Any]]) -> np.ndarray:
    """Mean last hidden states, float64 (rows, hidden), one row at a time, by transformers alone."""
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float64).eval()
    with torch.no_grad():
        return np.stack(
            [model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0].mean(0).numpy() for row in some]
        )


def test_rows_bring_the_answers_nearer(bert_pair: Pair, tmp_path: Path) -> None:
    some = rows(3, 60)
    plain = restored(bert_pair, tmp_path / "plain", budget=BUDGET)
    guided = restored(bert_pair, tmp_path / "guided", budget=BUDGET, calibration=kinfold.Calibration(some))
    wanted = features(bert_pair.variant, some)
    before, after = (np.square(features(d, some) - wanted).sum() for d in (plain, guided))
    assert after < 0.75 * before
    assert (tmp_path / "guided").stat().st_size <= BUDGET


def test_unseen_rows_gain_too(bert_pair: Pair, tmp_path: Path) -> None:
    some = rows(128, 60)
    plain = restored(bert_pair, tmp_path / "plain", budget=BUDGET)
    guided = restored(bert_pair, tmp_path / "guided", budget=BUDGET, calibration=kinfold.Calibration(some[:96]))
    wanted = features(bert_pair.variant, some[96:])
    before, after = (np.square(features(d, some[96:]) - wanted).sum() for d in (plain, guided))
    assert after < 0.9 * before


def test_fine_codes_are_tried_once(bert_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dithered steps have no second-best codeword to choose: no further gradient is taken."""
    taken = []
    gradients = Bench._differentiate
    monkeypatch.setattr(Bench, "_differentiate", lambda self, *given: taken.append(1) or gradients(self, *given))
    for budget in ("1/2", BUDGET):
        some = kinfold.Calibration(rows(2, 60))
        kinfold.pack(*bert_pair, tmp_path / "pack", budget=budget, calibration=some, overwrite=True)
    assert len(taken) == 1 + PASSES


def test_same_bytes_twice_and_labels_do_not_matter(llama_pair: Pair, tmp_path: Path) -> None:
    for name, more in (("one", {}), ("two", {})):
        some = [row | more for row in rows(3)]
        kinfold.pack(*llama_pair, tmp_path / name, budget=BUDGET, calibration=kinfold.Calibration(some))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_one_row_is_enough(bert_pair: Pair, tmp_path: Path) -> None:
    some = kinfold.Calibration(rows(1, 60))
    report = kinfold.pack(*bert_pair, tmp_path / "one", budget="1/8", calibration=some)
    assert report.file_bytes <= report.reference_bytes // 8


@pytest.mark.parametrize("gain", [0.7, 0.95])
def test_the_file_of_a_gain_recovers_it(llama_pair: Pair, tmp_path: Path, gain: float) -> None:
    some = rows(6)
    given = {"budget": f"gain={gain}", "calibration": kinfold.Calibration(some)}
    back = restored(llama_pair, tmp_path / "pack", **given)
    left = divergence(back, llama_pair.variant, some) / divergence(llama_pair.base, llama_pair.variant, some)
    assert 1 - left >= gain


def test_more_gain_takes_more_bytes(llama_pair: Pair, tmp_path: Path) -> None:
    sizes = []
    for gain in (0.5, 0.99):
        given = {"budget": f"gain={gain}", "calibration": kinfold.Calibration(rows(4))}
        sizes.append(kinfold.pack(*llama_pair, tmp_path / str(gain), **given).file_bytes)
    assert sizes[0] < sizes[1]


def test_a_gain_beyond_the_largest_file_names_exact(llama_pair: Pair, tmp_path: Path) -> None:
    given = {"budget": "gain=0.9999999999", "calibration": kinfold.Calibration(rows(2))}
    with pytest.raises(BudgetError, match=r"recovers 0\.\d+ of the effect, less than `gain=0\.9999999999`") as caught:
        kinfold.pack(*llama_pair, tmp_path / "pack", **given)
    assert caught.value.hint == "--codec exact"
    assert not list(tmp_path.iterdir())


def test_nothing_to_recover(llama_pair: Pair, tmp_path: Path) -> None:
    """Base and variant differ in a tensor only that the model does not load."""
    pair = with_spare(tmp_path, llama_pair.base, llama_pair.base)
    given = {"budget": "gain=0.9", "calibration": kinfold.Calibration(rows(2))}
    with pytest.raises(BudgetError, match="no gain to recover"):
        kinfold.pack(*pair, tmp_path / "pack", **given)


def test_a_variant_equal_to_its_base_needs_no_bytes(llama_pair: Pair, tmp_path: Path) -> None:
    given = {"budget": "gain=0.9", "calibration": kinfold.Calibration(rows(2))}
    report = kinfold.pack(llama_pair.base, llama_pair.base, tmp_path / "pack", **given)
    assert report.reference_bytes == 0


def test_a_gain_needs_rows(llama_pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="measured on rows") as caught:
        kinfold.pack(*llama_pair, tmp_path / "pack", budget="gain=0.9")
    assert "--calibrate FILE.jsonl" in caught.value.hint


def with_spare(folder: Path, *directories: Path) -> Pair:
    """Copies of model directories, each with a tensor of its own that the model does not load."""
    for seed, directory in enumerate(directories):
        tensors = load_file(directory / "model.safetensors")
        tensors["spare.weight"] = torch.randn(80, 90, generator=torch.Generator().manual_seed(seed))
        save(folder / ("base", "variant")[seed], tensors)
        shutil.copy(directory / "config.json", folder / ("base", "variant")[seed])
    return Pair(folder / "base", folder / "variant")


def test_tensors_that_the_model_does_not_load_are_coded_as_without_rows(llama_pair: Pair, tmp_path: Path) -> None:
    """A delta outside the model has no gradient."""
    pair = with_spare(tmp_path, *llama_pair)
    report = kinfold.pack(*pair, tmp_path / "pack", budget="1/8", calibration=kinfold.Calibration(rows(2)))
    assert report.tensors["fold"] == len(load_file(pair.variant / "model.safetensors"))
