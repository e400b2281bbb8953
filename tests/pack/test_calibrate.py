"""Calibration: rows of a file steer what a pack keeps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import kinfold
from forge import take_apart
from kinfold.errors import CalibrationError, CodecError
from models import beside, raw


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(count: int, vocabulary: int, **more: Any) -> list[dict[str, Any]]:
    random.seed(1)
    return [{"input_ids": random.choices(range(1, vocabulary), k=9), **more} for _ in range(count)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jsonl(tmp_path_factory.mktemp("rows") / "t.jsonl", [{"text": "k i n f o l d"}, {"text": "a b z a"}])


@pytest.mark.parametrize("score", ["fisher", "taylor"])
@pytest.mark.parametrize("kind", ["input_ids", "text"])
def test_scores_of_the_loss(tmp_path: Path, llama_pair: Any, texts: Path, score: str, kind: str) -> None:
    path = texts if kind == "text" else jsonl(tmp_path / "rows.jsonl", ids(3, 99))
    calibration = kinfold.Calibration.read(path)
    # rank:1 gives few bits to each matrix, so that the order of entries matters
    given: dict[str, Any] = {"options": {"score": score}, "budget": "rank:1", "calibration": calibration}
    outs = [tmp_path / name for name in ("one", "two", "plain")]
    for out in outs[:2]:
        kinfold.pack(*llama_pair, out, codec="osd", **given)
    kinfold.pack(*llama_pair, outs[2], codec="osd", budget="rank:1")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    for row in kinfold.inspect(outs[0]).tensors:
        if row.codec == "osd":
            assert 0.97 * 4 * sum(row.shape) <= row.bytes <= 4 * sum(row.shape)
    manifests = [take_apart(out)[1] for out in outs]
    assert manifests[0]["calibration"] == calibration.digest
    assert "calibration" not in manifests[2]
    restored = []
    for out in (outs[0], outs[2]):
        kinfold.restore(out, llama_pair.base, tmp_path / f"{out.name}.dir")
        restored.append(raw(tmp_path / f"{out.name}.dir"))
    coded = [name for name in restored[0] if restored[0][name] != restored[1][name]]
    assert coded
    assert all(name.startswith("model.layers") and "mlp" in name for name in coded)


def test_a_whole_file_budget_with_calibration(tmp_path: Path, llama_pair: Any, texts: Path) -> None:
    out = tmp_path / "v"
    given = {"options": {"score": "fisher"}, "calibration": kinfold.Calibration.read(texts)}
    kinfold.pack(*llama_pair, out, codec="osd", budget=20_000, **given)
    assert 0.97 * 20_000 <= out.stat().st_size <= 20_000
    bound = kinfold.pack(*llama_pair, tmp_path / "dry", codec="osd", budget=20_000, dry_run=True, **given).file_bytes
    assert out.stat().st_size <= bound <= 20_000
    assert beside(out) == ["v"]


def test_any_number_of_cores_gives_the_same_bytes(
    tmp_path: Path, llama_pair: Any, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        before = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            given = {"options": {"score": "taylor"}, "calibration": kinfold.Calibration.read(texts)}
            kinfold.pack(*llama_pair, tmp_path / f"{cores}", codec="osd", budget="rank:1", **given)
        finally:
            torch.set_num_threads(before)
        seen.add((tmp_path / f"{cores}").read_bytes())
    assert len(seen) == 1


def test_the_papers_extra_rank_is_the_one_of_least_divergence(tmp_path: Path, llama_pair: Any) -> None:
    """Every c is packed, loaded and compared with the variant's logits in float64; the choice must be the best."""
    rows = ids(4, 99)
    wanted = LlamaForCausalLM.from_pretrained(llama_pair.variant).eval()

    def log_p(model: Any, row: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double().log_softmax(-1)

    divergences = {}
    for c in (1, 2, 3, 4, 6, 8):
        options = {"layout": "paper", "extra_rank": c, "score": "mag"}
        kinfold.pack(*llama_pair, tmp_path / f"{c}", codec="osd", options=options, budget="rank:1")
        model = kinfold.load(tmp_path / f"{c}", llama_pair.base)
        pairs = [(log_p(wanted, row), log_p(model, row)) for row in rows]
        divergences[c] = sum(float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs) / len(rows)
    best = min(divergences, key=lambda c: divergences[c])
    assert len(set(divergences.values())) > 1
    calibration = kinfold.Calibration.read(jsonl(tmp_path / "rows.jsonl", rows))
    options = {"layout": "paper", "score": "mag"}
    kinfold.pack(
        *llama_pair, tmp_path / "chosen", codec="osd", options=options, budget="rank:1", calibration=calibration
    )
    ranks = {row.rank for row in kinfold.inspect(tmp_path / "chosen").tensors if row.codec == "osd"}
    assert ranks == {1 + best}


def test_labels_of_the_data(tmp_path: Path, classifier_pair: Any) -> None:
    """The base is a bare encoder without the `bert.` prefix; gradients flow through the variant's own head."""
    rows = [row | {"label": number % 3} for number, row in enumerate(ids(4, 160))]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    for labels in ("data", "model"):
        kinfold.pack(
            *classifier_pair,
            tmp_path / labels,
            codec="osd",
            options={"score": "fisher"},
            budget="rank:1",
            calibration=kinfold.Calibration.read(path, labels),
        )
    assert (tmp_path / "data").read_bytes() != (tmp_path / "model").read_bytes()
    assert kinfold.verify(tmp_path / "data", classifier_pair.base).sound
    bare = jsonl(tmp_path / "bare.jsonl", ids(2, 160))
    with pytest.raises(CalibrationError, match="labels=data needs an integer below 3 in every row"):
        kinfold.pack(
            *classifier_pair,
            tmp_path / "v",
            codec="osd",
            options={"score": "fisher"},
            budget="rank:1",
            calibration=kinfold.Calibration.read(bare, "data"),
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare.jsonl", "data", "model", "rows.jsonl"]


def test_an_encoder_without_a_head(tmp_path: Path, bert_pair: Any) -> None:
    calibration = kinfold.Calibration(ids(2, 160))
    for out in ("one", "two"):
        given = {"options": {"score": "taylor"}, "calibration": calibration}
        kinfold.pack(*bert_pair, tmp_path / out, codec="osd", budget="rank:1", **given)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_unreadable_line_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": }\n')
    with pytest.raises(CalibrationError, match=r"line 2 of .*rows.jsonl"):
        kinfold.Calibration.read(path)


def test_texts_without_a_tokenizer(tmp_path: Path, bert_pair: Any, texts: Path) -> None:
    with pytest.raises(CalibrationError, match="has no tokenizer"):
        kinfold.pack(
            *bert_pair,
            tmp_path / "v",
            codec="osd",
            options={"score": "fisher"},
            budget="rank:1",
            calibration=kinfold.Calibration.read(texts),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_score_that_needs_rows_says_so(tmp_path: Path, llama_pair: Any) -> None:
    with pytest.raises(CodecError, match="score=taylor needs calibration") as caught:
        kinfold.pack(*llama_pair, tmp_path / "v", codec="osd", options={"score": "taylor"})
    assert "--calibrate FILE.jsonl" in caught.value.hint
