"""`deltacome`: leading singular vectors at 8 bits, the next at 3, the rest at 2. Delta-CoMe, arXiv 2406.08903.

Simplified: the authors round with GPTQ on calibration inputs. Inputs of a layer do not reach a codec, so this
is data-free: each column has its own step of least squared error, and after one factor is rounded the other is
fitted to it again by least squares, which is what GPTQ's feedback comes to for inputs without correlation.
The authors set the number of columns a precision by hand for one size; here they are shares of the rank, and
the rank follows from the budget, common to all matrices (`uniform`) or where it saves most (`energy`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from kinfold.codec.base import CodecConfig, Importance, Payload, Shape
from kinfold.codec.factors import dense_bytes, matrix_sides, product
from kinfold.codec.lowrank import as_matrix, leading, multiply, multiply_transposed
from kinfold.codec.truncsvd import TruncSvd
from kinfold.codec.values import decode_values, encode_values, values_bytes
from kinfold.errors import PackError

_WIDTHS = (8, 3, 2)
_ROUNDS = 2  # times that each factor is rounded


class DeltaComeConfig(CodecConfig):
    """Options of `deltacome`.

    Attributes:
        high: share of the rank stored at 8 bits.
        middle: share of the rank stored at 3 bits; the rest is stored at 2.
        allocation: as in `truncsvd`.
    """

    high: float = Field(default=0.01, ge=0, le=1)
    middle: float = Field(default=0.3, ge=0, le=1)
    allocation: Literal["energy", "uniform"] = "energy"


class DeltaCome(TruncSvd):
    """D ~ A C^T, the columns of both factors in three precisions; ranks are allotted as `truncsvd` does."""

    name = "deltacome"
    Config = DeltaComeConfig
    config: DeltaComeConfig

    def _counts(self, rank: int) -> list[int]:
        """Columns at 8, 3 and 2 bits."""
        eight = round(self.config.high * rank)
        three = min(round(self.config.middle * rank), rank - eight)
        return [eight, three, rank - eight - three]

    def _bits(self, shape: Shape, rank: int) -> int:
        n, d = matrix_sides(shape)
        return 8 * sum(dense_bytes(n, d, k, w) for k, w in zip(self._counts(rank), _WIDTHS, strict=True))

    def _rank(self, shape: Shape, bits: int) -> int:
        n, d = matrix_sides(shape)
        rank = max(min(bits // (_WIDTHS[-1] * (n + d)), n, d), 0)
        while rank and self._bits(shape, rank) > bits:
            rank -= 1
        return rank

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        rank = self._rank(tuple(delta.shape), budget_bits)
        matrix, counts = as_matrix(delta), self._counts(rank)
        a, c = leading(matrix, rank, seed).balanced(rank)
        left = right = b""
        for _ in range(_ROUNDS):
            right, c = _rounded(c, counts)
            left, a = _rounded(_fitted(multiply(matrix, c), c), counts)
            c = _fitted(multiply_transposed(matrix, a), a)
        return Payload(left + right, {"k": counts})

    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        n, d = matrix_sides(shape)
        counts = payload.params.get("k")
        if not isinstance(counts, list) or len(counts) != 3 or any(type(k) is not int or k < 0 for k in counts):
            raise PackError(f"deltacome: {counts!r} are no columns at three precisions")
        split = _factor_bytes(n, counts)
        if sum(counts) > min(n, d) or len(payload.data) != split + _factor_bytes(d, counts):
            raise PackError(
                f"deltacome: {len(payload.data)} bytes are impossible for {counts} columns of {list(shape)}"
            )
        a, c = _read(payload.data[:split], n, counts), _read(payload.data[split:], d, counts)
        return product(a, c, shape, dtype)


def _factor_bytes(rows: int, counts: list[int]) -> int:
    return sum(values_bytes(rows * k, k, w) for k, w in zip(counts, _WIDTHS, strict=True) if k)


def _rounded(factor: torch.Tensor, counts: list[int]) -> tuple[bytes, torch.Tensor]:
    """The bytes of a factor (rows, k), and the factor they decode to, float64."""
    parts = zip(factor.split(counts, dim=1), _WIDTHS, strict=True)
    data = b"".join(
        encode_values(part.reshape(-1).numpy(), _columns(len(part), part.shape[1]), part.shape[1], width)
        for part, width in parts
        if part.shape[1]
    )
    return data, _read(data, len(factor), counts).double()


def _read(data: bytes, rows: int, counts: list[int]) -> torch.Tensor:
    parts, start = [], 0
    for k, width in zip(counts, _WIDTHS, strict=True):
        end = start + (values_bytes(rows * k, k, width) if k else 0)
        if k:
            parts.append(decode_values(data[start:end], _columns(rows, k), k, width).reshape(rows, k))
        start = end
    return torch.cat(parts, 1) if parts else torch.zeros(rows, 0)


def _columns(rows: int, k: int) -> np.ndarray:
    return np.tile(np.arange(k, dtype=np.int32), rows)


def _fitted(image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The factor X of least ||D - X other^T||, given `image` = D other; a zero column stays zero."""
    return image @ torch.linalg.pinv(other.T @ other, hermitian=True)
