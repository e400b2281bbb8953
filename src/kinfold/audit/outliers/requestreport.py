"""What an audit of requests reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestVerdict:
    """One request of the log.

    Attributes:
        id: its own, or the number of its line.
        p_value: how often an in-domain request would score so high.
        score: larger is more out of distribution.
        parts: the terms whose sum the score is, in standard deviations among the reference.
        flagged: out of distribution by the rule asked for.
        copies: how many requests of the log are the same, itself among them.
        text: what was sent; None unless asked for.
    """

    id: str
    p_value: float
    score: float
    parts: Mapping[str, float]
    flagged: bool
    copies: int
    text: str | None = None


@dataclass(frozen=True)
class RequestReport:
    """Which requests are not this variant's business.

    Attributes:
        base: its directory.
        variant: its path.
        fingerprint: of the variant.
        filter: that picked outliers for the head.
        head: `linear`, `none` or `finetune`.
        preset: `default` or `paper`.
        at: the module whose gradients were taken; empty where none were.
        false_alarm: share of in-domain requests that may be flagged.
        fdr: share of the flagged that may be in domain; None where the false alarm rules.
        seed: of the folds.
        reference: rows of it.
        requests: rows of the log.
        distinct: those that are no copies of another.
        share: estimated share of outliers among the distinct, a lower bound; None of a saved monitor.
        least_p: no p-value is smaller.
        verdicts: one a request, in the order given.
        notes: what a reader must know, one sentence each.
    """

    base: str
    variant: str
    fingerprint: str
    filter: str
    head: str
    preset: str
    at: str
    false_alarm: float
    fdr: float | None
    seed: int
    reference: int
    requests: int
    distinct: int
    share: float | None
    least_p: float
    verdicts: tuple[RequestVerdict, ...]
    notes: tuple[str, ...]

    @property
    def flagged(self) -> list[RequestVerdict]:
        """Flagged requests, the highest score first."""
        return sorted((one for one in self.verdicts if one.flagged), key=lambda one: -one.score)
