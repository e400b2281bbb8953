"""Follow-up questions: codes hidden in a text, asked for one after the other.

The first answer comes from the full attention of the prompt, whatever the cache discards after it. So a cache is judged
by the questions that come later, fed token by token.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from kinfold.errors import CacheError

NAMES = [
    "Alice", "Bruno", "Carla", "David", "Elena", "Frank", "Greta", "Henry", "Irene", "James", "Karen", "Louis", "Maria",
    "Nadia", "Oscar", "Paula", "Quinn", "Roger", "Sarah", "Thomas", "Ursula", "Victor", "Wendy", "Xavier", "Yvonne",
    "Zachary", "Adam", "Bella", "Colin", "Diana", "Edgar", "Fiona", "George", "Hannah", "Isaac", "Julia", "Kevin",
    "Laura", "Martin", "Nora",
]  # fmt: skip
_BORDER = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class Haystack:
    """A text with needles; `needles` are (name, code of four digits) in the order they occur."""

    text: str
    needles: tuple[tuple[str, str], ...]


class Answer(NamedTuple):
    """Whether every digit of a code was the likeliest token, and the summed log-probability of the digits in nats."""

    right: bool
    log_probability: float


def needle(name: str, code: str) -> str:
    return f"The secret code of {name} is {code}."


def question(name: str) -> str:
    """What is asked after the text, and before ` DDDD`."""
    return f"\n\nThe secret code of {name} is"


def draw(count: int, rng: random.Random) -> tuple[tuple[str, str], ...]:
    """`count` different names, each with a code."""
    return tuple((name, f"{rng.randrange(10_000):04}") for name in rng.sample(NAMES, count))


def hide(text: str, count: int, rng: random.Random) -> Haystack:
    """The text with `count` needles at random borders of its sentences, or between words where it has too few.

    Raises:
        CacheError: `count` is not from 1 to 40, or the text has fewer words.
    """
    if not 1 <= count <= len(NAMES):
        raise CacheError(f"{count} questions were asked for; from 1 to {len(NAMES)} can be")
    borders = [match.end() for match in _BORDER.finditer(text)]
    if len(borders) < count:
        borders = [match.end() for match in re.finditer(r"\s+", text)]
    if len(borders) < count:
        raise CacheError(f"a text of {len(text)} characters has no room for {count} hidden codes")
    needles, places = draw(count, rng), sorted(rng.sample(borders, count))
    parts = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    hidden = [f"{needle(*one)} {part}" for one, part in zip(needles, parts[1:], strict=True)]
    return Haystack("".join([parts[0], *hidden]), needles)


class Conversation:
    """One model with one cache, told and asked things; use it inside the cache's `attached`.

    Attributes:
        steps: passes of one token so far.
    """

    def __init__(self, model: Any, tokenizer: Any, cache: Any) -> None:
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.steps = 0
        self._logits = torch.empty(0)

    def read(self, text: str, most: int | None = None) -> int:
        """Take a prompt in one pass; returns its tokens.

        Raises:
            CacheError: it has more than `most` tokens.
        """
        ids = self.tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
        if most is not None and ids.shape[1] > most:
            raise CacheError(f"a text of {ids.shape[1]} tokens, its hidden codes among them, is longer than {most}")
        self._pass(ids)
        return ids.shape[1]

    def write(self, text: str) -> None:
        """Take more, token by token."""
        for token in self._ids(text):
            self._step(token)

    def answer(self, code: str) -> Answer:
        """Score the code as the next tokens, each given those before it, and take it token by token."""
        right, total = True, 0.0
        for token in self._ids(f" {code}"):
            if any(character.isdigit() for character in self.tokenizer.decode([token])):
                logs = self._logits.log_softmax(-1)
                right = right and int(logs.argmax()) == token
                total += float(logs[token])
            self._step(token)
        return Answer(right, total)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _step(self, token: int) -> None:
        self.steps += 1
        self._pass(torch.tensor([[token]]))

    @torch.no_grad()
    def _pass(self, ids: torch.Tensor) -> None:
        few = {"logits_to_keep": 1} if self.model._supports_logits_to_keep() else {}
        out = self.model(ids.to(self.model.device), past_key_values=self.cache, use_cache=True, **few)
        self._logits = out.logits[0, -1].float().cpu()


def ask_all(talk: Conversation, hay: Haystack, order: list[int], most: int | None = None) -> list[Answer]:
    """Answers to the questions after the needles `order`: the first is part of the prompt, the others follow it."""
    found = []
    for number in order:
        name, code = hay.needles[number]
        if found:
            talk.write("." + question(name))
        else:
            talk.read(hay.text + question(name), most)
        found.append(talk.answer(code))
    return found
