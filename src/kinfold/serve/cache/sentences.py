"""Where sentences end: the stop tokens of any tokenizer, and the sentence number of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinfold.errors import CacheError

STOPS = ".!?\u2026\u3002\uff01\uff1f"  # with the CJK full stop, exclamation and question mark
CLOSERS = " \"')]}\u00bb\u2019\u201d"  # what may follow a stop and still belong to its sentence
_BATCH = 8192


def ends_sentence(text: str) -> bool:
    """A text ends a sentence if it holds a newline, or a stop is its last character but for closers and spaces.

    Abbreviations and decimals end sentences too: the segments become smaller, and nothing is lost.
    """
    bare = text.rstrip(CLOSERS)
    return "\n" in text or (bare != "" and bare[-1] in STOPS)


def sentence_stop_ids(tokenizer: Any) -> Tensor:
    """Ids of every token that ends a sentence, int64, sorted; each token is judged by its own decoded text.

    Raises:
        CacheError: the tokenizer has none.
    """
    size, found = len(tokenizer), []
    for start in range(0, size, _BATCH):
        ids = range(start, min(start + _BATCH, size))
        texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
        found += [i for i, text in zip(ids, texts, strict=True) if ends_sentence(text)]
    if not found:
        raise CacheError(
            f"no token of the {type(tokenizer).__name__} ends a sentence",
            hint='group by length instead: segments="fixed"',
        )
    return torch.tensor(found)


def stops_by_ids(ids: Tensor, valid: Tensor, stop_ids: Tensor) -> Tensor:
    """(batch, n) bool: real tokens that end a sentence. Padding may share its id with a stop, hence `valid`."""
    return torch.isin(ids, stop_ids.to(ids.device)) & valid


def stops_by_length(valid: Tensor, before: Tensor, length: int) -> Tensor:
    """(batch, n) bool: every `length`-th real token of a row, of which there were `before` (batch,) already."""
    ordinal = before[:, None] + valid.cumsum(1)
    return valid & (ordinal % length == 0)


def stops_before(stop: Tensor) -> Tensor:
    """(batch, n) int64: sentences ended before each token. A stop itself belongs to the sentence it ends."""
    counted = stop.long()
    return counted.cumsum(1) - counted


def longest_sentence(stop: Tensor, valid: Tensor) -> int:
    """Real tokens of the longest sentence in any row, ended or not."""
    number = stops_before(stop)
    counts = number.new_zeros(number.shape[0], int(number.max()) + 1)
    return int(counts.scatter_add_(1, number, valid.long()).max())
