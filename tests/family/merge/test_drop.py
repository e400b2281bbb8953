"""What is dropped at random keeps its mean: 200 seeds against the full deltas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kinfold.codec.random import tensor_seed
from kinfold.errors import MergeError
from kinfold.family.merge.choice import choose
from kinfold.family.merge.drop import dare, della
from kinfold.family.merge.registry import Site

SEEDS = 200


def delta() -> torch.Tensor:
    return torch.randn(8, 50, generator=torch.Generator().manual_seed(2))


def site(seed: int, members: int = 1) -> Site:
    return Site(seeds=tuple(tensor_seed(seed, f"w:{number}") for number in range(members)))


def draws(method: Callable[..., Any], **options: Any) -> np.ndarray:
    return np.stack([method([delta()], site=site(seed), **options)[0][0].double().numpy() for seed in range(SEEDS)])


def test_dare_keeps_a_share_divides_it_and_has_the_mean_of_the_delta() -> None:
    found, full = draws(dare, density=0.3), delta().double().numpy()
    kept = found != 0
    np.testing.assert_allclose(found[kept], np.broadcast_to(full / 0.3, found.shape)[kept], rtol=1e-6)
    assert abs(kept.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / kept.size)
    error = np.abs(full) * np.sqrt((1 / 0.3 - 1) / SEEDS)
    assert (np.abs(found.mean(0) - full) <= 5 * error).all()


def test_dare_merges_have_the_mean_of_the_inner_rule() -> None:
    choice, weights = choose("dare_linear", None, {"density": 0.5, "scale": 1.0}), [1.0, 2.0]
    members = [delta(), delta().flip(0)]
    full = sum(w * member.double() for w, member in zip(weights, members, strict=True)).numpy()
    found = np.stack(
        [choice.merge([m.clone() for m in members], weights, site(seed, 2))[0].numpy() for seed in range(SEEDS)]
    )
    square = sum((w * m.double().numpy()) ** 2 for w, m in zip(weights, members, strict=True))
    assert (np.abs(found.mean(0) - full) <= 5 * np.sqrt(square / SEEDS)).all()


def test_della_keeps_by_rank_and_has_the_mean_of_the_delta() -> None:
    found, full = draws(della, density=0.5, epsilon=0.4), delta().double().numpy()
    ranks = np.abs(full).argsort(1).argsort(1)
    keep = 0.3 + 0.4 * ranks / 49
    kept = found != 0
    np.testing.assert_allclose(found[kept], np.broadcast_to(full / keep, found.shape)[kept], rtol=1e-5)
    for rank in range(50):
        here = kept[:, ranks == rank]
        wanted = 0.3 + 0.4 * rank / 49
        assert abs(here.mean() - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / here.size)
    error = np.abs(full) * np.sqrt((1 / keep - 1) / SEEDS)
    assert (np.abs(found.mean(0) - full) <= 5 * error).all()


def test_members_are_dropped_apart_and_seeds_decide() -> None:
    one, two = dare([delta(), delta()], site=site(0, 2), density=0.5)[0]
    assert not torch.equal(one, two)
    assert torch.equal(one, dare([delta()], site=site(0), density=0.5)[0][0])
    assert not torch.equal(one, dare([delta()], site=site(1), density=0.5)[0][0])


def test_blocks_draw_the_same_words_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [method([delta()], site=site(0))[0][0] for method in (dare, della)]
    monkeypatch.setattr("kinfold.family.merge.drop._BLOCK", 100)
    again = [method([delta()], site=site(0))[0][0] for method in (dare, della)]
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))


def test_density_1_keeps_all_and_zeros_and_scalars_are_no_trouble() -> None:
    assert torch.equal(dare([delta()], site=site(0), density=1.0)[0][0], delta())
    assert torch.equal(della([delta()], site=site(0), density=1.0, epsilon=0.0)[0][0], delta())
    for method in (dare, della):
        for start in (
            torch.zeros(5, 3),
            torch.zeros(()),
            torch.zeros(0),
            torch.zeros(0, 3),
            torch.zeros(3, 0),
            torch.zeros(4, 1),
        ):
            assert torch.equal(method([start.clone()], site=site(0))[0][0], start)


def test_densities_that_do_not_fit() -> None:
    with pytest.raises(MergeError, match=r"0.05 to 1.05 is not within \(0, 1\]"):
        choose("della", None, {"density": 0.55, "epsilon": 0.999999}).check([1])
    with pytest.raises(MergeError, match="`epsilon` has 1 values for 2 members"):
        choose("della", None, {"epsilon": [0.1]}).check([1, 1])
    with pytest.raises(MergeError, match="`density` has 3 values for 2 members"):
        choose("dare_ties", None, {"density": [0.1, 0.2, 0.3]}).check([1, 1])
    with pytest.raises(MergeError, match="takes no negative one"):  # the rule inside is asked too
        choose("dare_ties", None, {}).check([1, -1])
