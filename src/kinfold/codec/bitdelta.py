"""`bitdelta`: one sign a weight and one scale a matrix. BitDelta, arXiv 2402.10193."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from kinfold.codec.bits import packed_bytes, unpack_bits
from kinfold.codec.sums import PIECE, size_sum
from kinfold.errors import BudgetError, PackError


class BitDeltaConfig(CodecConfig):
    """Options of `bitdelta`.

    Attributes:
        planes: sign planes; each further plane codes what the ones before left over.
    """

    planes: int = Field(default=1, ge=1, le=16)


class BitDelta(Codec):
    """D ~ scale sign(D) with scale = mean |D|, the least-squares one; zero counts as plus."""

    name = "bitdelta"
    Config = BitDeltaConfig
    config: BitDeltaConfig
    coarse = True

    def minimum_bits(self, shape: Shape) -> int:
        return 8 * self.config.planes * (packed_bytes(math.prod(shape), 1) + 4)

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        require_bits(self, shape, budget_bits)
        return Plan(self.minimum_bits(shape) // 8)

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        residual = delta.float().reshape(-1).clone()
        scales, planes = [], []
        for _ in range(self.config.planes):
            plus = residual >= 0
            scale = float(np.float32(size_sum(residual) / max(residual.numel(), 1)))
            for piece in residual.split(PIECE):
                piece -= torch.where(piece >= 0, scale, -scale)
            scales.append(scale)
            planes.append(np.packbits(plus.numpy(), bitorder="little").tobytes())
        return Payload(np.array(scales, "<f4").tobytes() + b"".join(planes), {"m": self.config.planes})

    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        count, planes = math.prod(shape), payload.params.get("m")
        plane_bytes = packed_bytes(count, 1)
        if type(planes) is not int or not 1 <= planes <= 16 or len(payload.data) != planes * (plane_bytes + 4):
            raise PackError(f"bitdelta: {len(payload.data)} bytes are impossible for {list(shape)}")
        scales = np.frombuffer(payload.data[: 4 * planes], "<f4")
        if not np.isfinite(scales).all():
            raise PackError("bitdelta: a scale is NaN or infinity")
        total = torch.zeros(count)
        for number, scale in enumerate(scales.tolist()):
            start = 4 * planes + number * plane_bytes
            plane = memoryview(payload.data)[start : start + plane_bytes]
            plus = torch.from_numpy(unpack_bits(plane, 1, count).astype(bool))
            total += torch.where(plus, scale, -scale)
        return total.reshape(shape).to(dtype)

    def settle(
        self, shapes: Sequence[Shape], surveys: Sequence[np.ndarray | None], total_bits: int
    ) -> tuple[Codec, list[int]]:
        needed = [self.minimum_bits(shape) for shape in shapes]
        if sum(needed) > total_bits:
            raise BudgetError(
                f"`bitdelta` takes {sum(needed) // 8} bytes for these matrices, {max(total_bits, 0) // 8} are left: "
                "it has one rate, one bit a weight and plane",
                least_bytes=sum(needed) // 8,
            )
        return self, needed
