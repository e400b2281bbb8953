"""Which arm each layer gets, so that the whole family fits its bytes with the least error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Bytes and error of one arm of a layer."""

    bytes: int
    error: float


def choose(layers: Sequence[Sequence[Choice]], room: int) -> list[int] | None:
    """For each layer the number of an arm; None where even the smallest of all do not fit `room` bytes.

    One Lagrange multiplier for all layers over the lower convex hulls of their arms, then what room is left
    goes to the steps with the most error removed for a byte.
    """
    hulls = [_hull(arms) for arms in layers]
    chosen = [0] * len(hulls)  # places on the hulls; the first is the smallest
    spent = sum(layers[i][hull[0]].bytes for i, hull in enumerate(hulls))
    if spent > room:
        return None
    low, high = 0.0, 1e30  # error a byte
    for _ in range(200):
        middle = (low * high) ** 0.5 if low else high * 1e-3
        places = [_at(layers[i], hull, middle) for i, hull in enumerate(hulls)]
        size = sum(layers[i][hulls[i][place]].bytes for i, place in enumerate(places))
        if size <= room:
            high, chosen = middle, places
        else:
            low = middle
        if (low and high / low < 1 + 1e-12) or high < 1e-40:
            break
    numbers = [hulls[i][place] for i, place in enumerate(chosen)]
    return _filled(layers, numbers, room)


def _hull(arms: Sequence[Choice]) -> list[int]:
    """Arms on the lower convex hull of (bytes, error), from the smallest to the one of least error."""
    order = sorted(range(len(arms)), key=lambda n: (arms[n].bytes, arms[n].error))
    hull: list[int] = []
    for number in order:
        if hull and arms[number].error >= arms[hull[-1]].error:
            continue
        while len(hull) > 1 and _slope(arms, hull[-2], hull[-1]) >= _slope(arms, hull[-1], number):
            hull.pop()
        hull.append(number)
    return hull


def _slope(arms: Sequence[Choice], first: int, second: int) -> float:
    """Change of error for a byte, negative; steeper steps come first on a hull."""
    return (arms[second].error - arms[first].error) / max(arms[second].bytes - arms[first].bytes, 1)


def _at(arms: Sequence[Choice], hull: Sequence[int], price: float) -> int:
    """The place that minimises error + price * bytes."""
    return min(range(len(hull)), key=lambda place: arms[hull[place]].error + price * arms[hull[place]].bytes)


def _filled(layers: Sequence[Sequence[Choice]], numbers: list[int], room: int) -> list[int]:
    """Greedy steps to any better arm, hull or not, while one fits."""
    left = room - sum(layers[i][number].bytes for i, number in enumerate(numbers))
    while True:
        best, most = None, 0.0
        for i, number in enumerate(numbers):
            now = layers[i][number]
            for other, arm in enumerate(layers[i]):
                more = arm.bytes - now.bytes
                if arm.error < now.error and more <= left:
                    gain = (now.error - arm.error) / max(more, 1)
                    if gain > most:
                        best, most = (i, other), gain
        if best is None:
            return numbers
        i, other = best
        left -= layers[i][other].bytes - layers[i][numbers[i]].bytes
        numbers[i] = other
