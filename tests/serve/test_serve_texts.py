from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from serving import byte_tokenizer

from kinfold.errors import ServeError
from kinfold.serve.texts import Growing, Tokens, tokenizer_files


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(folder, "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}")
    return read(folder)


def read(folder: Path) -> Tokens:
    return Tokens("m", tokenizer_files({path.name: path.read_bytes() for path in folder.iterdir()}), {})


def told(tokens: Tokens, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """What came out at each token of `text`, the rest last."""
    growing, parts = Growing(tokens, stop), []
    for token in tokens.encode(text):
        parts.append(growing.add(token))
        if growing.stopped:
            return parts, True
    return [*parts, growing.rest()], growing.stopped


def test_characters_come_out_whole(tokens: Tokens) -> None:
    text = "né 日本 🙂 the end"
    parts, stopped = told(tokens, text)
    assert "".join(parts) == text
    assert not stopped
    assert all("\ufffd" not in part for part in parts)
    assert "" in parts  # a character of several tokens


def test_bytes_that_never_become_a_character_come_at_the_end(tokens: Tokens) -> None:
    growing = Growing(tokens)
    half = tokens.encode("日")[:2]
    assert [growing.add(token) for token in half] == ["", ""]
    assert growing.rest() == "\ufffd"


@pytest.mark.parametrize("stop", ["end", "nd of", "d", "the e", "f it"])
def test_a_stop_text_ends_the_answer_wherever_token_borders_are(tokens: Tokens, stop: str) -> None:
    text = "and the end of it all"
    parts, stopped = told(tokens, text, (stop, "never"))
    assert stopped
    assert "".join(parts) == text[: text.index(stop)]


def test_the_first_of_several_stop_texts_counts(tokens: Tokens) -> None:
    assert "".join(told(tokens, "one two three", ("three", "two"))[0]) == "one "


def test_what_may_begin_a_stop_text_is_held_back_and_comes_later(tokens: Tokens) -> None:
    parts, stopped = told(tokens, "ababac", ("abac!",))
    assert not stopped
    assert "".join(parts) == "ababac"
    assert parts[0] == parts[1] == ""
    assert parts[-1] == "abac"
    empty, stopped = told(tokens, "abc", ("",))
    assert "".join(empty) == "abc"
    assert not stopped


def test_special_tokens_are_no_text(tokens: Tokens) -> None:
    ids = [*tokens.encode("a"), 299]
    assert tokens.decode(ids) == "a"
    assert tokens.piece(299) == "<end>"


def test_chat_templates(tokens: Tokens, tmp_path: Path) -> None:
    assert tokens.decode(tokens.chat([{"role": "user", "content": "hi"}])) == "user:hi|"
    byte_tokenizer(tmp_path)
    with pytest.raises(ServeError, match="no chat template"):
        read(tmp_path).chat([])
    byte_tokenizer(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ServeError, match="roles must alternate"):
        read(tmp_path).chat([{"role": "user", "content": "hi"}])


def test_a_long_prompt_does_not_hold_up_the_text_of_others(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    tokens = read(tmp_path)
    tokens.warm()
    ids, reads, told = tokens.encode("the and"), threading.Event(), threading.Event()

    def endless(text: str) -> Any:
        reads.set()
        told.wait(10)
        return {"input_ids": []}

    tokens.__dict__["tokenizer"] = endless
    reader = threading.Thread(target=tokens.encode, args=("long",))
    reader.start()
    assert reads.wait(10)
    heard: list[str] = []
    writer = threading.Thread(target=lambda: heard.extend([tokens.decode(ids), tokens.piece(ids[0])]))
    writer.start()
    writer.join(5)
    assert heard == ["the and", "the"]
    told.set()
    reader.join(10)


def test_without_a_tokenizer() -> None:
    none = Tokens("m", {}, {})
    assert not none.there
    assert none.decode([1, 2]) == none.piece(1) == ""
    with pytest.raises(ServeError, match="has no tokenizer"):
        none.encode("a")


def test_a_damaged_tokenizer() -> None:
    with pytest.raises(ServeError, match="cannot be loaded"):
        Tokens("m", {"tokenizer.json": b"{}"}, {}).encode("a")
