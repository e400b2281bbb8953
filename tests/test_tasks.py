"""Rows, models and losses, against torch in float64 and values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kinfold.errors import CalibrationError, CheckpointError
from kinfold.tasks import (
    Answers,
    Task,
    device_of,
    divergence,
    drawn_loss,
    kind_of,
    labelled_loss,
    model_class,
    quiet_transformers,
    read_rows,
    row_losses,
    text_of,
)
from models import Pair, raw, save


def rows(folder: Path, text: str) -> Path:
    (folder / "rows.jsonl").write_text(text, "utf-8")
    return folder / "rows.jsonl"


def test_rows_are_read_and_blank_lines_passed_over(tmp_path: Path) -> None:
    path = rows(tmp_path, '{"text": "a b"}\n\n  \n{"input_ids": [1, 2], "label": 1, "more": null}\r\n{"text": "é"}')
    assert read_rows(path) == [
        {"text": "a b"},
        {"input_ids": [1, 2], "label": 1, "more": None},
        {"text": "é"},
    ]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_only_newlines_end_a_row(tmp_path: Path, mark: str) -> None:
    """JSON allows these raw inside a string, and json.dumps(ensure_ascii=False) writes them so."""
    assert read_rows(rows(tmp_path, f'{{"text": "a{mark}b"}}\n')) == [{"text": f"a{mark}b"}]


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "7", "{}", '{"text": 1}', '{"input_ids": []}', '{"input_ids": [1, -1]}', '{"input_ids": [1.5]}',
     '{"input_ids": [true]}', '{"input_ids": "12"}', '{"prompt": "a"}', '{"prompt": 1, "completion": "b"}',
     '{"question": "a", "completion": null}', '{"prompt": "a", "completion": "\\ud800"}',
     '{"text": "a", "question": "b", "answer": "\\ud800"}'],
)  # fmt: skip
def test_an_unreadable_line_is_named(tmp_path: Path, line: str) -> None:
    path = rows(tmp_path, '{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(CalibrationError, match=rf"line 3 of `{path}`"):
        read_rows(path)


@pytest.mark.parametrize("what", ["missing", "empty", "blank", "no text"])
def test_a_file_without_rows(tmp_path: Path, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    if what != "missing":
        path.write_bytes({"empty": b"", "blank": b"\n \n", "no text": b"\xff\xfe\n"}[what])
    words = {"missing": "cannot read", "no text": "cannot read"}.get(what, "has no rows")
    with pytest.raises(CalibrationError, match=words):
        read_rows(path)


def test_class_by_name_or_auto_model() -> None:
    config = transformers.BertConfig(architectures=["NoSuchModel", "BertForMaskedLM"])
    assert model_class(config) is transformers.BertForMaskedLM
    config.architectures = None
    assert model_class(config) is transformers.AutoModel


def test_quiet_gives_the_verbosity_back() -> None:
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        with quiet_transformers():
            assert logging.get_verbosity() == logging.ERROR
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()


IDS = [5, 17, 3, 90, 41, 2]


def test_a_causal_lm_answers_with_the_logits_of_all_but_the_last_position(llama_pair: Any) -> None:
    task = Task.load(llama_pair.variant)
    own = transformers.LlamaForCausalLM.from_pretrained(llama_pair.variant).eval()
    with torch.no_grad():
        wanted = own(input_ids=torch.tensor([IDS])).logits[0, :-1]
        assert torch.equal(task.output({"input_ids": IDS}), wanted)
        assert torch.equal(task.output({"text": "a b z"}), own(input_ids=torch.tensor([[1, 2, 26]])).logits[0, :-1])
    assert task.has_logits
    assert task.head is None


def test_a_prompt_and_its_completion_are_one_row_of_a_causal_lm(llama_pair: Any, classifier_pair: Any) -> None:
    """What is missing may be null, as in rows of several data sets."""
    task = Task.load(llama_pair.variant)
    pair = {"prompt": "a b z", "completion": "c d"}
    asked = {"question": "a b z", "answer": "c d"}
    for row in (
        pair,
        asked,
        pair | {"text": "e", "input_ids": [7]},
        asked | dict.fromkeys(pair),
        pair | {"text": None},
    ):
        assert task.reading(row) == ([1, 2, 26, 3, 4], 3)
    assert task.token_ids(pair, 4).tolist() == [[1, 2, 26, 3]]
    assert task.reading(pair | {"prompt": ""}) == ([3, 4], 1)
    assert task.reading({"text": "a b", "input_ids": None}) == task.reading({"text": "e", "input_ids": [1, 2]})
    assert Task(task.model, None, None).reading(pair | {"input_ids": [7, 8]}) == ([7, 8], 1)
    classifier = Task(Task.load(classifier_pair.variant).model, task.tokenizer, None)
    assert classifier.reading(pair | {"text": "e f", "input_ids": []}) == ([5, 6], 1)
    with pytest.raises(CalibrationError, match="prompts with completions are for causal language models"):
        classifier.reading(pair | {"text": None})


def test_what_a_row_says() -> None:
    pair = {"prompt": "a b", "completion": "c"}
    assert text_of(pair | {"text": "e", "input_ids": [1]}) == "a b c"
    assert text_of(pair | {"text": "e", "label": 1}) == "e"
    assert text_of({"input_ids": [1, 2], "text": None}) == "1 2"


def test_a_classifier_answers_with_its_logits(classifier_pair: Any) -> None:
    task = Task.load(classifier_pair.variant)
    own = transformers.BertForSequenceClassification.from_pretrained(classifier_pair.variant).eval()
    with torch.no_grad():
        assert torch.equal(task.output({"input_ids": IDS}), own(input_ids=torch.tensor([IDS])).logits[0])
    assert task.has_logits


def test_an_encoder_answers_with_its_mean_hidden_state(bert_pair: Any) -> None:
    task = Task.load(bert_pair.variant)
    own = transformers.BertModel.from_pretrained(bert_pair.variant).eval()
    with torch.no_grad():
        hidden = own(input_ids=torch.tensor([IDS])).last_hidden_state[0]
        assert torch.allclose(task.output({"input_ids": IDS}), hidden.double().mean(0).float(), atol=1e-6)
    assert not task.has_logits


def test_a_linear_head_beside_an_encoder_is_applied(tmp_path: Path, bert_pair: Any) -> None:
    from safetensors.torch import load_file

    tensors = load_file(bert_pair.variant / "model.safetensors")
    tensors |= {"head.weight": torch.randn(4, 32), "head.bias": torch.randn(4)}
    save(tmp_path / "m", tensors)
    (tmp_path / "m" / "config.json").write_bytes((bert_pair.variant / "config.json").read_bytes())
    task, bare = Task.load(tmp_path / "m"), Task.load(bert_pair.variant)
    assert task.has_logits
    with torch.no_grad():
        pooled = bare.output({"input_ids": IDS}).double()
        wanted = tensors["head.weight"].double() @ pooled + tensors["head.bias"].double()
        assert torch.allclose(task.output({"input_ids": IDS}).double(), wanted, atol=1e-5)
    assert raw(tmp_path / "m")["head.bias"][1] == (4,)


def test_a_language_model_of_another_name_has_logits_too(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=99, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    assert Task.load(tmp_path / "gpt2").has_logits
    transformers.GPT2Model(config).save_pretrained(tmp_path / "bare")
    assert not Task.load(tmp_path / "bare").has_logits


def test_texts_need_a_tokenizer(bert_pair: Any) -> None:
    task = Task.load(bert_pair.variant)
    with pytest.raises(CalibrationError, match="has no tokenizer") as caught:
        task.output({"text": "a"})
    assert "input_ids" in caught.value.hint


def test_long_rows_are_cut_to_what_the_model_takes(bert_pair: Any, llama_pair: Any) -> None:
    task = Task.load(bert_pair.variant)  # 64 positions
    with torch.no_grad():
        long, cut = (task.output({"input_ids": (IDS * 20)[:count]}) for count in (120, 64))
    assert torch.equal(long, cut)
    with torch.no_grad():
        assert Task.load(llama_pair.variant).output({"text": "a b c " * 100}).shape == (63, 99)


@pytest.mark.parametrize("row", [{"input_ids": [1, 160]}, {"text": "   "}])
def test_a_row_the_model_cannot_read_is_the_users_mistake(bert_pair: Any, llama_pair: Any, row: dict) -> None:
    task = Task.load(bert_pair.variant if "input_ids" in row else llama_pair.variant)
    with pytest.raises(CalibrationError, match="token"):
        task.output(row)


def test_parameters_with_or_without_the_prefix(classifier_pair: Any) -> None:
    task = Task.load(classifier_pair.variant)
    names = ["bert.pooler.dense.weight", "pooler.dense.weight", "classifier.weight"]
    found = task.parameters(names)
    assert list(found) == names
    assert found[names[0]] is found[names[1]] is task.model.bert.pooler.dense.weight
    with pytest.raises(CheckpointError, match="`nowhere` is no parameter of BertForSequenceClassification"):
        task.parameters(["nowhere"])


def test_a_directory_transformers_cannot_load(tmp_path: Path, pair: Any) -> None:
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        Task.load(pair.base)


def test_divergence_of_logits_is_kl_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((5,), (7, 5)):
        target, output = (torch.randn(shape, generator=generator) * 3 for _ in range(2))
        p, q = (torch.softmax(x.double(), -1).reshape(-1, 5) for x in (target, output))
        wanted = float((p * (p / q).log()).sum(-1).mean())
        assert float(divergence(target, output, True)) == pytest.approx(wanted, rel=1e-5)
    assert float(divergence(target, target, True)) == 0


def test_divergence_of_hidden_states_is_half_a_squared_distance() -> None:
    assert float(divergence(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]), False)) == pytest.approx(12.5)


def test_labelled_loss_is_cross_entropy() -> None:
    output = torch.tensor([1.0, 2.0, 4.0])
    wanted = math.log(math.e + math.e**2 + math.e**4) - 2
    assert float(labelled_loss(output, {"label": 1})) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("label", [None, 3, -1, "1", True, 1.0])
def test_a_label_that_does_not_fit(label: object) -> None:
    with pytest.raises(CalibrationError, match="needs an integer below 3 in every row"):
        labelled_loss(torch.zeros(3), {"label": label})


def test_drawn_answers_follow_the_models_own_distribution() -> None:
    """E[gradient of the loss] is zero when the answer is drawn from the output; its square is the Fisher."""
    logits = torch.tensor([0.3, -1.0, 1.2], dtype=torch.float64, requires_grad=True)
    p = torch.softmax(logits.detach(), -1)
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(1500):
        (gradient,) = torch.autograd.grad(drawn_loss(logits, True, generator), logits)
        draws.append(gradient)
    gradients = torch.stack(draws)
    assert torch.allclose(gradients.mean(0), torch.zeros(3, dtype=torch.float64), atol=0.05)
    assert torch.allclose(gradients.square().mean(0), p * (1 - p), atol=0.02)  # diagonal Fisher of a softmax


def test_drawn_hidden_states_have_unit_variance() -> None:
    hidden = torch.zeros(4000, requires_grad=True)
    loss = drawn_loss(hidden, False, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert float(gradient.square().mean()) == pytest.approx(1, abs=0.1)


def test_batches_know_their_rows(llama_pair: Pair) -> None:
    task = Task.load(llama_pair.variant)
    given = [{"input_ids": [1] * length} for length in (3, 2, 3, 3, 2)]
    found = task.grouped(given, 2)
    assert [places for places, _ in found] == [[1, 4], [0, 2], [3]]
    assert all(ids.shape == (len(places), len(given[places[0]]["input_ids"])) for places, ids in found)


def test_losses_of_rows() -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [{"label": 2}, {"label": 0}]
    expected = [
        math.log(float(line.exp().sum())) - float(line[row["label"]]) for line, row in zip(logits, rows, strict=True)
    ]
    assert row_losses(logits, torch.zeros(2, 4), rows).tolist() == pytest.approx(expected)
    ids = torch.tensor([[5, 1, 0], [5, 2, 2]])
    tokens = torch.randn(2, 3, 3, dtype=torch.float64)  # one position more than has a next token
    by_hand = [
        [math.log(float(tokens[r, t].exp().sum())) - float(tokens[r, t, ids[r, t + 1]]) for t in range(2)]
        for r in range(2)
    ]
    assert row_losses(tokens, ids, [{}, {}]).tolist() == pytest.approx([sum(line) / 2 for line in by_hand])
    assert row_losses(tokens[:, :2], ids, [{}, {}], "sum").tolist() == pytest.approx([sum(line) for line in by_hand])
    cut = [sum(by_hand[0]) / 2, by_hand[1][1]]  # the second row's loss begins at its third token
    assert row_losses(tokens, ids, [{}, {}], first=[1, 2]).tolist() == pytest.approx(cut)


def test_weights_that_are_not_there_are_never_made_up(tmp_path: Path) -> None:
    """But for a pooler that nothing uses, and weights that are tied to others."""
    from safetensors.torch import load_file, save_file

    from models import bert, llama

    def cut(name: str, model: Any, ending: str) -> Path:
        model.save_pretrained(tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        kept = {key: tensor for key, tensor in tensors.items() if ending not in key}
        save_file(kept, tmp_path / name / "model.safetensors", {"format": "pt"})
        return tmp_path / name

    with pytest.raises(CheckpointError, match=r"lacks 1 weights of LlamaForCausalLM: lm_head.weight$"):
        Task.load(cut("head", llama(tie_word_embeddings=False), "lm_head"))
    with pytest.raises(CheckpointError, match=r"lacks 9 weights of LlamaForCausalLM: model.layers.1.*, \.\.\.$"):
        Task.load(cut("layer", llama(), "layers.1."))
    with pytest.raises(CheckpointError, match=r"BertForSequenceClassification: classifier.bias, classifier.weight"):
        Task.load(cut("classifier", bert(classes=3), "classifier"))
    with pytest.raises(CheckpointError, match=r"bert\.pooler"):  # a classifier reads it
        Task.load(cut("pooled", bert(classes=3), "pooler"))
    assert not Task.load(cut("pooler", bert(), "pooler")).has_logits
    assert Task.load(cut("tied", llama(), "lm_head")).has_logits


def test_a_config_of_other_shapes_is_named(tmp_path: Path) -> None:
    import json

    from models import llama

    llama().save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"intermediate_size": 200}))
    words = r"6 tensors of .* do not fit its config.json: `model.layers.0.mlp.down_proj.weight` is \(32, 144\), not"
    with pytest.raises(CheckpointError, match=words):
        Task.load(tmp_path / "m")


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", None])
def test_a_loss_of_one_class_among_several(problem: str | None) -> None:
    from kinfold.errors import AuditError
    from models import bert

    model = bert(classes=3 if problem else 1, problem_type=problem)
    words = f"has problem_type '{problem}'" if problem else "has one output"
    with pytest.raises(AuditError, match=words):
        kind_of(Answers(Task(model, None, None)), "auto", AuditError)


def test_devices() -> None:
    assert device_of("cpu", CheckpointError) == torch.device("cpu")
    assert device_of("auto", CheckpointError).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("meta", "cuda:99", "mps:7", "nowhere"):
        with pytest.raises(CheckpointError, match=f"no device `{name}` to compute on") as caught:
            device_of(name, CheckpointError)
        assert "\n" not in str(caught.value)


def test_nested_without_end_and_half_characters(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"line 1 of .* is no JSON"):
        read_rows(rows(tmp_path, "[" * 100_000))
    with pytest.raises(CalibrationError, match=r"the text of line 1 .* half of a surrogate pair"):
        read_rows(rows(tmp_path, '{"text": "a \\ud800"}'))
