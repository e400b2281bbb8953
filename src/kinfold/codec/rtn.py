"""`rtn`: round to nearest on a few levels, with one step for every 64 values.

For norms, biases and new heads when the budget cannot hold them exactly; no matrix structure is assumed.
"""

from __future__ import annotations

import math
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
    require_bits,
)
from kinfold.codec.bits import pack_bits, packed_bytes, unpack_bits
from kinfold.errors import PackError

_GROUP = 64  # values that share a step: 0.25 bits a value


class RtnConfig(CodecConfig):
    """Options of `rtn`.

    Attributes:
        value_bits: width of a value; 2^width - 1 levels, zero among them.
    """

    value_bits: Literal[8, 4] = 8


class Rtn(Codec):
    """Symmetric levels per group of 64; the step is float16 of (largest entry / highest level), after a
    float32 scale a tensor that keeps the steps in float16's range."""

    name = "rtn"
    Config = RtnConfig
    config: RtnConfig
    coarse = True

    def minimum_bits(self, shape: Shape) -> int:
        return 8 * _bytes(math.prod(shape), self.config.value_bits)

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        require_bits(self, shape, budget_bits)
        return Plan(self.minimum_bits(shape) // 8)

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        width = self.config.value_bits
        flat = delta.float().reshape(-1).numpy()
        scale, step = _steps(flat, width)
        top = (1 << (width - 1)) - 1
        wide = np.repeat(step.astype(np.float32) * scale, _GROUP)[: flat.size]
        quotient = np.divide(flat, wide, out=np.zeros_like(flat), where=wide > 0)
        code = np.clip(np.rint(quotient), -top, top).astype(np.int64) + top
        return Payload(scale.astype("<f4").tobytes() + step.tobytes() + pack_bits(code, width), {"w": width})

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused at the end
    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        count, width = math.prod(shape), payload.params.get("w")
        if type(width) is not int or width not in (8, 4) or len(payload.data) != _bytes(count, width):
            raise PackError(f"rtn: {len(payload.data)} bytes are impossible for {list(shape)}")
        groups = -(-count // _GROUP)
        scale = np.frombuffer(payload.data[:4], "<f4")[0]
        step = np.frombuffer(payload.data[4 : 4 + 2 * groups], "<f2").astype(np.float32) * scale
        code = unpack_bits(memoryview(payload.data)[4 + 2 * groups :], width, count).astype(np.float32)
        values = (code - np.float32((1 << (width - 1)) - 1)) * np.repeat(step, _GROUP)[:count]
        if not np.isfinite(values).all():
            raise PackError("rtn: a stored value is NaN or infinity")
        return torch.from_numpy(values).reshape(shape).to(dtype)


def _bytes(count: int, width: int) -> int:
    return 4 + 2 * -(-count // _GROUP) + packed_bytes(count, width)


def _steps(flat: np.ndarray, width: int) -> tuple[np.float32, np.ndarray]:
    """(float32 scale, float16 step of each group in units of the scale)."""
    padded = np.zeros(-(-flat.size // _GROUP) * _GROUP, np.float32)
    padded[: flat.size] = np.abs(flat)
    step = padded.reshape(-1, _GROUP).max(1) / ((1 << (width - 1)) - 1)
    scale = np.float32(step.max(initial=0.0) or 1.0)
    return scale, (step / scale).astype("<f2")
