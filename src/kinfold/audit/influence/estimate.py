"""The curvature of all groups of columns, from a stream of gradients, and scores of blocks of rows by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kinfold.audit.influence.scores import Factored
from kinfold.audit.influence.settings import CurvatureKind, Layout
from kinfold.errors import AuditError

Weighted = tuple[np.ndarray, np.ndarray]  # rescaled gradients (b, width); how often each row occurs (b,)


@dataclass(frozen=True)
class Estimate:
    """Curvature of each group of a layout.

    Attributes:
        layout: what the columns are.
        rows: training rows behind it, n.
        parts: a group each; None where the curvature is the identity.
    """

    layout: Layout
    rows: int
    parts: list[Factored] | None

    @classmethod
    def of(cls, stream: Iterable[Weighted], layout: Layout, rows: int, curvature: CurvatureKind) -> Estimate:
        """One pass over the training rows; groups of more columns than rows are kept whole, others as F.

        Args:
            stream: rescaled gradients of distinct rows, and how often each occurs.
            rows: n, with repeats.

        Raises:
            AuditError: fewer than 2 rows.
        """
        if curvature == "identity":
            return cls(layout, rows, None)
        if rows < 2:
            raise AuditError(
                f"{rows} training row was given; the Fisher matrix needs 2 or more", hint="--curvature identity"
            )
        widths = [columns.stop - columns.start for columns, _ in layout.groups]
        fisher = [np.zeros((k, k)) if k <= rows else None for k in widths]
        kept: list[list[np.ndarray]] = [[] for _ in widths]
        for gradients, weights in stream:
            scaled = gradients * np.sqrt(weights)[:, None]
            for number, (columns, _) in enumerate(layout.groups):
                part, sums = scaled[:, columns].astype(np.float64), fisher[number]
                if sums is None:
                    kept[number].append(part)
                else:
                    sums += part.T @ part
        parts = [
            Factored.of_rows(np.concatenate(blocks), rows) if sums is None else Factored.of_fisher(sums / rows)
            for sums, blocks in zip(fisher, kept, strict=True)
        ]
        return cls(layout, rows, parts)

    def damped(self, damping: float) -> Estimate:
        """With the relative damping set."""
        if self.parts is None:
            return self
        sizes = [size for _, size in self.layout.groups]
        parts = [part.damped(self.rows, size, damping) for part, size in zip(self.parts, sizes, strict=True)]
        return Estimate(self.layout, self.rows, parts)

    @property
    def effective(self) -> float:
        """Directions that the data span against the damping, summed over groups and averaged over masks."""
        return sum(part.effective for part in self.parts or []) / self.layout.masks

    @property
    def terms(self) -> list[float]:
        """lam of each group."""
        return [part.term for part in self.parts or []]

    def directions(self, probe: np.ndarray) -> np.ndarray:
        """What gradients (b, width) are multiplied by to get scores (b, m): float64 (width, m).

        Args:
            probe: rescaled gradients (m, width).
        """
        wide = probe.astype(np.float64)
        if self.parts is None:
            return wide.T / self.layout.masks
        found = np.empty(wide.shape[::-1])
        for part, (columns, _) in zip(self.parts, self.layout.groups, strict=True):
            found[columns] = part.directions(wide[:, columns])
        return found / self.layout.masks

    def own(self, gradients: np.ndarray) -> np.ndarray:
        """Self-influence (b,) of rows with rescaled gradients (b, width)."""
        wide = gradients.astype(np.float64)
        if self.parts is None:
            return np.square(wide).sum(1) / self.layout.masks
        pairs = zip(self.parts, self.layout.groups, strict=True)
        return (
            sum((part.own(wide[:, columns]) for part, (columns, _) in pairs), np.zeros(len(wide))) / self.layout.masks
        )
