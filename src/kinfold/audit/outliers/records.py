"""Requests as they are logged: JSON lines with a text or a conversation, and the token ids a variant makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfold.errors import AuditError
from kinfold.pack.member import PathLike

_HINT = 'one JSON object a line, such as {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class Record:
    """One request.

    Attributes:
        id: its own, or the number of its line.
        text: what was sent, where it is no conversation.
        messages: the conversation, to be rendered by the variant's chat template.
        label: its class, for the reference of the paper's preset.
    """

    id: str
    text: str
    messages: tuple[dict[str, Any], ...] = ()
    label: int | None = None


def read_records(given: PathLike | Sequence[str]) -> list[Record]:
    """Records of a JSONL file, or of texts.

    Raises:
        AuditError: the file or a line of it cannot be read; the line's number is named.
    """
    if not isinstance(given, (str, Path)):
        return [Record(str(number), text) for number, text in enumerate(given, 1)]
    path = Path(given)
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines would also cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as cause:
        raise AuditError(f"cannot read `{path}`: {cause}", hint=f"ls {path.parent}") from cause
    return [_record(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _record(path: Path, number: int, line: str) -> Record:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise AuditError(f"line {number} of `{path}` is no JSON: {cause}", hint=_HINT) from cause
    row = row if isinstance(row, dict) else {}
    text, messages, label = row.get("text"), row.get("messages"), row.get("label")
    own, known = str(row.get("id", number)), label if type(label) is int else None
    if isinstance(text, str):
        return Record(own, text, (), known)
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return Record(own, "", tuple(messages), known)
    raise AuditError(f"line {number} of `{path}` has neither `text` nor `messages`", hint=_HINT)


def token_ids(records: Sequence[Record], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Token ids of each record, at most `max_length`, never none: an empty text is one token of the tokenizer's own.

    Raises:
        AuditError: the variant has no tokenizer, or conversations and no chat template.
    """
    if tokenizer is None:
        raise AuditError(
            "the variant has no tokenizer", hint="add the tokenizer's files to its directory or its base's"
        )
    filler = next(
        (i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None), 0
    )
    found = []
    for record in records:
        rendered = bool(record.messages)
        text = _rendered(record, tokenizer) if rendered else record.text
        ids = tokenizer(text, truncation=True, max_length=max_length, add_special_tokens=not rendered)["input_ids"]
        found.append(ids or [filler])
    return found


def _rendered(record: Record, tokenizer: Any) -> str:
    try:
        return tokenizer.apply_chat_template(list(record.messages), tokenize=False)
    except Exception as cause:  # a template is a program of its own, and may raise anything
        raise AuditError(
            f"the variant's chat template cannot render the messages of record `{record.id}`: {cause}",
            hint="log the rendered text as `text`",
        ) from cause


def require_labels(records: Sequence[Record], classes: int) -> list[int]:
    """The class of every record of the reference.

    Raises:
        AuditError: one has none, or one that the model does not have.
    """
    for record in records:
        if record.label is None or not 0 <= record.label < classes:
            raise AuditError(
                f"record `{record.id}` of the reference has label {record.label!r}; whole numbers below {classes} are "
                "needed for the mean of true-label gradients and for head finetune",
                hint="add labels, or leave out --preset paper",
            )
    return [record.label for record in records if record.label is not None]
