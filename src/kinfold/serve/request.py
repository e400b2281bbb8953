"""What the HTTP app and the engine say to each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Ids = Sequence[int]
LONGEST_NAME = 200  # of a model; a longer one is told cut off, and is not worth a search for near ones


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: at most this many new ones.
        temperature: 0 is greedy.
        top_p: mass of the tokens drawn from, above 0 to 1.
        seed: of the draws; None takes a fresh one.
        stop: texts that end the answer; they are not part of it.
        logprobs: how many alternatives to tell at each token; None tells nothing, 0 the chosen token's alone.
        ignore_eos: go on past the end-of-text token, for measurements.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True)
class Chunk:
    """A step of an answer.

    Attributes:
        text: what became certain with this step; may be empty while a character or a stop text is incomplete.
        token: its id; None for a chunk that only carries held-back text or the end.
        logprob: of the token, natural log; None where none was asked for.
        top: the likeliest tokens' texts and log-probabilities.
        finish: `stop` (end of text or a stop text) or `length`; None while the answer goes on.
        piece: the token's text by itself, which need not be what the answer grew by; empty where no `logprob` is told.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    finish: str | None = None
    piece: str = ""


@dataclass(frozen=True)
class Served:
    """A model that requests may name: the base, or a variant of it.

    Attributes:
        name: as requests name it.
        parent: the base's name; None for the base.
        digest: hash of what is served; it changes when the variant is replaced.
        created: seconds since 1970.
        abilities: of `generate`, `embed`, `classify`.
        state: `stored`, `loading`, `resident` or `refused`.
        reason: why it was refused; empty otherwise.
    """

    name: str
    parent: str | None
    digest: str
    created: int
    abilities: tuple[str, ...]
    state: str
    reason: str = ""


class Engine(Protocol):
    """One base and its variants; all methods may be called from one event loop at once.

    Every method that takes a model's name raises UnknownModelError for a name that is not served, and ServeError for
    one that is refused or lacks the ability; BusyError when the queue is full.
    """

    base: str
    max_tokens: int  # prompt and answer together

    def models(self) -> list[Served]: ...

    async def tokenize(self, model: str, text: str) -> list[int]:
        """Token ids of a plain prompt."""
        ...

    async def chat(self, model: str, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation by the model's chat template, ready for the answer."""
        ...

    def generate(self, model: str, ids: Ids, sampling: Sampling) -> AsyncIterator[Chunk]:
        """Chunks of one answer; closing the iterator frees its place in the batch."""
        ...

    async def embed(self, model: str, inputs: Sequence[Ids]) -> list[list[float]]:
        """One vector an input: the mean of the last hidden states, of norm 1."""
        ...

    async def classify(self, model: str, inputs: Sequence[Ids]) -> list[dict[str, float]]:
        """Probability of each label, one dict an input."""
        ...

    async def close(self, *, drain: bool = True) -> None:
        """Stop: take no new requests, finish the running ones if `drain`."""
        ...
