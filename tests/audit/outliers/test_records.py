"""Requests as they are logged, and the errors that name a line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from kinfold.audit.outliers.records import Record, read_records, require_labels, token_ids
from kinfold.errors import AuditError
from models import tokenizer


@pytest.fixture
def letters(tmp_path: Path) -> Any:
    tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_texts_and_conversations_are_read(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a b"}]
    rows = [
        {"text": "x\u2028y", "label": 2, "id": 7},
        {"messages": messages, "id": "last"},
        {"text": "", "label": "two"},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    wanted = [Record("7", "x\u2028y", (), 2), Record("last", "", tuple(messages)), Record("5", "")]
    assert read_records(path) == wanted
    assert read_records(str(path)) == wanted
    assert read_records(["a", "b"]) == [Record("1", "a"), Record("2", "b")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 of .* is no JSON"),
        ("[" * 100000, "line 2 of .* is no JSON"),
        ("[1]", "line 2 of .* has neither `text` nor `messages`"),
        ('{"text": 3}', "has neither"),
        ('{"messages": []}', "has neither"),
        ('{"messages": ["a"]}', "has neither"),
    ],
)
def test_lines_that_cannot_be_read(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": "a"}\n' + line)
    with pytest.raises(AuditError, match=words) as caught:
        read_records(path)
    assert "one JSON object a line" in caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"text": "\xe9"}')
    for name in ("latin", "nowhere"):
        with pytest.raises(AuditError, match="cannot read"):
            read_records(tmp_path / name)


def test_tokens_are_the_tokenizers_and_never_none(letters: Any) -> None:
    records = [Record("1", "a b c d"), Record("2", "")]
    assert token_ids(records, letters, 3) == [[1, 2, 3], [0]]  # no token of its own: the first of all
    letters.eos_token = "z"
    assert token_ids(records, letters, 9) == [[1, 2, 3, 4], [26]]


def test_conversations_go_through_the_template(letters: Any) -> None:
    record = Record("q", "", ({"role": "user", "content": "b c"},))
    with pytest.raises(AuditError, match="cannot render the messages of record `q`"):
        token_ids([record], letters, 9)
    letters.chat_template = "a {% for message in messages %}{{ message.content }} {% endfor %}z"
    assert token_ids([record], letters, 9) == [[1, 2, 3, 26]]


def test_a_template_brings_its_own_special_tokens() -> None:
    calls: list[dict[str, Any]] = []

    class Tokenizer(SimpleNamespace):
        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            calls.append(options)
            return {"input_ids": [1]}

        def apply_chat_template(self, messages: Any, tokenize: bool) -> str:
            return "<s>"

    fake = Tokenizer(bos_token_id=1, eos_token_id=None, pad_token_id=None)
    token_ids([Record("1", "", ({"role": "user"},)), Record("2", "a")], fake, 4)
    assert [call["add_special_tokens"] for call in calls] == [False, True]


def test_a_variant_without_a_tokenizer() -> None:
    with pytest.raises(AuditError, match="has no tokenizer"):
        token_ids([Record("1", "a")], None, 4)


def test_labels_are_classes_of_the_model() -> None:
    assert require_labels([Record("1", "a", (), 0), Record("2", "b", (), 2)], 3) == [0, 2]
    for label in (None, 3, -1):
        with pytest.raises(AuditError, match=f"record `odd` of the reference has label {label}"):
            require_labels([Record("1", "a", (), 0), Record("odd", "b", (), label)], 3)
