"""Mixing on small modules, against each variant's own weights put into a copy of the module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from kinfold.errors import ServeError
from kinfold.serve.delta import Change, Dense, LowRank, Whole
from kinfold.serve.mix import KEPT, Mixer


@dataclass(eq=False)
class Own:
    changes: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)


class Net(nn.Module):
    """Embeddings of tokens and positions, a linear layer that sees flattened tokens, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 6), nn.Embedding(9, 6)
        self.flat, self.norm = nn.Linear(6, 5), nn.LayerNorm(5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1])[None])
        return self.norm(self.flat(hidden.reshape(-1, 6)).reshape(*ids.shape, 5))


def variants(net: Net) -> tuple[list[Own], list[Net]]:
    """Three variants, and the nets that they stand for."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    owns, nets = [], []
    for rank in (1, 2):
        factors = {name: (noise(inner, rank), noise(rank, out)) for name, inner, out in SIDES}
        owns.append(Own({name: {"weight": LowRank(*pair)} for name, pair in factors.items()}))
        nets.append(copy.deepcopy(net))
        for name, (inner, outer) in factors.items():
            delta = inner @ outer
            nets[-1].get_submodule(name).weight.data += delta.T if name == "flat" else delta
    deltas = {"tokens": noise(11, 6), "places": noise(9, 6), "flat": noise(5, 6)}
    bias, norm = noise(5), noise(5)
    changes: dict[str, dict[str, Change]] = {name: {"weight": Dense(delta)} for name, delta in deltas.items()}
    changes["flat"]["bias"] = Dense(bias)
    owns.append(Own(changes | {"norm": {"weight": Whole(norm)}}))
    nets.append(copy.deepcopy(net))
    for name, delta in deltas.items():
        nets[-1].get_submodule(name).weight.data += delta
    nets[-1].flat.bias.data += bias
    nets[-1].norm.weight.data = norm
    return owns, nets


SIDES = [("tokens", 11, 6), ("places", 9, 6), ("flat", 6, 5)]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


@pytest.mark.parametrize("rows", [[0, 1, 2, None], [2, 0, 2, 1, None, 0], [1], [2, 2], [None, 2], [None, None]])
@pytest.mark.parametrize("length", [1, 7])
def test_each_row_has_its_variants_weights(net: Net, rows: list[int | None], length: int) -> None:
    owns, nets = variants(net)
    plain = copy.deepcopy(net)
    mixer = Mixer(net)
    ids = torch.randint(11, (len(rows), length), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        alone = plain(ids)
        for _ in range(2):  # the second time from stacked factors
            with mixer.rows([None if row is None else owns[row] for row in rows], length):
                mixed = net(ids)
            for row, which in enumerate(rows):
                if which is None:
                    assert torch.equal(mixed[row], alone[row])
                else:
                    assert torch.allclose(mixed[row], nets[which](ids[row : row + 1])[0], atol=1e-5)
        assert torch.equal(net(ids), alone)  # outside of the block it is the base


def test_a_larger_blend_serves_when_a_variant_leaves(net: Net) -> None:
    owns, nets = variants(net)
    mixer = Mixer(net)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.inference_mode():
        with mixer.rows([owns[0], owns[1]], 3):
            net(ids)
        with mixer.rows([owns[1], None], 3):
            mixed = net(ids)
        assert len(mixer._blends) == 1
        assert torch.allclose(mixed[0], nets[1](ids[:1])[0], atol=1e-5)
    mixer.forget(owns[0])
    assert mixer._blends == []


def test_few_blends_are_kept(net: Net) -> None:
    mixer = Mixer(net)
    for _ in range(KEPT + 2):
        with mixer.rows([variants(net)[0][0]], 1):
            pass
    assert len(mixer._blends) == KEPT


def test_inputs_that_are_neither_rows_nor_tokens_are_refused(net: Net) -> None:
    owns, _ = variants(net)
    mixer = Mixer(net)
    with mixer.rows([owns[0], None], 3), pytest.raises(ServeError, match="`flat` sees 5 inputs for 2 rows of 3 tokens"):
        net.flat(torch.zeros(5, 6))


def test_a_leaf_without_plain_tensors_is_refused() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, given: torch.Tensor) -> Any:
            return given * self.weight, None

    net = nn.Sequential(Pairs())
    mixer = Mixer(net)
    own = Own({"0": {"weight": Whole(torch.zeros(2))}})
    with mixer.rows([own, None], 1), pytest.raises(ServeError, match="no plain tensor"):
        net(torch.ones(2, 2))


def test_a_leaf_called_by_keywords() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, *, given: torch.Tensor, times: float) -> torch.Tensor:
            return given * self.weight * times

    net = nn.ModuleDict({"scale": Scale()})
    mixer = Mixer(net)
    own = Own({"scale": {"weight": Whole(torch.tensor([5.0, 7.0]))}})
    with mixer.rows([own, None], 1):
        assert net["scale"](given=torch.ones(2, 2), times=2.0).tolist() == [[10, 14], [2, 2]]
