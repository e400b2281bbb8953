"""What a comparison found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Measure = Literal["gain", "score", "divergence"]


@dataclass(frozen=True)
class Quality:
    """How near a model is to the variant.

    Attributes:
        error: relative Frobenius error over all deltas; 0 is the variant, 1 the bare base.
        divergence: of the outputs from the variant's, in `Comparison.divergence_unit`; None where the model
            could not be asked.
        score: what the user's metric gives, higher is better; None without a metric.
        gain: (score - the bare base's) / (the variant's - the bare base's); None without a metric, or where the
            variant scores no higher than the bare base.
    """

    error: float
    divergence: float | None = None
    score: float | None = None
    gain: float | None = None


@dataclass(frozen=True)
class Cell:
    """One codec at one budget.

    Attributes:
        codec: name and options, as `--codecs` takes them.
        budget: as it was given.
        bytes: of the whole file; None where the codec cannot meet the budget.
        least_bytes: the smallest file it can make, where it cannot meet the budget and that is known.
        quality: of the restored model; None where the codec cannot meet the budget.
    """

    codec: str
    budget: str
    bytes: int | None
    least_bytes: int | None
    quality: Quality | None


@dataclass(frozen=True)
class Comparison:
    """Every codec at every budget, between the uncompressed variant and the bare base.

    Attributes:
        base: the base's directory.
        variant: the variant's directory.
        reference_bytes: 2 bytes for every weight in a tensor that differs from the base.
        variant_bytes: bytes of the variant's tensors as stored.
        budgets: as given, without repeats.
        codecs: settings in the order of the table.
        seed: of the packs and the random inputs.
        inputs: what the outputs were compared on, in words.
        metric: the name of the user's function; None without one.
        measure: the figure that tables and plots lead with: `gain`, else `score`, else `divergence`.
        divergence_unit: `nats` (mean KL of the answers), or `relative` (distance of hidden states over their
            norm) where the model has no logits; None where it could not be asked.
        uncompressed: the variant itself.
        bare: the base's weights with the variant's new tensors (its heads) kept.
        cells: one for each codec and budget.
        notes: what a reader of the figures must know.
    """

    base: str
    variant: str
    reference_bytes: int
    variant_bytes: int
    budgets: list[str]
    codecs: list[str]
    seed: int
    inputs: str
    metric: str | None
    measure: Measure
    divergence_unit: Literal["nats", "relative"] | None
    uncompressed: Quality
    bare: Quality
    cells: list[Cell]
    notes: list[str]

    def value(self, quality: Quality | None) -> float | None:
        """The leading figure of a quality; None where there is none or it is not finite."""
        found = getattr(quality, self.measure) if quality is not None else None
        return found if found is not None and math.isfinite(found) else None

    def best(self, budget: str) -> list[Cell]:
        """The cells with the best leading figure at a budget: several where they are equal."""
        found = [(self.value(cell.quality), cell) for cell in self.cells if cell.budget == budget]
        there = [(value, cell) for value, cell in found if value is not None]
        pick = min if self.measure == "divergence" else max
        top = pick((value for value, _ in there), default=None)
        return [cell for value, cell in there if value == top]
