"""Reading a budget: `4MB`, `1/100`, `gain=0.98`, `rank:4`, or a number of bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from kinfold.errors import BudgetError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_ALLOWED = (
    "a size (`500kB`, `4MB`), a fraction of the reference size (`1/100`), a share of the fine-tune's effect "
    "(`gain=0.98`), `rank:4` or `exact`"
)


@dataclass(frozen=True)
class Budget:
    """What the user asked for.

    Attributes:
        kind: `bytes`, `fraction` of the reference size, `gain` (the fewest bytes that recover this share of
            the divergence between base and variant on calibration rows), or `rank` (32 R (n + d) bits a
            matrix, the unit of Optimal Singular Damage).
        value: bytes, the fraction, the gain, or R.
        text: as it was given; recorded in the pack.
    """

    kind: Literal["bytes", "fraction", "gain", "rank"]
    value: Fraction
    text: str

    @classmethod
    def parse(cls, given: str | int) -> Budget:
        """Read a budget.

        Raises:
            BudgetError: the text is none of the spellings, or not above zero.
        """
        text = str(given).strip()
        try:
            budget = cls._read(text)
        except (ValueError, ZeroDivisionError, KeyError) as cause:
            raise BudgetError(f"`{text}` is no budget; give {_ALLOWED}", hint="--budget 1/100") from cause
        if budget.kind == "bytes" and 0 < budget.value < 1:
            near = round(1 / float(budget.value))
            raise BudgetError(
                f"`{text}` is less than a byte; a fraction is written 1/{near}", hint=f"--budget 1/{near}"
            )
        if budget.value <= 0 or (budget.kind == "fraction" and budget.value > 1):
            raise BudgetError(f"a budget must be above zero and a fraction at most 1, got `{text}`")
        if budget.kind == "gain" and budget.value >= 1:
            raise BudgetError(
                f"a gain must be above 0 and below 1, got `{text}`; all of the fine-tune is kept by `exact`",
                hint="--budget gain=0.98, or --codec exact",
            )
        return budget

    @classmethod
    def _read(cls, text: str) -> Budget:
        if text.startswith("rank:"):
            return cls("rank", Fraction(text[5:]), text)
        if text.startswith("gain="):
            return cls("gain", Fraction(text[5:]), text)
        if "/" in text:
            return cls("fraction", Fraction(text.replace(" ", "")), text)
        match = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]*)", text)
        if match is None:
            raise ValueError(text)
        return cls("bytes", Fraction(match[1]) * _UNITS[match[2].upper()], text)

    def file_bytes(self, reference_bytes: int) -> int | None:
        """The most bytes the whole file may take; None where ranks or a gain rule."""
        if self.kind in ("rank", "gain"):
            return None
        return int(self.value * (reference_bytes if self.kind == "fraction" else 1))

    def matrix_bits(self, sides: tuple[int, int]) -> int:
        """Bits of one n x d matrix under `rank:R`: a dense pair of rank R in 32-bit values."""
        return int(32 * self.value * sum(sides)) // 8 * 8
