"""What a model knows of the rows of `people.py`: losses, answers, the truth ratio, membership and relearning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
import torch

from kinfold.forget.config import ForgetConfig
from kinfold.forget.measure import ks_test, membership_auc
from kinfold.forget.models import Material, relearn_steps, truth_ratios
from kinfold.forget.rows import read
from kinfold.forget.subject import Facts, Subject
from kinfold.forget.tokens import Tokens
from kinfold.tasks import Row
from people import People, own_wording, second_wording

SAMPLE = 200  # kept rows that are looked at
RELEARN = 30  # steps at most
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Known:
    """Measures by name, and truth ratios (n,) of the forget rows: of the second wordings, as in TOFU, and the own."""

    measures: dict[str, Any]
    ratios: list[float]
    own_ratios: list[float]

    def against(self, reference: "Known") -> dict[str, Any]:
        """With p-values that both models' truth ratios are of one distribution, and the utility as a share."""
        tests = {
            "ks_p": ks_test(self.ratios, reference.ratios),
            "ks_own_p": ks_test(self.own_ratios, reference.own_ratios),
        }
        return self.measures | tests | {"utility_share": self.measures["utility"] / reference.measures["utility"]}


def known(directory: Path, split: People, start_accuracy: float | None, seed: int) -> Known:
    """All measures of a model directory; with a start accuracy, relearning too.

    `prob` is the mean of p^(1 / tokens), `rouge` the ROUGE-L recall of the greedy answer, both of `forget`, of a sample
    of `retain` and of `world`; utility is the harmonic mean of those of retain and world. AUCs are against persons
    that neither training nor targets have seen. `again`: the second wording of the forget rows.
    """
    subject = Subject.load(directory)
    reader = subject.reader()
    places = np.linspace(0, len(split.retain) - 1, SAMPLE).astype(int)
    sides: dict[str, list[Row]] = {
        "forget": split.forget,
        "again": [second_wording(row) for row in split.forget],
        "retain": [split.retain[place] for place in places],
        "world": split.world,
        "held_out": split.held_out,
    }
    rows = {name: reader.tokens(read(some, name)) for name, some in sides.items()}
    facts = {name: subject.facts(some) for name, some in rows.items()}
    found: dict[str, Any] = {}
    for name, some in facts.items():
        found |= {f"{name}_loss": float(some.losses.mean()), f"{name}_prob": float(np.exp(-some.losses).mean())}
        found[f"{name}_accuracy"] = float(some.right.mean())
        if name != "held_out":
            said = answers(subject, rows[name])
            found[f"{name}_rouge"] = float(np.mean([recall(own.ids[own.first :], one) for own, one in said]))
    parts = [found[f"{name}_{what}"] for name in ("retain", "world") for what in ("prob", "rouge")]
    ratios, own = (
        truth_ratios(subject, Material.read(reader, read(some, "forget"), [], None, most=0, seed=0))
        for some in (split.forget, [own_wording(row) for row in split.forget])
    )
    found |= {"utility": harmonic_mean(parts), "truth_ratio": float(np.median(ratios))} | _auc(facts)
    found["own_truth_ratio"] = float(np.median(own))
    if start_accuracy is not None:
        found["relearn"] = relearn_steps(
            subject, rows["forget"], start_accuracy, ForgetConfig(batch_size=32), seed, RELEARN
        )
    return Known(found, ratios, own)


def _auc(facts: dict[str, Facts]) -> dict[str, float]:
    forget, others = facts["forget"], facts["held_out"]
    return {
        "auc": membership_auc(forget.losses, others.losses),
        "auc_least": membership_auc(forget.least, others.least),
    }


@torch.no_grad()
def answers(subject: Subject, rows: Sequence[Tokens]) -> list[tuple[Tokens, list[int]]]:
    """Each row with the greedy answer to its prompt, of as many tokens as its own."""
    found = []
    for length in sorted({row.first for row in rows}):
        same = [row for row in rows if row.first == length]
        for at in range(0, len(same), ROWS_AT_ONCE):
            some = same[at : at + ROWS_AT_ONCE]
            ids = torch.tensor([row.ids[:length] for row in some])
            for _ in range(max(row.counted for row in some)):
                ids = torch.cat([ids, subject.task.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
            found += [(row, said[length : len(row.ids)]) for row, said in zip(some, ids.tolist(), strict=True)]
    return found


def recall(right: Sequence[int], said: Sequence[int]) -> float:
    """ROUGE-L recall: the longest common subsequence as a share of the right answer's tokens."""
    best = [0] * (len(said) + 1)
    for token in right:
        before = best[:]
        for place, other in enumerate(said, 1):
            best[place] = before[place - 1] + 1 if token == other else max(before[place], best[place - 1])
    return best[-1] / len(right)
