"""`ties` on examples small enough to do by hand."""

from __future__ import annotations

import pytest
import torch

from kinfold.errors import MergeError
from kinfold.family.merge.choice import choose
from kinfold.family.merge.registry import Site
from kinfold.family.merge.ties import ties

ROWS = torch.tensor(
    [
        # places: agreement, a lone minus, an exact zero sum, zeros, small ones, all minus
        [4.0, 3.0, 2.0, 0.0, 0.1, -1.0],
        [2.0, 3.0, -2.0, 0.0, 5.0, -3.0],
        [6.0, -9.0, 0.0, 0.0, -0.2, -2.0],
    ]
)


def rows() -> list[torch.Tensor]:
    return list(ROWS.clone())


def test_density_1_by_hand() -> None:
    # elected: +, -, + (an exact 0 counts as plus), +, +, -
    found = ties(rows(), [1, 1, 1], density=1.0, scope="tensor")
    assert found.tolist() == pytest.approx([4.0, -9.0, 2.0, 0.0, 2.55, -2.0])


def test_trimmed_by_hand() -> None:
    # a half of six is three: {4, 3, 2}, {5, -3, 3} and {-9, 6, -2} stay
    found = ties(rows(), [1, 1, 1], density=0.5, scope="tensor")
    assert found.tolist() == pytest.approx([5.0, -9.0, 2.0, 0.0, 5.0, -2.5])


def test_weights_elect_and_average() -> None:
    # the third counts four times: place 0 is (4 + 2 + 24) / 6; place 4 is 0.1 + 5 - 0.8 > 0
    found = ties(rows(), [1, 1, 4], density=1.0, scope="tensor", scale=2.0)
    assert found.tolist() == pytest.approx([10.0, -18.0, 4.0, 0.0, 5.1, -4.0])


def test_without_normalize_it_is_a_sum() -> None:
    found = ties(rows(), [1, 1, 1], density=1.0, scope="tensor", normalize=False)
    assert found.tolist() == pytest.approx([12.0, -9.0, 2.0, 0.0, 5.1, -6.0])


def test_one_density_a_member() -> None:
    # the first keeps its largest alone, the others everything
    found = ties(rows(), [1, 1, 1], density=[0.2, 1.0, 1.0], scope="tensor")
    assert found.tolist() == pytest.approx([4.0, -9.0, -2.0, 0.0, 5.0, -2.5])


def test_entries_equal_to_the_limit_all_stay() -> None:
    delta = torch.tensor([2.0, -1.0, 1.0, 1.0, 0.5])
    assert ties([delta], [1], density=0.4, scope="tensor").tolist() == [2.0, -1.0, 1.0, 1.0, 0.0]


def test_the_limits_of_the_model_are_taken_from_the_site() -> None:
    found = ties(rows(), [1, 1, 1], site=Site(survey=[3.5, 100.0, 6.0]), density=0.5)
    assert found.tolist() == pytest.approx([5.0, -9.0, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_one_member_at_density_1_comes_back(scope: str) -> None:
    delta = torch.randn(31, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ties([delta], [0.3], density=1.0, scope=scope), delta)  # type: ignore[arg-type]


def test_zeros_stay_zero() -> None:
    for density in (0.2, 1.0):
        found = ties([torch.zeros(4, 3), torch.zeros(4, 3)], [1, 2], density=density)
        assert torch.equal(found, torch.zeros(4, 3))
    assert ties([torch.zeros(0)], [1]).shape == (0,)


def test_bad_weights_and_densities() -> None:
    with pytest.raises(MergeError, match=r"takes no negative one, -0\.5 was given"):
        choose("ties", None, {}).check([1, -0.5])
    with pytest.raises(MergeError, match="`density` has 2 values for 3 members"):
        choose("ties", None, {"density": [0.1, 0.2]}).check([1, 1, 1])
