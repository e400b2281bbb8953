"""Hooks give the gradients that autograd gives by the weights themselves."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from nets import weight_gradients
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from kinfold.audit.influence.attributor import choose_modules
from kinfold.audit.influence.compress import Compressor, Entries, Gaussian, Neurons, Principal
from kinfold.audit.influence.gradients import evaluating, loop_gradients, row_gradients, shape_of
from kinfold.errors import AuditError
from models import bert


class Net(nn.Module):
    """A linear layer on sequences that is called twice, a Conv1D, and a linear layer on single vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice = nn.Linear(6, 6)
        self.conv = Conv1D(5, 6)
        self.last = nn.Linear(5, 4, bias=False)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.last(torch.relu(self.conv(hidden)).mean(1))


def squares(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().sum(1)


def whole(modules: dict[str, nn.Module]) -> list[Compressor]:
    return [Entries(name, shape_of(module), 1 << 40, 0) for name, module in modules.items()]


X = torch.randn(7, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expected(net: Net) -> np.ndarray:
    """By the weights; Conv1D holds its weight as (d_in, d_out)."""
    count = net.twice.weight.numel()
    flat = weight_gradients(net, squares(net, X), [net.twice.weight, net.conv.weight, net.last.weight])
    conv = flat[:, count : count + 30].reshape(-1, 6, 5).transpose(0, 2, 1).reshape(-1, 30)
    return np.concatenate([flat[:, :count], conv, flat[:, count + 30 :]], 1)


def test_all_entries_are_the_gradient() -> None:
    net = Net()
    modules = choose_modules(net, None)
    assert list(modules) == ["twice.weight", "conv.weight", "last.weight"]
    found, losses = row_gradients(squares, net, X, modules, whole(modules))
    np.testing.assert_allclose(found.numpy(), expected(net), atol=1e-12)
    torch.testing.assert_close(losses, squares(net, X).detach())
    np.testing.assert_allclose(loop_gradients(squares, net, X, modules, whole(modules)).numpy(), found, atol=1e-12)


@pytest.mark.parametrize("kind", [Entries, Neurons, Gaussian])
def test_compressed_gradients_are_those_of_the_whole(kind: Any) -> None:
    net = Net()
    modules = choose_modules(net, None)
    compressors = [kind(name, shape_of(module), 6, 3) for name, module in modules.items()]
    found, _ = row_gradients(squares, net, X, modules, compressors)
    np.testing.assert_allclose(loop_gradients(squares, net, X, modules, compressors), found, atol=1e-12)
    first = compressors[0]
    flat = torch.from_numpy(expected(net)[:, : first.size])
    np.testing.assert_allclose(first.full(flat), found[:, : first.width], atol=1e-12)
    if isinstance(first, Entries):
        np.testing.assert_allclose(flat[:, first.index], found[:, :6], atol=1e-12)


def test_two_compressors_of_one_module() -> None:
    net = Net()
    modules = choose_modules(net, ("twice",))
    pair: list[Compressor] = [Entries("twice.weight", (6, 6), 5, seed) for seed in (0, 1)]
    found, _ = row_gradients(squares, net, X, modules, pair)
    for number, one in enumerate(pair):
        alone, _ = row_gradients(squares, net, X, modules, [one])
        torch.testing.assert_close(found[:, 5 * number : 5 * number + 5], alone)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(1)
    model = bert(classes=3).double()
    modules = choose_modules(model, None)
    compressors: list[Compressor] = [Entries(name, shape_of(m), 40, 0) for name, m in modules.items()]
    texts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    labels = [0, 2, 1]

    def ask(model: Any, batch: Any) -> torch.Tensor:
        ids, mask, wanted = batch
        return F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, wanted, reduction="none")

    padded = torch.tensor([row + [0] * (5 - len(row)) for row in texts])
    found, _ = row_gradients(ask, model, (padded, (padded > 0).long(), torch.tensor(labels)), modules, compressors)
    for number, (row, label) in enumerate(zip(texts, labels, strict=True)):
        ids = torch.tensor([row])
        alone, _ = row_gradients(ask, model, (ids, torch.ones_like(ids), torch.tensor([label])), modules, compressors)
        np.testing.assert_allclose(found[number], alone[0], atol=1e-10)


def test_factors_of_an_adapter() -> None:
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = get_peft_model(net, LoraConfig(r=2, target_modules=["twice", "last"], init_lora_weights=False))
    adapted = adapted.double()
    modules = choose_modules(adapted, None)
    names = [f"{module}.lora_{factor}.weight" for module in ("twice", "last") for factor in "AB"]
    assert sorted(modules) == sorted(names)
    with evaluating(adapted):
        found, _ = row_gradients(squares, adapted, X, modules, whole(modules))
        weights = [module.weight for module in modules.values()]
        np.testing.assert_allclose(found, weight_gradients(adapted, squares(adapted, X), weights), atol=1e-12)


def test_a_frozen_model_has_gradients_too() -> None:
    net = Net()
    modules = choose_modules(net, None)
    before, _ = row_gradients(squares, net, X, modules, whole(modules))
    net.requires_grad_(False)
    with torch.no_grad():
        after, _ = row_gradients(squares, net, X, modules, whole(modules))
    torch.testing.assert_close(after, before)


def test_other_modules_take_one_backward_a_row() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    images = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    modules = choose_modules(net, ("0", "2"))
    found, _ = row_gradients(squares, net, images, modules, whole(modules))
    weights = [net[0].weight, net[2].weight]
    np.testing.assert_allclose(found, weight_gradients(net, squares(net, images), weights), atol=1e-12)


def test_a_module_that_is_not_called_has_zeros() -> None:
    net = Net()
    net.spare = nn.Linear(2, 2).double()
    modules = choose_modules(net, ("spare", "last"))
    found, _ = row_gradients(squares, net, X, modules, whole(modules))
    assert found[:, :4].abs().max() == 0
    assert found[:, 4:].abs().max() > 0


def test_half_precision_is_summed_in_float32() -> None:
    net = Net().to(torch.bfloat16)
    modules = choose_modules(net, None)
    found, _ = row_gradients(squares, net, X.bfloat16(), modules, whole(modules))
    assert found.dtype == torch.float32


def test_an_output_changed_in_place_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True)).double()
    with pytest.raises(AuditError, match=r"output of `0\.weight` is changed in place"):
        row_gradients(squares, net, X[:, 0], choose_modules(net, None), whole(choose_modules(net, None)))


def test_a_module_called_on_other_rows_is_refused() -> None:
    net = Net()
    modules = choose_modules(net, ("last",))
    with pytest.raises(AuditError, match="14 rows of a batch of 7"):
        row_gradients(
            lambda model, x: model(torch.cat([x, x])).square().sum(1).reshape(2, 7).sum(0),
            net,
            X,
            modules,
            whole(modules),
        )


def test_a_loss_that_is_one_number_is_refused() -> None:
    net = Net()
    modules = choose_modules(net, None)
    with pytest.raises(AuditError, match="one number a row"):
        row_gradients(lambda model, x: model(x).sum(), net, X, modules, whole(modules))


def test_modes_are_put_back_and_mixing_norms_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    net[1].eval()
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net] == [True, False, True]
    with (
        pytest.raises(AuditError, match=r"`0` is a BatchNorm"),
        evaluating(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))),
    ):
        pass


def test_principal_directions_are_those_of_svd() -> None:
    sample = torch.randn(9, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Principal("w", (4, 5), 3, sample)
    _, _, vectors = np.linalg.svd(sample.numpy(), full_matrices=False)
    np.testing.assert_allclose(found.full(sample).abs().numpy(), abs(sample.numpy() @ vectors[:3].T), atol=1e-5)
    assert found.rescale == 1.0
    assert found.map_bytes == 20 * 3 * 4
    assert Principal("w", (4, 5), 50, sample).width == 9


def test_names_that_are_no_modules() -> None:
    with pytest.raises(AuditError, match=r"there is no module `nope\.weight`"):
        choose_modules(Net(), ("nope",))
    with pytest.raises(AuditError, match="no linear layer"):
        choose_modules(nn.ReLU(), None)
