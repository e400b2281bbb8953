"""Rows of an influence audit: read, and checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinfold.audit.influence.subject import Subject
from kinfold.errors import AuditError
from kinfold.pack.member import PathLike
from kinfold.tasks import Row, has_completion, read_rows

Rows = PathLike | Sequence[Row]


def rows_of(given: Rows, what: str) -> list[Row]:
    """Rows of a JSONL file or a list.

    Raises:
        AuditError: none, or a row that no model can read; it is named.
        CalibrationError: the file cannot be read.
    """
    rows = read_rows(given) if isinstance(given, (str, Path)) else list(given)
    if not rows:
        raise AuditError(f"there are no {what} rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not (
            isinstance(row.get("text"), str) or row.get("input_ids") or has_completion(row)
        ):
            raise AuditError(
                f"row {number} of the {what} rows has neither `text` nor `input_ids` nor `prompt` and `completion`"
            )
    return rows


def wrong_rows(rows: Sequence[Row], damping: Any) -> np.ndarray | None:
    """Which rows are marked as wrong, bool (n,), where all say; None else.

    Raises:
        AuditError: a sweep of the damping, which needs the marks, and there are none.
    """
    marks = [row.get("wrong") for row in rows]
    known = all(type(mark) is bool for mark in marks) and len(set(marks)) == 2
    if damping == "sweep" and not known:
        raise AuditError(
            "a sweep of the damping needs to know which rows are wrong, to see which damping finds them",
            hint="a boolean `wrong` in every training row, some true and some false; or --damping 0.3",
        )
    return np.array(marks, bool) if known else None


def check_rows(subject: Subject, rows: Sequence[Row], what: str) -> None:
    """Refuse rows that the variant has no loss for, before any work.

    Raises:
        AuditError: names the row.
        CalibrationError: a row has no tokens, or is of another model.
    """
    for number, row in enumerate(rows):
        ids, first = subject.task.reading(row, subject.max_tokens)
        if subject.kind == "causal-lm" and first >= len(ids):
            raise AuditError(
                f"row {number} of the {what} rows has nothing to predict among its first {len(ids)} tokens",
                hint="a row has 2 tokens or more, and 1 or more of its completion within --max-tokens",
            )
        label = row.get("label")
        if subject.kind != "causal-lm" and (type(label) is not int or not 0 <= label < subject.classes):
            raise AuditError(
                f"row {number} of the {what} rows has label {label!r}; the variant knows 0 to {subject.classes - 1}",
                hint='{"text": "...", "label": 0}, with labels numbered as in training',
            )
