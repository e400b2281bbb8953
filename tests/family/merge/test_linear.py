"""`linear` and `task_arithmetic` against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kinfold.codec.sums import PIECE
from kinfold.errors import MergeError
from kinfold.family.merge.choice import choose
from kinfold.family.merge.linear import linear, task_arithmetic, weighted_sum


def deltas(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def test_linear_is_the_weighted_mean() -> None:
    members, weights = deltas(3, 300, 500), [1.0, 0.5, -0.25]
    assert members[0].numel() > 2 * PIECE
    wanted = np.average([member.double().numpy() for member in members], axis=0, weights=weights)
    np.testing.assert_allclose(linear(members, weights).numpy(), wanted, rtol=1e-6, atol=1e-7)


def test_task_arithmetic_is_a_scaled_sum() -> None:
    members, weights = deltas(3, 7, 5), [1.0, 0.5, 2.0]
    total = sum(w * member.double().numpy() for w, member in zip(weights, members, strict=True))
    np.testing.assert_allclose(task_arithmetic(members, weights).numpy(), 0.4 * total, rtol=1e-6)
    normalized = task_arithmetic(members, weights, scale=2.0, normalize=True)
    np.testing.assert_allclose(normalized.numpy(), 2 * total / 3.5, rtol=1e-6)


def test_one_member_comes_back() -> None:
    (only,) = deltas(1, 40)
    assert torch.equal(linear([only], [3.0]), only)


def test_dtype_shape_and_inputs_stay() -> None:
    for members in (deltas(2, 0, 4), deltas(2), [torch.ones(3, 2, dtype=torch.float64).T] * 2):
        before = [member.clone() for member in members]
        found = weighted_sum(members, [1.0, 1.0])
        assert (found.dtype, found.shape) == (members[0].dtype, members[0].shape)
        assert all(torch.equal(one, two) for one, two in zip(members, before, strict=True))


def test_weights_that_cancel_cannot_be_divided_by() -> None:
    for method, options in (("linear", {}), ("task_arithmetic", {"normalize": True})):
        with pytest.raises(MergeError, match=r"the weights 0\.1, 0\.2, -0\.3 sum to 0"):
            choose(method, None, options).check([0.1, 0.2, -0.3])
    choose("task_arithmetic", None, {}).check([1, -1])
