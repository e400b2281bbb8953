"""Follow-up questions: codes hidden in a text, asked for one after the other.

The first answer comes from the full attention of the prompt, whatever the cache discards after it. So a cache is judged
by the questions that come later, fed token by token.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from kinfold.errors import CacheError
from kinfold.serve.cache.spec import CacheSpec, attached
from kinfold.tasks import Row, Task

NAMES = [
    "Alice", "Bruno", "Carla", "David", "Elena", "Frank", "Greta", "Henry", "Irene", "James", "Karen", "Louis", "Maria",
    "Nadia", "Oscar", "Paula", "Quinn", "Roger", "Sarah", "Thomas", "Ursula", "Victor", "Wendy", "Xavier", "Yvonne",
    "Zachary", "Adam", "Bella", "Colin", "Diana", "Edgar", "Fiona", "George", "Hannah", "Isaac", "Julia", "Kevin",
    "Laura", "Martin", "Nora",
]  # fmt: skip
ROOM = 64  # tokens that a hidden code, its question and its answer may take
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

    def read(self, text: str) -> None:
        """Take a prompt in one pass."""
        self._pass(self.tokenizer(text, return_tensors="pt", verbose=False)["input_ids"])

    def write(self, text: str) -> None:
        """Take more, token by token."""
        for token in self._ids(text):
            self._step(token)

    def answer(self, code: str) -> Answer:
        """Score the code as the next tokens, each given those before it, and take it token by token.

        Raises:
            CacheError: the tokenizer knows no digits.
        """
        right, total, ids = True, 0.0, self._ids(f" {code}")
        digits = [token for token in ids if any(c.isdigit() for c in self.tokenizer.decode([token]))]
        if not digits:
            raise CacheError(f"the tokenizer has no digits to write the code {code} with")
        for token in ids:
            if token in digits:
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


@dataclass(frozen=True)
class Recall:
    """Answers of one cache to questions after codes hidden in texts.

    Attributes:
        first: share of the questions in the prompt that were answered, all digits by arg-max.
        later: the same of those that followed; None if there were none.
        later_log_probability: of the digits of a later code, in nats, mean; None likewise.
    """

    first: float
    later: float | None
    later_log_probability: float | None


def recall(task: Task, rows: Sequence[Row], spec: CacheSpec, questions: int, *, most: int, seed: int = 0) -> Recall:
    """Hide `questions` codes in each text and ask for all: one in the prompt, the others after it, token by token.

    Args:
        task: a causal language model with its tokenizer.
        rows: texts; cut so that they have at most `most` tokens, questions and answers among them.
        spec: of the cache.
        questions: 1 to 40.
        most: tokens.
        seed: of the codes, their places and the order of the questions; the same for every cache.

    Raises:
        CacheError: no tokenizer, a number of questions that is not allowed, or a text too short to hide them in.
    """
    if task.tokenizer is None:
        raise CacheError("questions are asked in words, and the model directory has no tokenizer")
    rng, first, later = random.Random(seed), [], []
    for row in rows:
        text = task.tokenizer.decode(task.token_ids(row, max(1, most - ROOM * questions))[0], skip_special_tokens=True)
        hay = hide(text, questions, rng)
        cache = spec.make(task.model, task.tokenizer)
        with attached(cache, task.model):
            talk = Conversation(task.model, task.tokenizer, cache)
            answers = _ask(talk, hay, rng.sample(range(questions), questions))
        first.append(answers[0].right)
        later += answers[1:]
    return Recall(
        sum(first) / len(first),
        sum(answer.right for answer in later) / len(later) if later else None,
        sum(answer.log_probability for answer in later) / len(later) if later else None,
    )


def _ask(talk: Conversation, hay: Haystack, order: list[int]) -> list[Answer]:
    """Answers to the questions after the needles `order`."""
    found: list[Answer] = []
    for number in order:
        name, code = hay.needles[number]
        if found:
            talk.write("." + question(name))
        else:
            talk.read(hay.text + question(name))
        found.append(talk.answer(code))
    return found
