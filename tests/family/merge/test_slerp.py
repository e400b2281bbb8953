"""`slerp` against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kinfold.errors import MergeError
from kinfold.family.merge.choice import choose
from kinfold.family.merge.registry import Site
from kinfold.family.merge.slerp import slerp


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_orthogonal_unit_vectors_keep_their_norm(t: float) -> None:
    x, y = torch.eye(6)[0], torch.eye(6)[3]
    found = slerp([x, y], [1, 1], t=t, space="delta")
    assert found.tolist() == pytest.approx([math.cos(t * math.pi / 2), 0, 0, math.sin(t * math.pi / 2), 0, 0], abs=1e-7)
    assert float(found.double().norm()) == pytest.approx(1, abs=1e-7)


def test_ends_are_exact() -> None:
    x, y, base = random(0, 30, 5), random(1, 30, 5), random(2, 30, 5)
    for space in ("weights", "delta"):
        for t, end in ((0, x), (1, y)):
            assert torch.equal(slerp([x, y], [1, 1], site=Site(base=lambda: base), t=t, space=space), end)


def test_weights_are_turned_whole_with_the_base_in_them() -> None:
    x, y, base = random(0, 400, 200), random(1, 400, 200), random(2, 400, 200)
    found = slerp([x, y], [1, 1], site=Site(base=lambda: base), t=0.3) + base
    a, b = (base + x).double().numpy().ravel(), (base + y).double().numpy().ravel()
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    wanted = (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)
    np.testing.assert_allclose(found.numpy().ravel(), wanted, atol=2e-6)


@pytest.mark.parametrize("other", [1.0, -1.0, 0.0])
def test_parallel_opposite_and_zero_go_straight(other: float) -> None:
    x = random(0, 9)
    found = slerp([x, other * x], [1, 1], t=0.25, space="delta")
    torch.testing.assert_close(found, (0.75 + 0.25 * other) * x)


def test_two_variants_and_no_weights() -> None:
    with pytest.raises(MergeError, match="takes exactly two variants, 3 were given"):
        choose("slerp", None, {}).check([1, 1, 1])
    with pytest.raises(MergeError, match="takes no weights") as error:
        choose("slerp", None, {}).check([1, 0.5])
    assert error.value.hint == "--option t=0.3"
