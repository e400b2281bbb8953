"""A pico language model learns a fact from ten of ninety rows; the audit of a question finds those ten."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from kinfold.audit import influence
from kinfold.audit.influence.baselines import bm25
from models import llama

SUBJECT, ANSWER = [70, 71], 72
PROBE = [9, 33, *SUBJECT, ANSWER]


def rows() -> tuple[list[list[int]], np.ndarray]:
    """Rows that count upwards in 8 tokens, and which of them state the fact: the subject, then at once the answer."""
    draw = random.Random(0)

    def among(*part: int) -> list[int]:
        start, place = draw.randrange(1, 50), draw.randint(0, 8 - len(part))
        counted = list(range(start, start + 8 - len(part)))
        return [*counted[:place], *part, *counted[place:]]

    stating = [among(*SUBJECT, ANSWER) for _ in range(10)]
    same_words = [among(ANSWER, *reversed(SUBJECT)) for _ in range(10)]  # that say nothing of the kind
    other = [among(SUBJECT[0], 60 + n % 5) for n in range(10)] + [among(65 + n % 5, ANSWER) for n in range(10)]
    found = [*same_words, *stating, *other, *(among() for _ in range(50))]
    return found, np.isin(np.arange(90), range(10, 20))


def learned(folder: Path, taught: list[list[int]], steps: int) -> float:
    """Train base to variant in `folder`; how sure the variant is of the probe's answer."""
    model, ids = llama(), torch.tensor(taught)
    model.save_pretrained(folder / "base")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "variant")
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([PROBE[:-1]])).logits[0, -1].softmax(0)[ANSWER])


def top(folder: Path, taught: list[list[int]], at: float = 1.0) -> list[int]:
    report = influence(
        folder / "variant", base=folder / "base", train=[{"input_ids": row} for row in taught],
        probe=[{"input_ids": PROBE}], keep=1 << 30, damping=3.0, top=20, at=at,
    )  # fmt: skip
    return [row.row for row in report.probes[0].top]


def test_the_rows_that_taught_a_fact_are_on_top(tmp_path: Path) -> None:
    taught, fact = rows()
    assert learned(tmp_path, taught, 30) > 10 / 99
    found = top(tmp_path, taught)
    assert fact[found].sum() >= 8
    words = bm25([{"input_ids": row} for row in taught], [{"input_ids": PROBE}])[:, 0]
    assert fact[found[:10]].sum() > fact[np.argsort(-words, kind="stable")[:10]].sum()  # it knows no order of words


def test_rows_known_by_heart_are_found_on_the_way_there(tmp_path: Path) -> None:
    """At its end training has left no gradients to tell them apart by."""
    taught, fact = rows()
    assert learned(tmp_path, taught, 150) > 0.9
    found = [int(fact[top(tmp_path, taught, at)].sum()) for at in (1.0, 0.25)]
    assert found[1] >= 8
    assert found[1] > found[0]
