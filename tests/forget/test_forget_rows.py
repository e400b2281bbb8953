"""Rows: what is read, what overlaps, and every way in which a row does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import given, reader

from kinfold.errors import ForgetRowsError
from kinfold.forget.rows import check_apart, read


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_rows_of_a_file_know_their_line(tmp_path: Path) -> None:
    rows = read(written(tmp_path, {"text": "a"}, "", {"text": "b", "id": "mine"}), "forget")
    assert [(one.row["text"], one.id) for one in rows] == [("a", "1"), ("b", "mine")]
    assert rows[1].place == f"line 3 of `{tmp_path / 'rows.jsonl'}`"


@pytest.mark.parametrize("what", ["forget", "retain"])
def test_no_rows_are_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(ForgetRowsError, match=f"no {what} rows"):
        read([], what)
    with pytest.raises(ForgetRowsError, match=f"no {what} rows"):
        read(written(tmp_path, ""), what)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ForgetRowsError, match="cannot read the retain rows"):
        read(tmp_path / "nothing.jsonl", "retain")
    with pytest.raises(ForgetRowsError, match=r"line 2 of .* is no JSON"):
        read(written(tmp_path, {"text": "a"}, "{"), "forget")
    with pytest.raises(ForgetRowsError, match=r"line 1 of .* is no JSON object"):
        read(written(tmp_path, "[1]"), "forget")


def test_overlap_is_counted_and_named_whatever_case_and_space() -> None:
    forget = given(*({"text": f"Row {n} of  many", "id": f"r{n}"} for n in range(8)))
    retain = given(*({"text": f"row {n} OF many"} for n in range(1, 8)), {"text": "other"})
    with pytest.raises(ForgetRowsError, match=r"7 rows to forget are among the retain rows too: r1, r2, r3, r4, r5, "):
        check_apart(forget, retain, None)
    many = given(*({"text": f"unseen {n}"} for n in range(20)), {"text": "ROW 0 of many"})
    with pytest.raises(ForgetRowsError, match=r"1 rows to forget are among the unseen rows too: r0$"):
        check_apart(forget, given({"text": "other"}), many)


def test_another_label_or_answer_is_another_row() -> None:
    forget = given({"text": "a b c", "label": 1}, {"prompt": "a b", "completion": "c d"})
    retain = given({"text": "a b c", "label": 0}, {"question": "a b", "answer": "c e"})
    assert "1 rows to forget are nearly repeated" in check_apart(forget, retain, None)[0]  # of the same words
    with pytest.raises(ForgetRowsError, match="1 rows"):
        check_apart(forget, given({"question": "A b", "answer": "C d"}), None)


def test_rows_of_tokens_overlap_too() -> None:
    with pytest.raises(ForgetRowsError, match="1 rows"):
        check_apart(given({"input_ids": [1, 2]}), given({"input_ids": [1, 2], "id": "x"}), None)
    assert check_apart(given({"input_ids": [1, 2]}), given({"input_ids": [2, 1]}), None) == []


def test_near_repeats_are_told() -> None:
    words = [f"w{n}" for n in range(60)]
    near, far = [*words], [*words]
    near[-1] = far[30] = "changed"  # of 48 runs of 13 words, the last one lacks 1 and the middle one 13
    forget = given({"text": " ".join(words), "id": "long"}, {"text": "a few words"})
    assert check_apart(forget, given({"text": " ".join(far)}), None) == []
    (warning,) = check_apart(forget, given({"text": " ".join(near)}), None)
    assert warning.endswith("teach them again: long")
    assert check_apart(given({"text": ""}), given({"text": "a"}), None) == []


def test_too_few_unseen_rows() -> None:
    some = given(*({"text": f"unseen {n}"} for n in range(19)))
    with pytest.raises(ForgetRowsError, match=r"19 unseen rows .* from 20 on") as caught:
        check_apart(given({"text": "a"}), given({"text": "b"}), some)
    assert "--target" in caught.value.hint


def test_unseen_rows_are_apart_from_those_to_keep() -> None:
    many = given(*({"text": f"unseen {n}", "id": f"u{n}"} for n in range(20)))
    with pytest.raises(ForgetRowsError, match=r"2 rows to keep are among the unseen rows too: u3, u4$"):
        check_apart(given({"text": "a"}), [*given({"text": "b"}), *many[3:5]], many)


@pytest.mark.parametrize("ids", [5, None, "12"])
def test_ids_that_are_no_list(ids: Any) -> None:
    forget, retain = given({"input_ids": ids}), given({"input_ids": [7]})
    assert check_apart(forget, retain, None) == []
    with pytest.raises(ForgetRowsError, match="lacks what a causal-lm reads"):
        reader(None).tokens(forget)


def test_labels_of_arrays(tokenizer: Any) -> None:
    rows = given({"text": "a", "label": np.int64(2)})
    assert reader(tokenizer, "pooled-head").tokens(rows)[0].label == 2
    with pytest.raises(ForgetRowsError, match="1 rows to forget"):
        check_apart(rows, given({"text": "a", "label": 2}), None)
    strange = given({"text": "a", "label": np.float64(2)}, {"text": "b", "label": object()})
    check_apart(strange, given({"text": "c"}), None)
    with pytest.raises(ForgetRowsError, match="the variant knows 0 to 2"):
        reader(tokenizer, "pooled-head").tokens(strange)


def test_half_characters_and_nesting_without_end(tokenizer: Any, tmp_path: Path) -> None:
    rows = read(written(tmp_path, '{"prompt": "a \\ud800", "completion": "b", "id": "\\ud800"}'), "forget")
    assert rows[0].id == "?"
    check_apart(rows, given({"text": "a"}), None)
    with pytest.raises(ForgetRowsError, match=r"line 1 of .* half of a surrogate pair"):
        reader(tokenizer).tokens(rows)
    with pytest.raises(ForgetRowsError, match=r"line 1 of .* is no JSON"):
        read(written(tmp_path, "[" * 100_000), "forget")


@pytest.mark.parametrize("what", [None, 5])
def test_what_is_neither_file_nor_list(what: Any) -> None:
    with pytest.raises(ForgetRowsError, match="the retain rows are"):
        read(what, "retain")
