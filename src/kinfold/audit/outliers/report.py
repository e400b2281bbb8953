"""What an audit for odd variants reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["odd", "ordinary", "undecided"]


@dataclass(frozen=True)
class OddPart:
    """A tensor, or pool of tensors, and its part in a score.

    Attributes:
        name: of the tensor; of the layer, with `(vectors)` or `(matrices)`, for a pool.
        share: of the sum of all tensors' squared parts, 0 to 1.
        statistic: the one that stands out: norm, stable_rank, effective_rank, kurtosis or energy.
        deviation: of that statistic, in standard deviations among the accepted variants; above 0 is larger.
        sentence: the same in words.
    """

    name: str
    share: float
    statistic: str
    deviation: float
    sentence: str


@dataclass(frozen=True)
class MethodScore:
    """One method's word on a variant: see `VariantVerdict`."""

    score: float
    threshold: float
    p_value: float


@dataclass(frozen=True)
class VariantVerdict:
    """One variant that was judged.

    Attributes:
        name: the stem of its path.
        path: where it is.
        verdict: `odd`, `ordinary`, or `undecided` where the accepted variants are too few to say ordinary.
        score: of the method asked for; larger is more abnormal.
        threshold: odd is above.
        p_value: how often an ordinary variant would score so high.
        parts: the five tensors of largest share, the largest first.
        methods: the same figures by all four methods.
        left_out: its tensors that the base does not have in the same shape, which were not looked at.
    """

    name: str
    path: str
    verdict: Verdict
    score: float
    threshold: float
    p_value: float
    parts: tuple[OddPart, ...]
    methods: Mapping[str, MethodScore]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class VariantReport:
    """Which variants of a family are odd.

    Attributes:
        base: its directory.
        method: that gave the verdicts.
        preset: of TCCM.
        level: `tensor` or `layer`.
        false_alarm: share of ordinary variants that may be called odd.
        certified: whether the accepted variants are enough for that share to hold.
        seed: of the nets.
        codec: of every variant.
        accepted: names of those the model was trained on.
        features: statistics a variant.
        variants: those judged, in the order given; the accepted ones where there was no candidate.
        left_out: tensors of the base that some variant lacks or has in another shape, and which ones.
        notes: what a reader must know, one sentence each.
    """

    base: str
    method: str
    preset: str
    level: str
    false_alarm: float
    certified: bool
    seed: int
    codec: str
    accepted: tuple[str, ...]
    features: int
    variants: tuple[VariantVerdict, ...]
    left_out: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    @property
    def odd(self) -> list[str]:
        """Names of the odd ones, the highest score first."""
        found = [one for one in self.variants if one.verdict == "odd"]
        return [one.name for one in sorted(found, key=lambda one: -one.score)]
