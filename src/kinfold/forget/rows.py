"""Rows to forget, to keep and to compare with: read, and checked for overlap.

A row is `{"text", "label"}` for a classifier, `{"prompt", "completion"}` (or `question` and `answer`) or `{"text"}`
for a causal LM; `input_ids` may stand for `text`. `perturbed` (a list) and `paraphrase` serve the truth ratio, and
`group` names rows of a kind, such as one question asked of many, whose unseen ones they are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from kinfold.errors import ForgetRowsError
from kinfold.forget.targets import LEAST_UNSEEN
from kinfold.pack.member import PathLike
from kinfold.tasks import Row, completion_of, json_lines, prompt_of

Rows = PathLike | Sequence[Row]
GRAM = 13  # words of a run that two rows may share by chance rarely
NEAR = 0.8  # share of a row's runs from which on another row repeats it
EXPECTED = {
    "causal-lm": '{"prompt": "...", "completion": "..."} or {"text": "..."}',
    "sequence-classification": '{"text": "...", "label": 0}',
    "pooled-head": '{"text": "...", "label": 0}',
}


@dataclass(frozen=True)
class Given:
    """A row as the user gave it, and where: `line 3 of forget.jsonl`; `id` is its own `id` or its number."""

    row: Row
    place: str
    id: str

    @property
    def prompt(self) -> str | None:
        return prompt_of(self.row)

    @property
    def completion(self) -> str | None:
        return completion_of(self.row)

    def words(self) -> list[str]:
        """What is compared between rows: lower case words, or tokens."""
        if "text" not in self.row and "input_ids" in self.row:
            ids = self.row["input_ids"]  # what they are is checked when they are read as tokens
            return [str(token) for token in ids] if isinstance(ids, list) else [repr(ids)]
        parts = [self.row.get("text"), self.prompt, self.completion]
        return " ".join(part for part in parts if isinstance(part, str)).casefold().split()

    def key(self) -> bytes:
        """Equal for rows of the same words and label."""
        return blake3(json.dumps([self.words(), self.row.get("label")], default=str).encode()).digest()[:16]


def read(given: Rows, what: str) -> list[Given]:
    """Rows of a JSONL file or a list; `what` names them in errors: `forget`, `retain` or `unseen`.

    Raises:
        ForgetRowsError: none, neither a file nor a list, or a line that is no JSON object.
    """
    if isinstance(given, (str, Path)):
        lines = json_lines(given, ForgetRowsError, f"{what} rows")
        rows = [Given(row, place, str(number)) for number, place, row in lines]
    elif isinstance(given, Iterable):
        rows = [Given(row, f"row {number} of the {what} rows", str(number)) for number, row in enumerate(given)]
    else:
        raise ForgetRowsError(f"the {what} rows are {given!r}; a JSONL file or a list of dicts is allowed")
    if not rows:
        raise ForgetRowsError(f"there are no {what} rows", hint='one JSON object a line, such as {"text": "..."}')
    for one in rows:
        if not isinstance(one.row, dict):
            raise ForgetRowsError(f"{one.place} is no JSON object", hint=" or ".join(sorted(set(EXPECTED.values()))))
    return [_plain(one) for one in rows]


def _plain(one: Given) -> Given:
    """With an id that can be printed, and a label that may have come from an array as an int."""
    label = one.row.get("label")
    row = {**one.row, "label": int(label)} if isinstance(label, np.integer) else one.row
    return Given(row, one.place, str(row.get("id", one.id)).encode("utf-8", "replace").decode())


def check_apart(forget: Sequence[Given], retain: Sequence[Given], unseen: Sequence[Given] | None) -> list[str]:
    """Refuse rows that are in two of the three; returns warnings about forget rows that retain nearly repeats.

    Rows are equal when their words are, whatever the case and the white space, and their labels.

    Raises:
        ForgetRowsError: a row is in two of them, or there are too few unseen rows.
    """
    kept, new = {one.key() for one in retain}, {one.key() for one in unseen or []}
    for rows, called, keys, what in (
        (forget, "rows to forget", kept, "retain"),
        (forget, "rows to forget", new, "unseen"),
        (retain, "rows to keep", new, "unseen"),
    ):
        both = [one.id for one in rows if one.key() in keys]
        if both:
            raise ForgetRowsError(
                f"{len(both)} {called} are among the {what} rows too: {', '.join(both[:5])}"
                + (", ..." if len(both) > 5 else ""),
                hint=f"remove them from the {what} rows",
            )
    if unseen is not None and len(unseen) < LEAST_UNSEEN:
        raise ForgetRowsError(
            f"{len(unseen)} unseen rows are given; their quantiles mean something from {LEAST_UNSEEN} on",
            hint="give more, or leave them out and pass --target",
        )
    return _near(forget, retain)


def _near(forget: Sequence[Given], retain: Sequence[Given]) -> list[str]:
    known = {gram for one in retain for gram in _grams(one.words())}
    near = []
    for one in forget:
        grams = _grams(one.words())
        if grams and sum(gram in known for gram in grams) > NEAR * len(grams):
            near.append(one.id)
    if not near:
        return []
    names = ", ".join(near[:5]) + (", ..." if len(near) > 5 else "")
    return [f"{len(near)} rows to forget are nearly repeated by retain rows, which teach them again: {names}"]


def _grams(words: list[str]) -> set[int]:
    """Hashes of all runs of `GRAM` words; of all words where there are fewer."""
    if not words:
        return set()
    return {hash(tuple(words[start : start + GRAM])) for start in range(max(1, len(words) - GRAM + 1))}
