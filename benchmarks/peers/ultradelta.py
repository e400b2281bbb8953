"""`ultradelta`: sparsity by variance, few levels, a random share of each level. UltraDelta, arXiv 2505.13563.

As in the paper: the matrices are sorted by the variance of their deltas and cut into three groups of equal
weight; low variance gets more sparsity, high variance less (variance-based mixed sparsity). Values are rounded
to uniform levels, and of each level the same share is dropped at random (distribution-aware compression). What
is left is divided by its density, times a gain for the whole model (trace-norm-guided rescaling).

Simplified: the mask is seeded and costs no bits, so each level keeps its share in expectation and not by exact
count. The gain is an option: the paper's is at most 1, the smallest trace norm of a set of variants over the
variant's own, and here there is one variant.

Stronger than the paper: the levels have no zero and a step of least squared error instead of spanning minimum
to maximum, what rounding takes off is given back before the gain, and the scale is each matrix's own
(the authors divide by the mean density, which weakens some matrices and overstates others).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from kinfold.codec.base import Codec, CodecConfig, Importance, Payload, Plan, Shape, check_finite, require_bits
from kinfold.codec.dare import kept_mask
from kinfold.codec.sums import squared_norm
from kinfold.codec.values import decode_values, encode_values, values_bytes
from kinfold.errors import PackError


class UltraDeltaConfig(CodecConfig):
    """Options of `ultradelta`.

    Attributes:
        value_bits: width of a kept value.
        spread: how far the densities of the outer groups lie from the middle one's, as a share of it.
        gain: what the unbiased estimate is multiplied by.
    """

    value_bits: Literal[8, 4, 3, 2, 1] = 2
    spread: float = Field(default=0.2, ge=0, lt=1)
    gain: float = Field(default=1.0, gt=0)


class UltraDelta(Codec):
    """A seeded random share of the rounded entries, larger where the delta varies more."""

    name = "ultradelta"
    Config = UltraDeltaConfig
    config: UltraDeltaConfig

    def minimum_bits(self, shape: Shape) -> int:
        return 8 * values_bytes(1, 1, self.config.value_bits)

    def _count(self, shape: Shape, bits: int) -> int:
        width = self.config.value_bits
        return min((bits // 8 - values_bytes(0, 1, width)) * 8 // width, math.prod(shape))

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        require_bits(self, shape, budget_bits)
        return Plan(values_bytes(self._count(shape, budget_bits), 1, self.config.value_bits))

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        flat, width = delta.float().reshape(-1).numpy(), self.config.value_bits
        mask, count = kept_mask(flat.size, self._count(tuple(delta.shape), budget_bits), seed)
        values = flat[mask].astype(np.float64)
        scale = self.config.gain * flat.size / max(count, 1) * _unbiased(values, width)
        return Payload(_coded(values * scale, width), {"s": count, "w": width}, seed)

    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        cells = math.prod(shape)
        count, width = payload.params.get("s"), payload.params.get("w")
        if type(count) is not int or not 0 <= count <= cells or type(width) is not int or width not in (8, 4, 3, 2, 1):
            raise PackError(f"ultradelta: {count!r} entries at {width!r} bits are impossible for {list(shape)}")
        values = _decoded(payload.data, count, width)
        mask, drawn = kept_mask(cells, count, payload.seed)
        if drawn != count:
            raise PackError("ultradelta: the values do not fit the seeded mask")
        delta = torch.zeros(cells)
        delta[torch.from_numpy(mask)] = values
        return delta.reshape(shape).to(dtype)

    def survey(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None) -> np.ndarray:
        """The variance of the entries."""
        check_finite(delta)
        return np.array([squared_norm(delta - delta.mean()) / max(delta.numel(), 1)])

    def settle(
        self, shapes: Sequence[Shape], surveys: Sequence[np.ndarray | None], total_bits: int
    ) -> tuple[Codec, list[int]]:
        """Densities 1 - spread, 1, 1 + spread for the three groups, times the largest rate that fits."""
        self.shares(shapes, total_bits)  # its error knows the least that would do
        variance = [0.0 if survey is None else float(survey[0]) for survey in surveys]
        cells = np.array([math.prod(shape) for shape in shapes])
        weight = cells * (1 + self.config.spread * (_thirds(variance, cells) - 1))
        low, high = 0.0, 2.0 * total_bits
        for _ in range(80):
            rate = (low + high) / 2
            low, high = (low, rate) if sum(self._bits(shapes, rate * weight)) > total_bits else (rate, high)
        return self, self._bits(shapes, low * weight)

    def _bits(self, shapes: Sequence[Shape], counts: np.ndarray) -> list[int]:
        """Bits for about `counts` entries of each tensor: at least one, at most all."""
        kept = [min(max(int(count), 1), math.prod(shape)) for shape, count in zip(shapes, counts, strict=True)]
        return [8 * values_bytes(count, 1, self.config.value_bits) for count in kept]


def _coded(values: np.ndarray, width: int) -> bytes:
    return encode_values(values, np.zeros(values.size, np.int32), 1, width)


def _decoded(data: bytes, count: int, width: int) -> torch.Tensor:
    return decode_values(data, np.zeros(count, np.int32), 1, width)


def _unbiased(values: np.ndarray, width: int) -> float:
    """What rounded values must be multiplied by to project on `values` as those do: pi / 2 for signs of a normal."""
    rounded = _decoded(_coded(values, width), values.size, width).double().numpy()
    return float(values @ values) / (float(values @ rounded) or 1.0)


def _thirds(variance: Sequence[float], cells: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each tensor: the third of all weights, in order of rising variance, that it ends in."""
    order = np.argsort(np.array(variance), kind="stable")
    group = np.empty(len(order))
    group[order] = np.minimum((np.cumsum(cells[order]) - 1) * 3 // cells.sum(), 2)
    return group
