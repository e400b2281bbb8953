"""What a variant makes of texts: transformers on one text at a time is the other route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from kinfold.audit.outliers import answers
from kinfold.audit.outliers.answers import read
from kinfold.audit.outliers.gradients import sample_gradients
from kinfold.errors import AuditError
from kinfold.tasks import Task
from models import Pair

TEXTS = [[5, 6, 7], [8], [9, 10, 11, 12], [5, 6, 8], [1, 2, 3], [7]]


def alone(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), output_hidden_states=True)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_classifiers_features_and_logits(classifier_pair: Pair, batch_size: int) -> None:
    found = read(Task.load(classifier_pair.variant), TEXTS, batch_size=batch_size)
    model = AutoModelForSequenceClassification.from_pretrained(classifier_pair.variant).eval()
    for i, ids in enumerate(TEXTS):
        result = alone(model, ids)
        np.testing.assert_allclose(found.features[i], result.hidden_states[-1][0].mean(0), atol=1e-5)
        assert found.logits is not None
        np.testing.assert_allclose(found.logits[i], result.logits[0], atol=1e-5)
    assert found.gradients is None
    assert found.features.dtype == np.float64


def test_gradients_come_with_them(classifier_pair: Pair) -> None:
    task = Task.load(classifier_pair.variant)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    labels = [0, 1, 2, 0, 1, 2]
    found = read(task, TEXTS, batch_size=2, at="auto", labels=labels)
    plain = read(task, TEXTS, batch_size=2)
    np.testing.assert_allclose(found.features, plain.features, atol=1e-6)
    for i, ids in enumerate(TEXTS):
        one = {"input_ids": torch.tensor([ids])}
        wanted = sample_gradients(task.model, one, labels=torch.tensor([labels[i]]))
        assert found.gradients is not None
        np.testing.assert_allclose(found.gradients[i], wanted[0], atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert not task.model._forward_hooks


@pytest.mark.parametrize("at_once", [1, 1 << 25])
def test_a_causal_models_surprise(llama_pair: Pair, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_LOGITS_AT_ONCE", at_once)
    found = read(Task.load(llama_pair.variant), TEXTS, batch_size=4, at="auto")
    model = AutoModelForCausalLM.from_pretrained(llama_pair.variant).eval()
    for i, ids in enumerate(TEXTS):
        result = alone(model, ids)
        np.testing.assert_allclose(found.features[i], result.hidden_states[-1][0].mean(0), atol=1e-5)
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() if len(ids) > 1 else 0.0
        assert found.logits is not None
        assert found.logits[i] == pytest.approx(loss, abs=1e-5)
    assert found.gradients is not None
    assert found.gradients.shape == (6, 144)
    assert not found.gradients[1].any()  # one token predicts none


def test_a_bare_encoder_has_features_only(bert_pair: Pair) -> None:
    task = Task.load(bert_pair.variant)
    found = read(task, TEXTS, batch_size=4)
    model = AutoModel.from_pretrained(bert_pair.variant).eval()
    np.testing.assert_allclose(found.features[2], alone(model, TEXTS[2]).last_hidden_state[0].mean(0), atol=1e-5)
    assert found.logits is None
    with pytest.raises(AuditError, match="gives no logits"):
        read(task, TEXTS, batch_size=4, at="auto")


def test_a_head_beside_an_encoder_is_used(bert_pair: Pair) -> None:
    task = Task.load(bert_pair.variant)
    torch.manual_seed(0)
    task.head = torch.randn(4, 32), torch.randn(4)
    found = read(task, TEXTS, batch_size=4, at="last-norm")
    assert found.logits is not None
    weight, bias = (part.double().numpy() for part in task.head)
    np.testing.assert_allclose(found.logits, found.features @ weight.T + bias, atol=1e-5)
    p = np.exp(found.logits) / np.exp(found.logits).sum(axis=1, keepdims=True)
    errors = p - np.eye(4)[found.logits.argmax(axis=1)]
    np.testing.assert_allclose(found.gradients, errors @ weight, atol=1e-5)  # type: ignore[arg-type]


def test_a_decoder_without_padding_reads_one_by_one(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    found = read(Task(model, None, None), TEXTS, batch_size=4)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits[3], alone(model, TEXTS[3]).logits[0], atol=1e-5)


def test_an_answer_for_every_token_is_refused() -> None:
    from transformers import BertConfig, BertForTokenClassification

    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    task = Task(BertForTokenClassification(config).eval(), None, None)
    with pytest.raises(AuditError, match="answers every token"):
        read(task, TEXTS, batch_size=4)
    with pytest.raises(AuditError, match="answers every token"):
        read(task, TEXTS, batch_size=4, at="auto")
