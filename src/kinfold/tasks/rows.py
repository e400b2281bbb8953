"""Rows of a JSONL file, and what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kinfold.errors import CalibrationError, KinfoldError

Row = dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a JSONL file: each has `text`, `input_ids` or a prompt with its completion, and optionally `label`.

    Raises:
        CalibrationError: the file or a line of it cannot be read; the line's number is named.
    """
    rows = [_row(place, row) for _, place, row in json_lines(path, CalibrationError)]
    if not rows:
        raise CalibrationError(f"`{path}` has no rows", hint='one JSON object a line, such as {"text": "..."}')
    return rows


def json_lines(path: str | Path, error: type[KinfoldError], what: str = "") -> list[tuple[int, str, Any]]:
    """Number, place in words and value of each line of a JSONL file that is not blank.

    Args:
        path: the file.
        error: what is raised.
        what: the file holds, named in the error.

    Raises:
        error: the file cannot be read, or a line is no JSON; the line's number is named.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines would also cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as cause:
        named = f"the {what} `{path}`" if what else f"`{path}`"
        raise error(f"cannot read {named}: {cause}", hint=f"ls {path.parent}") from cause
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"line {number} of `{path}`"
            try:
                found.append((number, place, json.loads(line)))
            except (ValueError, RecursionError) as cause:
                raise error(f"{place} is no JSON: {cause}") from cause
    return found


def prompt_of(row: Row) -> Any:
    """Its `prompt` or `question`; None where it has none."""
    return row.get("question") if row.get("prompt") is None else row["prompt"]


def completion_of(row: Row) -> Any:
    """Its `completion` or `answer`; None where it has none."""
    return row.get("answer") if row.get("completion") is None else row["completion"]


def has_completion(row: Row) -> bool:
    """Whether a language model learns from the row's completion, given its prompt."""
    return isinstance(prompt_of(row), str) and isinstance(completion_of(row), str)


def text_of(row: Row) -> str:
    """What a row says to people: its prompt and completion, its text, or its token ids as words."""
    if has_completion(row) and "label" not in row:  # a classifier's row is its text
        return f"{prompt_of(row)} {completion_of(row)}"
    if isinstance(row.get("text"), str):
        return row["text"]
    return " ".join(map(str, row["input_ids"]))


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold it; half of a surrogate pair, which JSON can spell, is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _row(place: str, row: Any) -> Row:
    text = isinstance(row, dict) and isinstance(row.get("text"), str)
    ids = row.get("input_ids") if isinstance(row, dict) else None
    counted = isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids)
    paired = isinstance(row, dict) and has_completion(row)
    if not text and not counted and not paired:
        raise CalibrationError(
            f"{place} has neither `text` nor a list of `input_ids` nor `prompt` and `completion`",
            hint='one JSON object a line, such as {"text": "..."} or {"prompt": "...", "completion": "..."}',
        )
    said = [row.get("text"), prompt_of(row), completion_of(row)]
    if not all(is_encodable(part) for part in said if isinstance(part, str)):
        raise CalibrationError(f"the text of {place} has half of a surrogate pair, which is no character")
    return row
