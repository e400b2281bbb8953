import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kinfold.serve.delta import Dense, LowRank, Whole, is_zero, kind_of, product, whole_or_dense


class Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Linear(2, 3), "linear"),
        (Conv1D(3, 2), "conv1d"),
        (nn.Embedding(4, 2), "embedding"),
        (Scaled(4, 2), "leaf"),
        (nn.Embedding(4, 2, max_norm=1.0), "leaf"),
        (nn.LayerNorm(2), "leaf"),
        (nn.Sequential(nn.Linear(2, 2)), "parent"),
    ],
)
def test_kinds(module: nn.Module, kind: str) -> None:
    assert kind_of(module) == kind


def test_a_product_acts_as_its_dense_delta() -> None:
    a, c = torch.randn(40, 2, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    like = torch.zeros(40, 30, dtype=torch.float64)
    dense = a @ c.T
    made = product((a, c), "linear", like)
    assert made is not None
    x = torch.randn(5, 30, dtype=torch.float64)
    assert torch.allclose(x @ made.inner @ made.outer, x @ dense.T)
    made = product((a, c), "conv1d", like)
    assert made is not None
    x = torch.randn(5, 40, dtype=torch.float64)
    assert torch.allclose(x @ made.inner @ made.outer, x @ dense)
    made = product((a, c), "embedding", like)
    assert made is not None
    assert torch.allclose(made.inner[[3, 7]] @ made.outer, dense[[3, 7]])
    assert (made.rank, made.nbytes) == (2, 8 * 2 * 70)


def test_a_product_no_smaller_than_its_delta_stays_dense() -> None:
    like = torch.zeros(8, 8)
    assert product((torch.ones(8, 4), torch.ones(8, 4)), "linear", like) is None
    assert product((torch.ones(8, 3), torch.ones(8, 3)), "linear", like) is not None
    assert product((torch.ones(8, 1), torch.ones(8, 1)), "leaf", like) is None


def test_what_equals_the_base_costs_nothing() -> None:
    like = torch.randn(3, 4)
    assert whole_or_dense(like.clone(), "linear", like) is None
    assert is_zero(LowRank(torch.zeros(4, 2), torch.ones(2, 3)))
    assert is_zero(LowRank(torch.ones(4, 0), torch.ones(0, 3)))
    assert not is_zero(LowRank(torch.ones(4, 1), torch.ones(1, 3)))


def test_dense_changes_are_differences_and_those_of_leaves_the_values() -> None:
    like, value = torch.randn(3, 4).bfloat16(), torch.randn(3, 4)
    dense = whole_or_dense(value, "linear", like)
    assert isinstance(dense, Dense)
    exact = value.bfloat16().double() - like.double()
    assert torch.equal(dense.delta, exact.bfloat16())
    whole = whole_or_dense(value, "leaf", like)
    assert isinstance(whole, Whole)
    assert torch.equal(whole.value, value.bfloat16())
    assert dense.nbytes == whole.nbytes == 24
