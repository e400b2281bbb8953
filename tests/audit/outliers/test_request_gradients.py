"""Per-sample gradients: torch.func on the real bias, and closed forms, are the other route."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from kinfold.audit.outliers.gradients import find_module, sample_gradients
from kinfold.errors import AuditError
from models import bert, llama

NAME = "bert.encoder.layer.1.intermediate.dense"


def padded(lengths: tuple[int, ...] = (9, 4, 6)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 90, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def of_the_bias(model: torch.nn.Module, name: str, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> np.ndarray:
    """The gradient of each row's cross-entropy by the module's own bias, one row at a time."""
    known = {key: value.detach() for key, value in model.named_parameters()}
    key = f"{name}.bias"
    hidden = (1 - batch["attention_mask"].double())[:, None, None, :] * -1e30
    width = hidden.shape[-1]
    batch = {**batch, "attention_mask": hidden.expand(-1, 1, width, width)}  # taken as it is: vmap cannot make it

    def loss(bias: torch.Tensor, row: dict[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        result = functional_call(model, {**known, key: bias}, kwargs={k: v[None] for k, v in row.items()})
        return F.cross_entropy(result.logits, label[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))(known[key], batch, labels).detach().numpy()


@pytest.mark.parametrize("name", [NAME, "bert.encoder.layer.0.attention.output.dense", "classifier"])
def test_they_are_those_of_the_real_bias(name: str) -> None:
    model, batch = bert(classes=3, attn_implementation="eager").double(), padded()
    labels = torch.tensor([2, 0, 1])
    found = sample_gradients(model, batch, at=name, labels=labels)
    np.testing.assert_allclose(found, of_the_bias(model, name, batch, labels), rtol=0, atol=1e-10)
    own = model(**batch).logits.argmax(-1)
    np.testing.assert_array_equal(
        sample_gradients(model, batch, at=name), sample_gradients(model, batch, at=name, labels=own)
    )
    assert all(parameter.grad is None for parameter in model.parameters())


def test_padding_changes_nothing() -> None:
    model, batch = bert(classes=3).double(), padded()
    found = sample_gradients(model, batch)
    for row, length in enumerate((9, 4, 6)):
        alone = {key: value[row : row + 1, :length] for key, value in batch.items()}
        np.testing.assert_allclose(sample_gradients(model, alone)[0], found[row], rtol=0, atol=1e-10)


class Pooled(torch.nn.Module):
    """A norm, the mean over positions, and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, classes)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(rows).mean(1))


@pytest.mark.parametrize("classes", [2, 4])
def test_behind_the_last_norm_a_linear_head_sees_probabilities_alone(classes: int) -> None:
    torch.manual_seed(0)
    model = Pooled(classes).double()
    rows = torch.randn(12, 5, 8, dtype=torch.float64)
    found = sample_gradients(model, rows, at="last-norm")
    logits = model(rows).detach()
    errors = logits.softmax(-1) - F.one_hot(logits.argmax(-1), classes)
    np.testing.assert_allclose(found, (errors @ model.head.weight.detach()).numpy(), rtol=0, atol=1e-12)
    assert np.linalg.matrix_rank(found, tol=1e-9) <= classes - 1


def test_confident_rows_have_gradients_in_float32_too() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[0].bias.zero_()
    found = sample_gradients(model, torch.tensor([[20.0], [40.0]]), at="0")
    np.testing.assert_allclose(found[:, 1], np.exp([-20.0, -40.0]), rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], -found[:, 1])


def test_a_causal_model_without_biases() -> None:
    """The mean over a text's tokens, at a bias that is not there: added by hand here."""
    model, batch = llama().double(), padded()
    name = "model.layers.1.mlp.gate_proj"
    assert find_module(model, "auto")[0] == name
    found = sample_gradients(model, batch)
    module = model.get_submodule(name)
    for row, length in enumerate((9, 4, 6)):
        ids = batch["input_ids"][row : row + 1, :length]
        bias = torch.zeros(144, dtype=torch.float64, requires_grad=True)
        handle = module.register_forward_hook(lambda _m, _i, out, bias=bias: out + bias)
        logits = model(input_ids=ids).logits[0, :-1]
        handle.remove()
        [wanted] = torch.autograd.grad(F.cross_entropy(logits, ids[0, 1:]), bias)
        np.testing.assert_allclose(found[row], wanted.numpy(), rtol=0, atol=1e-10)
    whole = {"input_ids": batch["input_ids"][:1]}  # nothing is masked
    np.testing.assert_allclose(sample_gradients(model, whole)[0], found[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "at", "name"),
    [
        (lambda: bert(classes=2), "auto", NAME),
        (lambda: bert(classes=2), "last-norm", "bert.encoder.layer.1.output.LayerNorm"),
        (llama, "last-norm", "model.norm"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2)), "auto", "0"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.BatchNorm1d(9)), "last-norm", "1"),
    ],
)
def test_modules_that_are_found(model: Any, at: str, name: str) -> None:
    made = model()
    found, module = find_module(made, at)
    assert found == name
    assert module is made.get_submodule(name)


def test_names_that_are_near_are_told() -> None:
    with pytest.raises(AuditError, match=r"`bert.encoder.layer.1.intermediate` names no module|intermediate.dense"):
        find_module(bert(classes=2), "bert.encoder.layer.7.intermediate.dense")
    with pytest.raises(AuditError, match=r"`last-norm` names no module of Linear"):
        find_module(torch.nn.Linear(2, 2), "last-norm")
    with pytest.raises(AuditError, match="names no module of ReLU"):
        find_module(torch.nn.ReLU(), "auto")


class Odd(torch.nn.Module):
    """Modules that cannot be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.idle, self.shape = (
            torch.nn.Linear(4, 4),
            torch.nn.Linear(4, 4),
            torch.nn.Unflatten(1, (2, 2, 1)),
        )
        self.pair, self.aside = torch.nn.LSTM(4, 4), torch.nn.Linear(4, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.shape(rows), self.pair(rows), self.aside(rows)
        return self.twice(self.twice(rows))


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("twice", "ran 2 times"),
        ("idle", "ran 0 times"),
        ("shape", r"is \(3, 2, 2, 1\)"),
        ("pair", "is tuple"),
        ("aside", "do not depend"),
    ],
)
def test_modules_that_cannot_be_looked_at(at: str, words: str) -> None:
    with pytest.raises(AuditError, match=words):
        sample_gradients(Odd(), torch.ones(3, 4), at=at)


def test_models_without_logits() -> None:
    with pytest.raises(AuditError, match="BertModel gives no logits"):
        sample_gradients(bert(), padded(), at="encoder.layer.0.intermediate.dense")

    with pytest.raises(AuditError, match="without `input_ids`"):
        sample_gradients(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.ones(2, 3, 4))
