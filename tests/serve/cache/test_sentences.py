from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kinfold.errors import CacheError
from kinfold.serve.cache.sentences import (
    ends_sentence,
    longest_sentence,
    sentence_stop_ids,
    stops_before,
    stops_by_ids,
    stops_by_length,
)

ENDS = ".!?\u2026\u3002\uff01\uff1f"
CLOSING = " \"')]}\u00bb\u2019\u201d"
LETTERS = f"abAZ09,;:\n\té-{ENDS}{CLOSING}"


def byte_level(words: list[str]) -> Any:
    """A byte-level tokenizer whose vocabulary is all bytes and `words`."""
    written = [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(word) for word in words]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *("".join(part for part, _ in parts) for parts in written)])
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def word_piece(words: list[str]) -> Any:
    """A WordPiece tokenizer of `words`, each as the start and as the rest of a word."""
    tokens = dict.fromkeys(["[UNK]", "[SEP]", *words, *(f"##{word}" for word in words)])
    core = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", sep_token="[SEP]")


def is_stop(text: str) -> bool:
    """The rule, character by character from the end."""
    if "\n" in text:
        return True
    for character in reversed(text):
        if character in ENDS:
            return True
        if character not in CLOSING:
            return False
    return False


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=20), st.booleans())
def test_a_token_is_a_stop_if_and_only_if_its_text_is(words: list[str], bytes_: bool) -> None:
    made = byte_level(words) if bytes_ else word_piece(["x.", *words])
    wanted = [i for i in range(len(made)) if is_stop(made.decode([i], clean_up_tokenization_spaces=False))]
    assert sentence_stop_ids(made).tolist() == wanted
    assert sentence_stop_ids(made).dtype == torch.int64


def test_stops_of_a_byte_level_vocabulary_by_their_names() -> None:
    made = byte_level(["end.", ' said."', "?)", "\n\n", "a,", "1.5", "...»", "。"])
    assert {"end.", ' said."', "?)", "\n\n", "...»", "。"} <= {made.decode([i]) for i in sentence_stop_ids(made)}
    assert not {"a,", "1.5"} & {made.decode([i]) for i in sentence_stop_ids(made)}


@pytest.mark.parametrize("text", ["", " ", '"', "a", ")", "a. b", "[SEP]", "#"])
def test_no_stop(text: str) -> None:
    assert not ends_sentence(text)


def test_a_tokenizer_without_stops_is_refused() -> None:
    with pytest.raises(CacheError, match="ends a sentence") as caught:
        sentence_stop_ids(word_piece(["word"]))
    assert 'segments="fixed"' in caught.value.hint


def test_padding_that_shares_its_id_with_a_stop_is_none() -> None:
    ids, valid = torch.tensor([[2, 2, 5, 2, 7]]), torch.tensor([[False, True, True, True, True]])
    stop = stops_by_ids(ids, valid, torch.tensor([2, 3]))
    assert stop.tolist() == [[False, True, False, True, False]]
    assert stops_before(stop).tolist() == [[0, 0, 1, 1, 2]]
    assert longest_sentence(stop, valid) == 2


def test_fixed_segments_go_on_over_passes_and_start_at_the_first_real_token() -> None:
    valid = torch.arange(7)[None] >= torch.tensor([[0], [2]])
    before = torch.tensor([0, 0])
    first = stops_by_length(valid, before, 3)
    assert stops_before(first).tolist() == [[0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 1, 1]]
    second = stops_by_length(torch.ones(2, 3, dtype=torch.bool), valid.sum(1), 3)
    assert second.tolist() == [[False, True, False], [True, False, False]]
