"""`requests` on pico variants: directories, packs and adapters, reports, presets and mistakes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import kinfold
from kinfold.audit.outliers import RequestMonitor, finetune, requests
from kinfold.audit.outliers.gradients import sample_gradients
from kinfold.audit.outliers.medix import ewm_filter
from kinfold.errors import AuditError, AuditOptionError, OutputError, WrongBaseError
from models import Pair, bert, finetuned, tokenizer


def texts(count: int, letters: str, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(letters, k=generator.randint(3, 9))) for _ in range(count)]


REFERENCE = texts(60, "abcdefg", 0)
LOG = [*texts(40, "abcdefg", 1), *texts(20, "uvwxyz", 2), "", ""]


@pytest.fixture(scope="module")
def variant(classifier_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier, with a tokenizer."""
    folder = tmp_path_factory.mktemp("requests") / "variant"
    shutil.copytree(classifier_pair.variant, folder)
    tokenizer(folder)
    return folder


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def outputs(variant: Path, rows: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits by transformers, one text at a time; letters are tokens 1 to 26."""
    model = AutoModelForSequenceClassification.from_pretrained(variant).eval()
    features, logits = [], []
    for row in rows:
        ids = torch.tensor([[ord(letter) - 96 for letter in row.split()] or [0]])
        with torch.no_grad():
            result = model(input_ids=ids, output_hidden_states=True)
        features.append(result.hidden_states[-1][0].double().mean(0).numpy())
        logits.append(result.logits[0].double().numpy())
    return np.array(features), np.array(logits)


def test_it_is_the_monitor_on_what_the_variant_says(classifier_pair: Pair, variant: Path) -> None:
    report = requests(classifier_pair.base, variant, REFERENCE, LOG, seed=3)
    distinct = list(dict.fromkeys(LOG))
    wanted = RequestMonitor(seed=3).fit(*outputs(variant, REFERENCE), *outputs(variant, distinct))
    assert report.share == pytest.approx(wanted.share_)
    for text, one in zip(LOG, report.verdicts, strict=True):
        i = distinct.index(text)
        assert one.score == pytest.approx(wanted.scores_[i], abs=1e-3)
        assert one.p_value == pytest.approx(wanted.p_values_[i], abs=2 / 61)
        assert one.copies == LOG.count(text)
        assert one.text is None
        assert sum(one.parts.values()) == pytest.approx(one.score)
    assert (report.reference, report.requests, report.distinct) == (60, 62, len(distinct))
    assert report.least_p == 1 / 61
    assert report.at == ""
    assert [one.id for one in report.verdicts] == [str(i + 1) for i in range(62)]
    assert all(a.score >= b.score for a, b in zip(report.flagged, report.flagged[1:], strict=False))
    assert sum(one.flagged for one in report.verdicts[40:60]) >= 10


def test_packs_are_restored_and_logs_are_read_from_files(classifier_pair: Pair, variant: Path, tmp_path: Path) -> None:
    pack = tmp_path / "v.kin.safetensors"
    kinfold.pack(classifier_pair.base, variant, pack, codec="exact")
    before = pack.read_bytes()
    log = lines(tmp_path / "log.jsonl", [{"text": text, "id": f"r{i}"} for i, text in enumerate(LOG)])
    packed = requests(classifier_pair.base, pack, REFERENCE, log, with_text=True)
    plain = requests(classifier_pair.base, variant, REFERENCE, LOG)
    assert [one.score for one in packed.verdicts] == [one.score for one in plain.verdicts]
    assert packed.verdicts[3].id == "r3"
    assert packed.verdicts[3].text == LOG[3]
    assert packed.fingerprint == plain.fingerprint
    assert pack.read_bytes() == before
    other = bert(seed=9)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(WrongBaseError):
        requests(tmp_path / "other", pack, REFERENCE, LOG)


@pytest.mark.parametrize("name", ["energy", "knn", "msp", "l2", "sal", "medix", "none"])
def test_every_filter_runs_on_texts(name: Any, classifier_pair: Pair, variant: Path) -> None:
    report = requests(classifier_pair.base, variant, REFERENCE, LOG, filter=name)
    assert report.filter == name
    assert bool(report.at) == (name in ("l2", "sal", "medix"))
    if report.at:
        pooled = requests(classifier_pair.base, variant, REFERENCE, LOG, filter=name, at="bert.pooler")
        assert pooled.at == "bert.pooler"  # its output is (rows, width)
    assert sum(one.flagged for one in report.verdicts[40:60]) > sum(one.flagged for one in report.verdicts[:40]) / 2


def test_the_papers_preset(
    classifier_pair: Pair, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows the vote removes, with k = .1 a round; the head is trained briefly here."""
    seen: list[np.ndarray] = []

    def trainer(task: Any, ids: Any, labels: Any, wild: Any, *, seed: int) -> Any:
        def train(known: np.ndarray, outliers: np.ndarray) -> Any:
            seen.append(outliers)
            return finetune.finetune_trainer(task, ids, labels, wild, epochs=1, seed=seed)(known, outliers)

        return train

    monkeypatch.setattr("kinfold.audit.outliers.judging.finetune_trainer", trainer)
    labels = [i % 3 for i in range(60)]
    rows = [{"text": text, "label": label} for text, label in zip(REFERENCE, labels, strict=True)]
    before = {path: path.read_bytes() for path in variant.iterdir()}
    report = requests(classifier_pair.base, variant, lines(tmp_path / "ref.jsonl", rows), LOG, preset="paper")
    assert (report.filter, report.head, report.at) == ("medix", "finetune", "bert.encoder.layer.1.output.LayerNorm")
    model = AutoModelForSequenceClassification.from_pretrained(variant).eval()

    def slopes(some: Sequence[str], known: Sequence[int | None]) -> np.ndarray:
        found = []
        for text, label in zip(some, known, strict=True):
            ids = torch.tensor([[ord(letter) - 96 for letter in text.split()] or [0]])
            label = None if label is None else torch.tensor([label])
            found.append(sample_gradients(model, {"input_ids": ids}, at="last-norm", labels=label)[0])
        return np.array(found)

    distinct = list(dict.fromkeys(LOG))
    wanted = ewm_filter(
        slopes(distinct, [None] * len(distinct)), slopes(REFERENCE, labels).mean(axis=0), k=0.1, max_rounds=9, eps=5e-4
    )
    assert sorted({*seen[0], *seen[1]}) == sorted(wanted.order[: wanted.removed])
    assert {path: path.read_bytes() for path in variant.iterdir()} == before
    with pytest.raises(AuditError, match="has label None"):
        requests(classifier_pair.base, variant, REFERENCE, LOG, preset="paper")


def test_a_causal_variant_and_its_note(llama_pair: Pair) -> None:
    report = requests(llama_pair.base, llama_pair.variant, REFERENCE, LOG, fdr=0.2)
    assert set(report.verdicts[0].parts) == {"head", "energy"}
    assert any("have not been measured" in note for note in report.notes)
    assert any("5 or more stand out" in note for note in report.notes)  # 61 / (0.2 * 61)
    for options in ({"head": "finetune"}, {"preset": "paper"}):
        with pytest.raises(AuditError, match="LlamaForCausalLM without classes"):
            requests(llama_pair.base, llama_pair.variant, REFERENCE, LOG, **options)  # type: ignore[arg-type]


def test_variants_without_classes(bert_pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(bert_pair.variant, tmp_path / "bare")
    tokenizer(tmp_path / "bare")
    finetuned(bert(classes=1, num_labels=1), tmp_path / "single")
    tokenizer(tmp_path / "single")
    with pytest.raises(AuditError, match="needs logits") as caught:
        requests(bert_pair.base, tmp_path / "bare", REFERENCE, LOG)
    assert "--filter knn" in caught.value.hint
    with pytest.raises(AuditError, match="the model has 1 output") as caught:
        requests(bert_pair.base, tmp_path / "single", REFERENCE, LOG)
    assert "--filter knn" in caught.value.hint
    with pytest.raises(AuditError, match="gives no logits"):
        requests(bert_pair.base, tmp_path / "bare", REFERENCE, LOG, filter="medix")
    for name in ("bare", "single"):
        report = requests(bert_pair.base, tmp_path / name, REFERENCE, LOG, filter="knn")
        assert set(report.verdicts[0].parts) == {"head", "knn"}


def test_a_monitor_judges_later_requests(
    classifier_pair: Pair, variant: Path, llama_pair: Pair, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    base = classifier_pair.base
    fitted = requests(base, variant, REFERENCE, LOG, save_monitor=path, max_length=5)
    later = requests(base, variant, None, [*LOG[40:60], LOG[0]], monitor=path, false_alarm=0.2)
    assert (later.share, later.reference, later.requests, later.false_alarm) == (None, 60, 21, 0.2)
    features, logits = outputs(variant, [" ".join(LOG[40].split()[:5])])  # cut as the monitor's were
    wanted = RequestMonitor.load(path, variant=fitted.fingerprint).decision_function(features, logits)
    assert later.verdicts[0].score == pytest.approx(wanted[0], abs=1e-3)
    assert sum(one.flagged for one in later.verdicts) >= 10
    with pytest.raises(AuditError, match="fitted for a variant of fingerprint"):
        requests(llama_pair.base, llama_pair.variant, None, LOG, monitor=path)
    with pytest.raises(OutputError, match="exists"):
        requests(base, variant, REFERENCE, LOG, save_monitor=path)


def test_answers_that_are_not_finite(classifier_pair: Pair, variant: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(variant)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[26] = float("nan")  # the letter z
    model.save_pretrained(tmp_path / "broken")
    tokenizer(tmp_path / "broken")
    reference = lines(tmp_path / "r.jsonl", [{"text": text} for text in REFERENCE])
    first = next(i for i, text in enumerate(LOG) if "z" in text)
    with pytest.raises(AuditError, match=f"answer to record `{first + 1}` is not finite"):
        requests(classifier_pair.base, tmp_path / "broken", reference, LOG)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reference": REFERENCE[:49]}, AuditError, "the reference has 49 rows; 50 or more"),
        ({"requests": LOG[:19]}, AuditError, "the log has 19 rows; 20 or more"),
        ({"requests": LOG[:3] * 9}, AuditError, "the log has 3 different rows; 20 or more"),
        ({"reference": None}, AuditError, "either a reference or a monitor"),
        ({"monitor": "m"}, AuditError, "either a reference or a monitor"),
        ({"filter": "lof"}, AuditOptionError, "filter is 'lof'"),
        ({"head": "deep"}, AuditOptionError, "head is 'deep'; 'linear', 'none', 'finetune'"),
        ({"preset": "best"}, AuditOptionError, "preset is 'best'; 'default', 'paper'"),
        ({"fdr": 2.0}, AuditOptionError, "fdr is 2.0"),
        ({"k": 62}, AuditOptionError, "k is 62"),
        ({"max_length": 0}, AuditOptionError, "max_length is 0"),
        ({"batch_size": 0}, AuditOptionError, "batch_size 0"),
        ({"filter": "l2", "at": "bert.poler"}, AuditError, "`bert.poler` names no module"),
        ({"device": "abacus"}, AuditError, "torch cannot use the device `abacus`"),
    ],
)
def test_mistakes(
    options: dict[str, Any], error: type[Exception], words: str, classifier_pair: Pair, variant: Path
) -> None:
    given = {"reference": REFERENCE, "requests": LOG, **options}
    with pytest.raises(error, match=words):
        requests(classifier_pair.base, variant, **given)


def test_a_false_alarm_that_none_can_reach(classifier_pair: Pair, variant: Path) -> None:
    report = requests(classifier_pair.base, variant, REFERENCE, LOG, false_alarm=0.01)
    assert not report.flagged
    assert any("none can be flagged at 0.01" in note for note in report.notes)
