"""`magnitude`: the largest entries of the delta itself, with coded positions and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from kinfold.codec.base import (
    Codec,
    CodecConfig,
    Importance,
    Payload,
    Plan,
    Shape,
    check_finite,
    require_bits,
)
from kinfold.codec.factors import decode_sparse, encode_sparse, sparse_bytes
from kinfold.codec.sums import PIECE, squared_distance, squared_norm
from kinfold.errors import BudgetError, PackError

WIDTHS = (16, 8, 4, 1)
_BINS = 1 << 15  # of a histogram over the upper half of float32 bit patterns, sign left out


class MagnitudeConfig(CodecConfig):
    """Options of `magnitude`.

    Attributes:
        value_bits: width of a kept value; `auto` takes the one that leaves the least squared error.
        scope: one threshold for the whole `model`, or the same share of each `tensor`.
    """

    value_bits: Literal["auto", 16, 8, 4, 1] = "auto"
    scope: Literal["model", "tensor"] = "model"


class Magnitude(Codec):
    """Sparsify D itself; the yardstick that factor-wise sparsity must beat."""

    name = "magnitude"
    Config = MagnitudeConfig
    config: MagnitudeConfig

    def minimum_bits(self, shape: Shape) -> int:
        return (
            0
            if self.config.scope == "model"
            else 8 * max(sparse_bytes(math.prod(shape), 1, 1, w) for w in self._widths())
        )

    def _widths(self) -> tuple[int, ...]:
        return WIDTHS if self.config.value_bits == "auto" else (self.config.value_bits,)

    def _kept(self, cells: int, bits: int, width: int) -> int:
        """The most entries that fit; sizes rise with the count, but for keeping all, which needs no mask."""
        if sparse_bytes(cells, cells, 1, width) * 8 <= bits:
            return cells
        low, high = 0, cells - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if sparse_bytes(cells, middle, 1, width) * 8 <= bits else (low, middle - 1)
        return low if sparse_bytes(cells, low, 1, width) * 8 <= bits else 0

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        require_bits(self, shape, budget_bits)
        return Plan(budget_bits // 8)

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        flat = delta.float().reshape(-1)
        best, least = Payload(b"", {"s": 0, "w": 16}), squared_norm(flat)
        for width in self._widths():
            kept = self._kept(flat.numel(), budget_bits, width)
            if kept == 0:
                continue
            data = encode_sparse(flat[:, None], _largest(flat, kept), width)
            payload = Payload(data, {"s": kept, "w": width})
            error = squared_distance(self.decode(payload, tuple(flat.shape)), flat)
            if error < least:
                best, least = payload, error
        return best

    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        kept, width = payload.params.get("s"), payload.params.get("w")
        cells = math.prod(shape)
        if type(kept) is not int or not 0 <= kept <= cells or type(width) is not int or width not in WIDTHS:
            raise PackError(f"magnitude: {kept!r} entries at {width!r} bits are impossible for {list(shape)}")
        if kept == 0 and not payload.data:
            return torch.zeros(shape, dtype=dtype)
        return decode_sparse(payload.data, cells, 1, kept, width).reshape(shape).to(dtype)

    @property
    def surveys(self) -> bool:
        return self.config.scope == "model"

    def survey(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None) -> np.ndarray:
        """A histogram of |D| over the upper 15 bits below the sign of its float32 pattern."""
        check_finite(delta)
        histogram = np.zeros(_BINS, np.int64)
        for piece in delta.float().reshape(-1).split(PIECE):
            histogram += np.bincount(piece.abs().view(torch.int32).numpy() >> 16, minlength=_BINS)
        return histogram

    def settle(
        self, shapes: Sequence[Shape], surveys: Sequence[np.ndarray | None], total_bits: int
    ) -> tuple[Codec, list[int]]:
        """One threshold for the whole model, at the width that keeps the most of the deltas' energy."""
        if self.config.scope == "tensor":
            return super().settle(shapes, surveys, total_bits)
        if total_bits < 128:
            raise BudgetError(
                f"`magnitude` needs 16 bytes for an entry, {max(total_bits, 0) // 8} are left", least_bytes=16
            )
        counts = np.array([np.zeros(_BINS) if s is None else s for s in surveys])
        above = np.cumsum(counts[:, ::-1], axis=1, dtype=np.int64)  # entries at or above each bin, largest first
        level = (np.arange(_BINS, dtype=np.uint32)[::-1] << 16 | 0x8000).view(np.float32)
        level = np.where(np.isfinite(level), level, 0.0).astype(np.float64)  # the middle of each bin
        energy = [
            (self._model_energy(counts[:, ::-1].sum(0), level, above, shapes, total_bits, w), w) for w in self._widths()
        ]
        (_, chosen), width = max(energy, key=lambda e: (e[0][0], e[1]))
        return self.with_config(value_bits=width), self._fill(above, chosen, shapes, total_bits, width)

    def _model_energy(
        self,
        histogram: np.ndarray,
        level: np.ndarray,
        above: np.ndarray,
        shapes: Sequence[Shape],
        total_bits: int,
        width: int,
    ) -> tuple[float, int]:
        """(energy kept, number of bins kept) at one width."""

        def size(bins: int) -> int:
            kept = above[:, bins - 1] if bins else np.zeros(len(shapes), np.int64)
            return sum(_bytes(math.prod(shape), int(k), width) for shape, k in zip(shapes, kept, strict=True)) * 8

        low, high = 0, level.size
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if size(middle) <= total_bits else (low, middle - 1)
        total, first = float(histogram[:low].sum()), float((histogram[:low] * level[:low]).sum())
        second = float((histogram[:low] * level[:low] ** 2).sum())
        # one bit keeps the mean size only; more bits lose about a uniform step's variance
        kept = first**2 / max(total, 1) if width == 1 else second * (1 - 4.0 ** -(width - 1))
        return kept, low

    def _fill(self, above: np.ndarray, bins: int, shapes: Sequence[Shape], total_bits: int, width: int) -> list[int]:
        """Bits a tensor at the common threshold, the rest of the budget spent within the next bin."""
        zero = np.zeros(len(shapes), np.int64)
        now = above[:, bins - 1] if bins else zero
        after = above[:, bins] if bins < above.shape[1] else now

        def bits(share: float) -> list[int]:
            kept = now + ((after - now) * share).astype(np.int64)
            return [8 * _bytes(math.prod(s), int(k), width) for s, k in zip(shapes, kept, strict=True)]

        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(bits(middle)) <= total_bits else (low, middle)
        return bits(low)


def _bytes(cells: int, kept: int, width: int) -> int:
    return sparse_bytes(cells, kept, 1, width) if kept else 0


def _largest(flat: torch.Tensor, count: int) -> np.ndarray:
    """Places of the `count` largest |entries|, rising; of equals the first are taken."""
    if count >= flat.numel():
        return np.arange(flat.numel())
    size = flat.abs().numpy()
    size.partition(size.size - count)  # in place: a second copy of a large tensor is what memory is short of
    threshold = float(size[size.size - count])
    del size
    above = torch.nonzero((flat > threshold) | (flat < -threshold))[:, 0].numpy()
    ties = torch.nonzero((flat == threshold) | (flat == -threshold))[:, 0].numpy()
    return np.sort(np.concatenate([above, ties[: count - above.size]]))
