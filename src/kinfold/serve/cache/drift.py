"""How well a basis fits a fine-tune, or other texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from kinfold.serve.cache.basis import Energies, KVBasis
from kinfold.serve.cache.calibrate import (
    chosen_texts,
    energies_left,
    mean_share,
    measure_moments,
    refuse_basis,
    rest_of,
)


@dataclass(frozen=True)
class DriftReport:
    """How much of a model's keys and values a basis cannot hold.

    Attributes:
        key, value: layer number -> by KV head, the share of this model's energy outside the basis.
        own_key, own_value: the same of the calibration itself; empty where the basis was cut.
        tokens: measured on.
    """

    key: Energies
    value: Energies
    own_key: Energies
    own_value: Energies
    tokens: int

    @property
    def key_mean(self) -> float:
        """Mean over layers and heads."""
        return mean_share(self.key)

    @property
    def value_mean(self) -> float:
        """Mean over layers and heads."""
        return mean_share(self.value)


def drift(
    model: Any, basis: KVBasis, input_ids: Iterable[torch.Tensor], *, max_tokens: int = 16_384, seed: int = 0
) -> DriftReport:
    """What `basis` leaves out of this model's keys and values on some texts.

    Args:
        model, input_ids, max_tokens, seed: as `calibrate`.
        basis: of this model or another of the same shape.

    Raises:
        CacheError: the basis does not fit the model, or as `calibrate`.
    """
    refuse_basis(model, basis)
    moments, tokens = measure_moments(model, chosen_texts(model, input_ids, max_tokens, seed))
    key, value = (energies_left(moments, half, bases) for half, bases in ((0, basis.key), (1, basis.value)))
    return DriftReport(key, value, rest_of(basis.key_energy), rest_of(basis.value_energy), tokens)


@dataclass(frozen=True)
class Fairness:
    """What a basis leaves out of a base and of a fine-tune on the same texts.

    Attributes:
        key, value: shares of the energy: base's mean, fine-tune's mean, base's worst head, fine-tune's worst head.
        tokens: measured on.
        sentence: what follows.
    """

    key: tuple[float, float, float, float]
    value: tuple[float, float, float, float]
    tokens: int
    sentence: str


def compare_drift(
    base: Any, variant: Any, basis: KVBasis, input_ids: Iterable[torch.Tensor], *, max_tokens: int = 16_384
) -> Fairness:
    """Whether the base's basis is fair to a fine-tune.

    Args:
        base, variant: models of one shape.
        basis, input_ids, max_tokens: as `drift`.

    Raises:
        CacheError: as `drift`.
    """
    ids = list(input_ids)
    reports = [drift(model, basis, ids, max_tokens=max_tokens) for model in (base, variant)]
    key, value = (_four([getattr(report, half) for report in reports]) for half in ("key", "value"))
    more = [
        f"{(half[1] - half[0]) * 100:.2g} points more of the {name}"
        for name, half in (("keys", key), ("values", value))
    ]
    sentence = f"the basis leaves out {' and '.join(more)} of the fine-tune than of the base"
    return Fairness(key, value, reports[0].tokens, sentence)


def _four(shares: list[Energies]) -> tuple[float, float, float, float]:
    worst = [max(share for row in told.values() for share in row) for told in shares]
    return mean_share(shares[0]), mean_share(shares[1]), worst[0], worst[1]
