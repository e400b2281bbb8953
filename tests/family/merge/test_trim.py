"""The k-th magnitude against a sort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kinfold.family.merge.trim import magnitude_limits


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999])
def test_the_limit_is_the_kth_largest_of_all_tensors(density: float) -> None:
    generator = torch.Generator().manual_seed(1)
    members = [
        [torch.randn(40, 50, generator=generator) * 10.0**power, torch.randn(333, generator=generator)]
        for power in (-3, 0)
    ]

    def passes() -> Iterator[list[torch.Tensor]]:
        for number in range(2):
            yield [tensors[number] for tensors in members]

    for limit, tensors in zip(magnitude_limits(passes, [density] * 2), members, strict=True):
        sizes = np.sort(np.concatenate([np.abs(t.numpy()).ravel() for t in tensors]))[::-1]
        assert limit == sizes[int(density * len(sizes)) - 1]


def test_equal_magnitudes_share_a_limit() -> None:
    tensor = torch.tensor([1.0, -1.0, 1.0, 0.5, -2.0])
    assert magnitude_limits(lambda: [[tensor]], [0.4]) == [1.0]


def test_the_least_share_keeps_one_and_the_whole_needs_no_pass() -> None:
    tensor = torch.tensor([3.0, -7.0])
    assert magnitude_limits(lambda: [[tensor]], [1e-9]) == [7.0]
    assert magnitude_limits(lambda: pytest.fail("a pass was made"), [1.0, 1.0]) == [0.0, 0.0]
    assert magnitude_limits(lambda: [[tensor, tensor]], [1.0, 0.5]) == [0.0, 7.0]


def test_zeros_and_nothing_have_the_limit_zero() -> None:
    assert magnitude_limits(lambda: [[torch.zeros(9)]], [0.2]) == [0.0]
    assert magnitude_limits(lambda: [[torch.zeros(0)]], [0.2]) == [0.0]
    assert magnitude_limits(list, [0.2]) == [0.0]


def test_neighbours_in_the_low_bits_are_told_apart() -> None:
    base = np.float32(1.5)
    values = [float(np.nextafter(base, np.float32(2))), 1.5, float(np.nextafter(base, np.float32(1)))]
    assert magnitude_limits(lambda: [[torch.tensor(values)]], [0.67]) == [1.5]
