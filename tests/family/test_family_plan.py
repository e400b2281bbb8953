"""The choice of arms against brute force over all of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from kinfold.family.plan import Choice, choose


def layers(seed: int, count: int = 3, arms: int = 4) -> list[list[Choice]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Choice(int(size), float(error))
            for size, error in zip(rng.integers(1, 200, arms), rng.random(arms), strict=True)
        ]
        for _ in range(count)
    ]


def cost(arms: list[list[Choice]], chosen: list[int]) -> tuple[int, float]:
    picked = [layer[number] for layer, number in zip(arms, chosen, strict=True)]
    return sum(choice.bytes for choice in picked), sum(choice.error for choice in picked)


def unit(arms: list[list[Choice]]) -> float:
    """The largest error that a single step along a layer's lower convex hull removes."""
    steps = [0.0]
    for layer in arms:
        least = min(layer, key=lambda arm: (arm.bytes, arm.error))
        while True:
            better = [arm for arm in layer if arm.error < least.error and arm.bytes > least.bytes]
            if not better:
                break
            here = least
            after = min(better, key=lambda arm: ((arm.error - here.error) / (arm.bytes - here.bytes), arm.error))
            steps.append(least.error - after.error)
            least = after
    return max(steps)


@pytest.mark.parametrize("seed", range(40))
def test_within_one_unit_of_brute_force_and_never_above_the_room(seed: int) -> None:
    arms = layers(seed)
    all_ = [cost(arms, list(places)) for places in product(range(4), repeat=3)]
    sizes = sorted(size for size, _ in all_)
    for room in {*np.linspace(sizes[0], sizes[-1] + 5, 25).astype(int).tolist(), sizes[0], sizes[-1]}:
        chosen = choose(arms, room)
        assert chosen is not None
        size, error = cost(arms, chosen)
        best = min(error for size, error in all_ if size <= room)
        assert size <= room
        assert best <= error + 1e-12 <= best + unit(arms) + 2e-12
    assert choose(arms, sizes[0] - 1) is None


def test_with_room_for_all_each_layer_gets_its_best() -> None:
    arms = layers(1)
    chosen = choose(arms, 10**9)
    assert chosen == [min(range(4), key=lambda n, layer=layer: layer[n].error) for layer in arms]


def test_what_no_step_of_the_hull_fits_is_filled_by_others() -> None:
    arms = [[Choice(0, 1.0), Choice(60, 0.7), Choice(100, 0.0)]]
    assert choose(arms, 99) == [1]  # the hull goes from 0 to 100
    assert choose(arms, 59) == [0]


def test_equal_sizes_take_the_lesser_error() -> None:
    assert choose([[Choice(5, 0.4), Choice(5, 0.2), Choice(5, 0.3)]], 5) == [1]


def test_no_layer_needs_no_room() -> None:
    assert choose([], 0) == []


def test_errors_of_any_scale() -> None:
    """A price is sought over many powers of ten."""
    for scale in (1e-12, 1.0, 1e12):
        arms = [[Choice(arm.bytes, arm.error * scale) for arm in layer] for layer in layers(2)]
        sizes = [cost(arms, list(places)) for places in product(range(4), repeat=3)]
        room = sorted(size for size, _ in sizes)[32]
        chosen = choose(arms, room)
        assert chosen is not None
        assert cost(arms, chosen)[1] <= min(e for s, e in sizes if s <= room) + unit(arms) * (1 + 1e-9)
