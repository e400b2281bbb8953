"""Losses of a variant's rows, against transformers on each row alone; attention kernels; what cannot be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from worlds import World, pooled

from kinfold import pack
from kinfold.errors import CheckpointError, ForgetError, ForgetOptionError, WrongBaseError
from kinfold.forget import directions
from kinfold.forget.adapter import attached
from kinfold.forget.config import ForgetConfig
from kinfold.forget.subject import Subject, check_second_derivatives, directory_of
from kinfold.forget.tokens import Tokens
from kinfold.pack.manifest import Piece
from models import Pair, bert, llama

ROWS = [Tokens((5, 9, 3, 40, 7), 2), Tokens((8, 1), 1), Tokens((4, 4, 17, 30, 2, 6, 12), 6), Tokens((11, 3, 9), 1)]
LABELLED = [Tokens(one.ids, label=number % 3) for number, one in enumerate(ROWS)]


@pytest.fixture(scope="module")
def language(llama_pair: Pair) -> Subject:
    return Subject.load(llama_pair.variant)


def test_language_losses_are_those_of_each_row_alone(language: Subject, llama_pair: Pair) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_pair.variant)
    expected, right, least = [], [], []
    for row in ROWS:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, :-1].double().log_softmax(1)
        aims = torch.tensor(row.ids[1:])
        losses = -logits.gather(1, aims[:, None])[row.first - 1 :, 0]
        expected.append(float(losses.mean()))
        right.append(float((logits.argmax(1) == aims)[row.first - 1 :].double().mean()))
        least.append(float(losses.max()))  # of five tokens or fewer, a fifth is one
    found = language.facts(ROWS)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    np.testing.assert_allclose(found.right, right)
    np.testing.assert_allclose(found.least, least, rtol=1e-5)
    with torch.enable_grad():
        batch = language.losses(ROWS)(torch.tensor([2, 0]))
    np.testing.assert_allclose(batch.detach(), [expected[2], expected[0]], rtol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(language.losses(ROWS)(torch.arange(4)), expected, rtol=1e-5)
    assert language.losses(ROWS)(torch.arange(0)).shape == (0,)


def test_classifier_losses(classifier_pair: Pair) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier_pair.variant)
    subject = Subject.load(classifier_pair.variant)
    assert (subject.kind, subject.classes) == ("sequence-classification", 3)
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row.ids])).logits for row in LABELLED])
    labels = torch.tensor([row.label for row in LABELLED])
    np.testing.assert_allclose(subject.facts(LABELLED).losses, F.cross_entropy(logits, labels, reduction="none"), 1e-5)
    np.testing.assert_array_equal(subject.facts(LABELLED).right, (logits.argmax(1) == labels).double())


def test_pooled_head_losses(bert_pair: Pair, tmp_path: Path) -> None:
    from transformers import AutoModel

    directory = pooled(tmp_path, bert_pair.variant)
    subject, model = Subject.load(directory), AutoModel.from_pretrained(bert_pair.variant)
    tensors = load_file(directory / "model.safetensors")
    expected = []
    for row in LABELLED:
        with torch.no_grad():
            mean = model(torch.tensor([row.ids])).last_hidden_state[0].mean(0)
        logits = tensors["head.weight"] @ mean + tensors["head.bias"]
        expected.append(float(F.cross_entropy(logits[None], torch.tensor([row.label]))))
    assert subject.kind == "pooled-head"
    np.testing.assert_allclose(subject.facts(LABELLED).losses, expected, rtol=1e-5)
    parameter = subject.parameter("head.weight")
    assert parameter is not None
    assert torch.equal(parameter, tensors["head.weight"])


def test_a_decoder_without_padding_classifies_row_by_row(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    config = llama().config
    config.num_labels, config.pad_token_id = 3, None
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "decoder")
    subject = Subject.load(tmp_path / "decoder")
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row.ids])).logits for row in LABELLED])
    labels = torch.tensor([row.label for row in LABELLED])
    expected = F.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(subject.facts(LABELLED).losses, expected, rtol=1e-5)
    with torch.enable_grad():
        np.testing.assert_allclose(subject.losses(LABELLED)(torch.arange(4)).detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_all_directions_through_fused_attention_are_those_of_eager(kind: str, tmp_path: Path) -> None:
    """The default kernel has no second derivative; acceptance asks for 1e-4."""
    model = llama() if kind == "llama" else bert(classes=3)
    rows = ROWS if kind == "llama" else LABELLED
    model.save_pretrained(tmp_path / "model")
    found: dict[str, list[torch.Tensor]] = {}
    for attention in ("sdpa", "eager"):
        subject = Subject.load(tmp_path / "model")
        subject.task.model.set_attn_implementation(attention)
        assert subject.task.model.config._attn_implementation == attention
        with attached(subject, ForgetConfig(rank=2), rows, 0) as adapter, torch.enable_grad():
            for parameter in adapter.parameters:  # B is 0, and the first derivative by A with it
                parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
            losses = subject.losses(rows)
            for direction in ("ascent", "project", "signed", "squared"):
                config = ForgetConfig(direction=direction)
                subject.exact = check_second_derivatives(subject.task.model, config)
                forget, retain = losses(torch.tensor([0, 1])).mean(), losses(torch.tensor([2, 3])).mean()
                if subject.exact:
                    u, _, _ = directions.exact(config.direction, forget, retain, adapter.parameters, 0.1)
                else:
                    u = directions.gradient(forget, adapter.parameters)
                    u = directions.project(u, directions.gradient(retain, adapter.parameters))
                found.setdefault(direction, []).append(u)
    for direction, (fused, eager) in found.items():
        assert (fused - eager).norm() <= 1e-4 * eager.norm(), direction
    assert (found["signed"][0] - found["ascent"][0]).norm() > 1e-3 * found["ascent"][0].norm()


def test_putting_tensors_into_the_model(llama_pair: Pair) -> None:
    subject = Subject.load(llama_pair.base)
    there = Subject.load(llama_pair.variant)
    pieces = [
        (Piece(name=name, dtype=info.dtype, shape=list(info.shape)), there.checkpoint.read(name))
        for name, info in there.checkpoint.tensors.items()
    ]
    stranger = Piece(name="nobody.weight", dtype="F32", shape=[1]), torch.zeros(1)
    assert not np.allclose(subject.facts(ROWS).losses, there.facts(ROWS).losses, atol=1e-4)
    subject.put([*pieces, stranger])
    np.testing.assert_array_equal(subject.facts(ROWS).losses, there.facts(ROWS).losses)
    name, info = next(item for item in there.checkpoint.tensors.items() if len(item[1].shape) == 2)
    half = Piece(name=name, dtype=info.dtype, shape=list(info.shape), rows=[0, 2])
    subject.put([(half, torch.zeros(2, info.shape[1]))])
    parameter = subject.parameter(name)
    assert parameter is not None
    assert not parameter[:2].any()
    assert parameter[2:].any()


def test_a_pack_is_written_out_as_its_variant(world: World, tmp_path: Path) -> None:
    pack(world.base, world.variant, tmp_path / "v.kin.safetensors", codec="exact")
    with directory_of(world.base, tmp_path / "v.kin.safetensors") as directory:
        assert directory.name == "v"
        assert (
            load_file(directory / "model.safetensors").keys() == load_file(world.variant / "model.safetensors").keys()
        )
        same = load_file(directory / "model.safetensors")["lm_head.weight"]
        assert torch.equal(same, load_file(world.variant / "model.safetensors")["lm_head.weight"])
    assert not directory.exists()
    with pytest.raises(WrongBaseError), directory_of(world.variant, tmp_path / "v.kin.safetensors"):
        pass
    with pytest.raises(CheckpointError, match="there is no"), directory_of(world.base, tmp_path / "nothing"):
        pass
    with pytest.raises(CheckpointError), directory_of(tmp_path / "nothing", world.variant):
        pass


def test_what_cannot_be_loaded(bert_pair: Pair, llama_pair: Pair) -> None:
    with pytest.raises(ForgetError, match="no loss of a row is known for BertModel"):
        Subject.load(bert_pair.base)
    with pytest.raises(ForgetError, match="'pooled-head' was asked for"):
        Subject.load(llama_pair.base, "pooled-head")
    with pytest.raises(ForgetOptionError, match="task is 'poetry'"):
        Subject.load(llama_pair.base, "poetry")
    with pytest.raises(ForgetOptionError, match="no device `tpu9`"):
        Subject.load(llama_pair.base, device="tpu9")


@pytest.mark.parametrize(
    "options",
    [{"direction": "signed"}, {"direction": "squared"}, {"rho": 0.1, "penalty_gradient": "autograd"}],
)
def test_second_derivatives_need_plain_weights(options: dict[str, Any]) -> None:
    config = ForgetConfig(**options)
    model = llama()
    assert check_second_derivatives(model, config)
    quantised = llama()
    quantised.is_quantized = True
    integers = llama()
    integers.model.norm.weight = torch.nn.Parameter(torch.ones(32, dtype=torch.int8), requires_grad=False)
    for given in (quantised, integers):
        with pytest.raises(ForgetOptionError, match="quantised weights cannot") as caught:
            check_second_derivatives(given, config)
        assert "project" in caught.value.hint
        assert not check_second_derivatives(given, ForgetConfig())
    name = "activation_checkpointing_enable"  # before transformers 5.20 it had the other name
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})
    assert check_second_derivatives(model, config)
    enable({"use_reentrant": True})
    with pytest.raises(ForgetOptionError, match="re-entrant gradient checkpointing cannot"):
        check_second_derivatives(model, config)
