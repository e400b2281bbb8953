"""Embeddings and classification: what is queued is run together, like lengths with like."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kinfold.serve.live import LiveModel
from kinfold.serve.request import Ids
from kinfold.serve.variant import Variant

STEP_TOKENS = 2048  # in one pass, padding included

Answer = list[float] | dict[str, float]


@dataclass(eq=False)
class Input:
    """One text to be encoded.

    Attributes:
        variant: that encodes it.
        ids: its tokens.
        want: `embed` or `classify`.
        deliver: takes the answer, or an exception; called in the worker's thread.
        cancelled: set by whoever does not want it any more.
    """

    variant: Variant
    ids: Ids
    want: Literal["embed", "classify"]
    deliver: Callable[[Answer | Exception], None]
    cancelled: bool = False


class Encoder:
    """Inputs that wait for a pass through the base.

    Args:
        live: the base.
        max_batch: rows at once.
        counts: `encoded_tokens` is counted up here.
    """

    def __init__(self, live: LiveModel, max_batch: int, counts: Counter[str]) -> None:
        self._live, self._max_batch, self._counts = live, max_batch, counts
        self._waiting: deque[Input] = deque()
        self._batch: list[Input] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._batch)

    def submit(self, given: Input) -> None:
        self._waiting.append(given)

    def step(self) -> bool:
        """Encode the input that waits longest and those most like it in length; False where none waits."""
        waiting = [given for given in self._waiting if not given.cancelled]
        self._waiting = deque(waiting)
        if not waiting:
            return False
        first = len(waiting[0].ids)
        alike = sorted(waiting[1:], key=lambda given: abs(len(given.ids) - first))
        self._batch = [waiting[0]]
        for given in alike[: self._max_batch - 1]:
            longest = max(len(other.ids) for other in (*self._batch, given))
            if longest * (len(self._batch) + 1) > STEP_TOKENS:
                break
            self._batch.append(given)
        chosen = set(map(id, self._batch))
        self._waiting = deque(given for given in waiting if id(given) not in chosen)
        for given, answer in zip(self._batch, self._encode(self._batch), strict=True):
            given.deliver(answer)
        self._counts["encoded_tokens"] += sum(len(given.ids) for given in self._batch)
        self._batch = []
        return True

    def fail(self, error: Exception) -> None:
        """Tell everyone in the pass that failed."""
        for given in self._batch:
            given.deliver(error)
        self._batch = []

    def _encode(self, batch: Sequence[Input]) -> list[Answer]:
        width, device = max(len(given.ids) for given in batch), self._live.device
        pad = self._live.config.get_text_config().pad_token_id or 0
        ids = torch.tensor([[*given.ids, *[pad] * (width - len(given.ids))] for given in batch], device=device)
        lengths = torch.tensor([len(given.ids) for given in batch], device=device)
        mask = (torch.arange(width, device=device) < lengths[:, None]).long()
        with self._live.mixer.rows([given.variant for given in batch], width):
            output = self._live.inner(input_ids=ids, attention_mask=mask)
        pooled = getattr(output, "pooler_output", None)
        answers: list[Answer] = []
        for row, given in enumerate(batch):
            hidden = output.last_hidden_state[row : row + 1, : len(given.ids)]
            if given.want == "embed":
                answers.append(torch.nn.functional.normalize(hidden[0].float().mean(0), dim=0).tolist())
            else:
                own = None if pooled is None else pooled[row : row + 1]
                answers.append(_classes(given, hidden, own, ids[row : row + 1, : len(given.ids)]))
        return answers


def _classes(given: Input, hidden: torch.Tensor, pooled: torch.Tensor | None, ids: torch.Tensor) -> dict[str, float]:
    head = given.variant.head
    assert head is not None  # the engine has asked for the ability
    chances = head.logits(hidden, pooled, ids).float().softmax(-1).tolist()
    return dict(zip(head.labels, chances, strict=True))
