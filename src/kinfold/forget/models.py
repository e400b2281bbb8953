"""Measuring a model on all rows: before, after, restored, and a reference trained without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kinfold.forget.config import ForgetConfig
from kinfold.forget.measure import membership_auc, truth_ratio
from kinfold.forget.report import Measures, Side
from kinfold.forget.rows import Given
from kinfold.forget.subject import Facts, Subject
from kinfold.forget.targets import Targets, gap
from kinfold.forget.tokens import Reader, Tokens

RELEARN_RATE = 1e-3  # of AdamW
RELEARNED = 0.9  # of the start accuracy


@dataclass(frozen=True)
class Material:
    """All rows as tokens, read once.

    Attributes:
        forget: all of them. `retain`: likewise; `measured` are the numbers of those that measures look at.
        unseen: rows never trained on, or None.
        ratios: of rows with `perturbed` answers: the right answer, then the wrong ones.
    """

    forget: list[Tokens]
    retain: list[Tokens]
    measured: list[int]
    unseen: list[Tokens] | None
    ratios: list[tuple[Tokens, list[Tokens]]]

    def all(self) -> Iterator[Tokens]:
        """Every row, and every answer of the truth ratios."""
        yield from (*self.forget, *self.retain, *(self.unseen or []))
        for right, wrong in self.ratios:
            yield from (right, *wrong)

    @classmethod
    def read(
        cls, reader: Reader, forget: Sequence[Given], retain: Sequence[Given], unseen: Sequence[Given] | None,
        most: int, seed: int,
    ) -> Material:  # fmt: skip
        """Tokens of all rows; `most` retain rows, drawn by the seed, are measured.

        Raises:
            ForgetRowsError: a row does not fit the model.
        """
        drawn = np.random.default_rng(seed).permutation(len(retain))[:most]
        return cls(
            reader.tokens(forget),
            reader.tokens(retain),
            sorted(drawn.tolist()),
            None if unseen is None else reader.tokens(unseen),
            [found for one in forget if (found := reader.variants(one)) is not None],
        )


def measure(subject: Subject, material: Material, targets: Targets) -> tuple[Measures, Facts, list[float]]:
    """Measures without relearning, what was seen of the forget rows, and their truth ratios."""
    forget = subject.facts(material.forget)
    retain = subject.facts([material.retain[number] for number in material.measured])
    unseen = None if material.unseen is None else subject.facts(material.unseen)
    current = torch.from_numpy(forget.losses)
    ratios = truth_ratios(subject, material)
    finite = bool(np.isfinite(forget.losses).all())
    language = subject.kind == "causal-lm"
    return (
        Measures(
            forget=_side(forget),
            retain=_side(retain),
            unseen=None if unseen is None else _side(unseen),
            gap=gap(current, targets.of(current, torch.arange(len(current)))) if finite else float("nan"),
            auc=None if unseen is None else membership_auc(forget.losses, unseen.losses),
            auc_least=membership_auc(forget.least, unseen.least) if unseen is not None and language else None,
            truth_ratio=float(np.median(ratios)) if ratios else None,
        ),
        forget,
        ratios,
    )


def truth_ratios(subject: Subject, material: Material) -> list[float]:
    """One for each row with `perturbed` answers."""
    flat = [one for right, wrong in material.ratios for one in (right, *wrong)]
    losses = subject.facts(flat).losses.tolist()
    found = []
    for _, wrong in material.ratios:
        found.append(truth_ratio(losses[0], losses[1 : 1 + len(wrong)]))
        losses = losses[1 + len(wrong) :]
    return found


def relearn_steps(
    subject: Subject, rows: Sequence[Tokens], accuracy: float, config: ForgetConfig, seed: int, most: int
) -> int | None:
    """AdamW steps on all weights until `RELEARNED` of `accuracy` on the rows is back; None where `most` do not do.

    The model is spoilt by it.
    """
    aim = RELEARNED * accuracy
    if subject.facts(rows).right.mean() >= aim:
        return 0
    parameters = [p for p in subject.model.parameters() if p.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=RELEARN_RATE)
    generator, losses = torch.Generator().manual_seed(seed), subject.losses(rows)
    for step in range(1, most + 1):
        optimizer.zero_grad()
        with torch.enable_grad():
            losses(torch.randperm(len(rows), generator=generator)[: config.batch_size]).mean().backward()
        optimizer.step()
        if subject.facts(rows).right.mean() >= aim:
            return step
    return None


def _side(found: Facts) -> Side:
    return Side(float(found.losses.mean()), float(found.right.mean()))
