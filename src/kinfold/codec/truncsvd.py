"""`truncsvd`: a dense low-rank pair, what a LoRA extraction from a fine-tune gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from kinfold.codec.base import Codec, CodecConfig, Importance, Payload, Plan, Shape, check_finite
from kinfold.codec.factors import decode_dense, dense_bytes, encode_dense, matrix_sides, product
from kinfold.codec.lowrank import as_matrix, leading, spectrum
from kinfold.errors import BudgetError, PackError


class TruncSvdConfig(CodecConfig):
    """Options of `truncsvd`.

    Attributes:
        value_bits: width of a stored entry; 8 and 4 carry one 16-bit step a column.
        allocation: `uniform` gives every matrix the same rank, as `mergekit-extract-lora` does; `energy`
            spends each rank where it removes most squared error a bit, over the whole model.
    """

    value_bits: Literal[32, 16, 8, 4] = 16
    allocation: Literal["energy", "uniform"] = "energy"


class TruncSvd(Codec):
    """D ~ (U_r sqrt(S_r)) (V_r sqrt(S_r))^T, stored densely (Eckart and Young, 1936)."""

    name = "truncsvd"
    Config = TruncSvdConfig
    config: TruncSvdConfig

    def weight(self, shape: Shape) -> float:
        return sum(matrix_sides(shape))

    def minimum_bits(self, shape: Shape) -> int:
        return 0  # a matrix may be left out; the budget decides over the whole model

    def _bits(self, shape: Shape, rank: int) -> int:
        return 8 * dense_bytes(*matrix_sides(shape), rank, self.config.value_bits)

    def _rank(self, shape: Shape, bits: int) -> int:
        """The largest rank that fits in `bits`; the values alone bound it from above."""
        n, d = matrix_sides(shape)
        rank = max(min(bits // (self.config.value_bits * (n + d)), n, d), 0)
        while rank and self._bits(shape, rank) > bits:
            rank -= 1
        return rank

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        return Plan(self._bits(shape, self._rank(shape, budget_bits)) // 8)

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        rank = self._rank(tuple(delta.shape), budget_bits)
        matrix = as_matrix(delta)
        a, c = leading(matrix, rank, seed).balanced(rank)
        return Payload(encode_dense(a, c, self.config.value_bits), {"k": rank, "w": self.config.value_bits})

    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return product(*self.factors(payload, shape), shape, dtype)

    def factors(self, payload: Payload, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        n, d = matrix_sides(shape)
        rank, width = payload.params.get("k"), payload.params.get("w")
        if type(rank) is not int or not 0 <= rank <= min(n, d) or type(width) is not int or width not in (32, 16, 8, 4):
            raise PackError(f"truncsvd: rank {rank!r} at {width!r} bits is impossible for {list(shape)}")
        return decode_dense(payload.data, n, d, rank, width)

    def survey(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None) -> np.ndarray:
        check_finite(delta)
        matrix = as_matrix(delta)
        if min(matrix.shape) <= 1024:
            return spectrum(matrix).numpy()
        # more than four times the common rank is never worth its bits next to the other matrices
        return leading(matrix, 4 * self._rank(tuple(delta.shape), budget_bits) + 16).s.numpy()

    def settle(
        self, shapes: Sequence[Shape], surveys: Sequence[np.ndarray | None], total_bits: int
    ) -> tuple[Codec, list[int]]:
        """Spend ranks in order of squared singular value a bit; `uniform` fills up common ranks first."""
        spectra = [np.zeros(0) if s is None else s for s in surveys]
        cheapest = min(self._bits(shape, 1) for shape in shapes)
        if total_bits < cheapest:
            raise BudgetError(
                f"`truncsvd` needs at least {cheapest // 8} bytes for one rank, {max(total_bits, 0) // 8} are left",
                least_bytes=cheapest // 8,
            )
        gain = np.concatenate([s**2 / self._bits(shape, 1) for s, shape in zip(spectra, shapes, strict=True)])
        owners = np.concatenate([np.full(s.size, index) for index, s in enumerate(spectra)])
        place = np.concatenate([np.arange(s.size) for s in spectra])
        # uniform: rank j of every matrix comes before rank j + 1 of any
        order = np.lexsort((-gain, place)) if self.config.allocation == "uniform" else np.argsort(-gain, kind="stable")
        ranks, full, spent = [0] * len(shapes), [False] * len(shapes), 0
        for index in owners[order]:
            if full[index]:
                continue
            more = self._bits(shapes[index], ranks[index] + 1) - self._bits(shapes[index], ranks[index])
            if spent + more > total_bits:
                full[index] = True  # smaller matrices may still fit
                continue
            ranks[index] += 1
            spent += more
        return self, [self._bits(shape, rank) for shape, rank in zip(shapes, ranks, strict=True)]
