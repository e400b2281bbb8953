"""`dare`: keep each entry with probability p by a seeded mask, divide by p. DARE, arXiv 2311.03099."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from kinfold.codec.base import (
    Codec,
    CodecConfig,
    Importance,
    Payload,
    Plan,
    Shape,
    require_bits,
)
from kinfold.codec.bits import pack_bits, packed_bytes, unpack_bits
from kinfold.codec.random import uniform_bits
from kinfold.codec.sums import size_sum, squared_norm
from kinfold.errors import BudgetError, PackError

_CHUNK = 1 << 20  # keys drawn at once; a multiple of 4
_CLIP = 3.0  # standard deviations covered by the levels


class DareConfig(CodecConfig):
    """Options of `dare`.

    Attributes:
        value_bits: width of a kept value: 16; 8 or 4 on an odd number of levels; 1 = sign times mean |D|.
        keep: the share of entries kept; None keeps what the budget allows.
    """

    value_bits: Literal[16, 8, 4, 1] = 4
    keep: float | None = Field(default=None, gt=0, le=1)


class Dare(Codec):
    """An unbiased estimate of D whose mask costs no bits: it is drawn again from the seed."""

    name = "dare"
    Config = DareConfig
    config: DareConfig

    def minimum_bits(self, shape: Shape) -> int:
        if self.config.keep is not None:
            return 8 * self._bytes(max(1, round(self.config.keep * math.prod(shape))))
        return 8 * self._bytes(1)

    def _bytes(self, count: int) -> int:
        return 4 + packed_bytes(count, self.config.value_bits)  # a float32 scale, then the values

    def _count(self, shape: Shape, bits: int) -> int:
        cells = math.prod(shape)
        if self.config.keep is not None:
            return max(1, round(self.config.keep * cells))
        return min((bits // 8 - 4) * 8 // self.config.value_bits, cells)

    def shares(self, shapes: Sequence[Shape], total_bits: int) -> list[int]:
        if self.config.keep is None:
            return super().shares(shapes, total_bits)
        needed = [self.minimum_bits(shape) for shape in shapes]
        if sum(needed) > total_bits:
            raise BudgetError(
                f"`dare` takes {sum(needed) // 8} bytes at keep={self.config.keep}, {max(total_bits, 0) // 8} are left",
                hint="leave out --option keep=... to keep what the budget allows",
                least_bytes=sum(needed) // 8,
            )
        return needed

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        require_bits(self, shape, budget_bits)
        return Plan(self._bytes(self._count(shape, budget_bits)))

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        flat = delta.float().reshape(-1).numpy()
        mask, count = kept_mask(flat.size, self._count(tuple(delta.shape), budget_bits), seed)
        values, width = flat[mask], self.config.value_bits
        scale = _scale(flat, width)
        if width == 16:
            data = _halved(values, scale).tobytes()
        elif width == 1:
            data = np.packbits(values >= 0, bitorder="little").tobytes()
        else:
            top = (1 << (width - 1)) - 1
            step = scale if scale else np.float32(1)
            data = pack_bits(np.clip(np.rint(values / step), -top, top).astype(np.int64) + top, width)
        return Payload(scale.astype("<f4").tobytes() + data, {"s": count, "w": width}, seed)

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused at the end
    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        cells = math.prod(shape)
        count, width = payload.params.get("s"), payload.params.get("w")
        if type(count) is not int or not 0 <= count <= cells or type(width) is not int or width not in (16, 8, 4, 1):
            raise PackError(f"dare: {count!r} entries at {width!r} bits are impossible for {list(shape)}")
        if len(payload.data) != 4 + packed_bytes(count, width):
            raise PackError(f"dare: {len(payload.data)} bytes do not hold {count} values of {width} bits")
        scale = np.frombuffer(payload.data[:4], "<f4")[0]
        data = memoryview(payload.data)[4:]
        if width == 16:
            values = np.frombuffer(data, "<f2").astype(np.float32) * scale
        elif width == 1:
            values = np.where(unpack_bits(data, 1, count) > 0, scale, -scale)
        else:
            top = (1 << (width - 1)) - 1
            values = (unpack_bits(data, width, count).astype(np.float32) - np.float32(top)) * scale
        mask, drawn = kept_mask(cells, count, payload.seed)
        values = values * np.float32(cells / max(count, 1))
        if drawn != count or not np.isfinite(values).all():
            raise PackError("dare: the values do not fit the seeded mask, or one is not finite")
        delta = np.zeros(cells, np.float32)
        delta[mask] = values
        return torch.from_numpy(delta).reshape(shape).to(dtype)


def kept_mask(cells: int, count: int, seed: int) -> tuple[np.ndarray, int]:
    """The mask (bool, `cells`) of the entries whose 32-bit key lies below a threshold, and how many.

    The threshold is the (`count` + 1)-th smallest key, so equal keys may keep fewer. Keys are drawn twice
    and never held: first a histogram of their upper halves, then those in the bin of the threshold.
    """
    if count >= cells:
        return np.ones(cells, bool), cells
    histogram = np.zeros(1 << 16, np.int64)
    for _, keys in _keys(cells, seed):
        histogram += np.bincount(keys >> 16, minlength=1 << 16)
    total = np.cumsum(histogram)
    edge = int(np.searchsorted(total, count, side="right"))  # the bin that holds the threshold
    mask = np.empty(cells, bool)
    places, candidates = [], []
    for start, keys in _keys(cells, seed):
        upper = keys >> 16
        mask[start : start + keys.size] = upper < edge
        inside = np.flatnonzero(upper == edge)
        places.append(start + inside)
        candidates.append(keys[inside])
    place, key = np.concatenate(places), np.concatenate(candidates)
    threshold = np.sort(key)[count - int(total[edge] - histogram[edge])]
    mask[place[key < threshold]] = True
    return mask, int(mask.sum())


def _keys(cells: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first cell, keys as int64) in pieces."""
    for start in range(0, cells, _CHUNK):
        yield start, uniform_bits(seed, start, min(_CHUNK, cells - start)).numpy()


def _scale(flat: np.ndarray, width: int) -> np.float32:
    """The largest size at 16 bits, mean size at 1, else the step that spreads the levels over 3 sigma."""
    if width == 16:
        return np.float32(max(flat.max(initial=0.0), -flat.min(initial=0.0)))
    tensor = torch.from_numpy(flat)
    if width == 1:
        return np.float32(size_sum(tensor) / max(flat.size, 1))
    return np.float32(_CLIP * math.sqrt(squared_norm(tensor) / max(flat.size, 1)) / ((1 << (width - 1)) - 1))


def _halved(values: np.ndarray, scale: np.float32) -> np.ndarray:
    return (values / scale if scale else values).astype("<f2")
