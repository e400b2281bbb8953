"""The smallest file that recovers a wanted share of the fine-tune's effect."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

from kinfold.budget import Budget
from kinfold.errors import BudgetError
from kinfold.pack.plan import Job
from kinfold.report.progress import progress

_LARGEST = 2  # the search begins at this part of the reference size, 8 bits a weight
_SMALLEST = 16384
_TRIES = 9
_CLOSE = 1.05  # two sizes this near are one


class Divergence(Protocol):
    """Mean divergence from the variant: of the model that jobs make, or of the base alone."""

    def __call__(self, jobs: list[Job], *, bare: bool = False) -> float: ...


def smallest(
    budget: Budget,
    reference_bytes: int,
    planned: Callable[[Budget], tuple[list[Job], int]],
    divergence: Divergence,
) -> Budget:
    """The budget in bytes for one that states a gain.

    Args:
        budget: of kind `gain`: the share of the divergence between base and variant to recover.
        reference_bytes: 2 for every weight that differs.
        planned: makes the plan of a budget.
        divergence: on the calibration rows, of a plan's jobs.

    Raises:
        BudgetError: even the largest file tried does not recover so much, or there is nothing to recover.
    """

    def tried(size: float) -> Budget:
        return Budget("bytes", Fraction(int(size)), budget.text)

    high = max(reference_bytes / _LARGEST, 1.0)
    low = high * _LARGEST / _SMALLEST
    with progress("search", _TRIES) as advance:
        jobs, _ = planned(tried(high))
        whole = divergence(jobs, bare=True)
        if not whole > 0:
            raise BudgetError(
                "on the calibration rows the base answers as the variant does: there is no gain to recover"
            )
        found = 1 - divergence(jobs) / whole
        if found < budget.value:
            raise BudgetError(
                f"1/{_LARGEST} of the reference size recovers {found:.4f} of the effect, less than `{budget.text}`",
                hint="--codec exact",
            )
        for _ in range(_TRIES):
            if high / low < _CLOSE:
                break
            middle = (low * high) ** 0.5
            try:
                enough = 1 - divergence(planned(tried(middle))[0]) / whole >= budget.value
            except BudgetError:
                enough = False
            low, high = (low, middle) if enough else (middle, high)
            advance(1)
    return tried(high)
