"""Continuous batching: at every step rows may join and leave, whatever their variants.

Iteration-level scheduling: Yu et al. (2022), Orca, OSDI. Prompts are read in pieces of a bounded number of tokens
between the steps of the running rows: Agrawal et al. (2024), Sarathi-Serve, arXiv 2403.02310.
"""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from kinfold.serve import sampling as drawing
from kinfold.serve.kv import KeyValues, new_cache
from kinfold.serve.live import LiveModel
from kinfold.serve.request import Chunk, Ids, Sampling
from kinfold.serve.texts import Growing
from kinfold.serve.variant import Variant

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

STEP_TOKENS = 512  # of prompts read between two steps of the running rows, padding included


@dataclass(eq=False)
class Request:
    """One answer to be made.

    Attributes:
        variant: that answers.
        ids: the prompt's tokens.
        sampling: how tokens are drawn.
        deliver: takes each chunk, and at the end one with `finish` or an exception; called in the worker's thread.
        room: new tokens at most.
        cancelled: set by whoever does not want the rest.
    """

    variant: Variant
    ids: Ids
    sampling: Sampling
    deliver: Callable[[Chunk | Exception], None]
    room: int
    cancelled: bool = False
    made: int = 0
    last: int = 0
    text: Growing = field(init=False)
    source: torch.Generator | None = field(init=False)

    def __post_init__(self) -> None:
        self.text = Growing(self.variant.tokens, self.sampling.stop)
        self.source = drawing.generator(self.sampling)

    def take(self, logits: torch.Tensor) -> bool:
        """Draw the next token from `logits` (vocabulary,) and deliver it; True when the answer is complete."""
        token = drawing.draw(logits, self.sampling, self.source)
        self.last, self.made = token, self.made + 1
        if token in self.variant.eos and not self.sampling.ignore_eos:
            self.deliver(Chunk(self.text.rest(), finish="stop"))
            return True
        text = self.text.add(token)
        finish = "stop" if self.text.stopped else None
        if finish is None and self.made >= self.room:
            text += self.text.rest()
            finish = "stop" if self.text.stopped else "length"
        own, top, piece = self._told(logits, token)
        self.deliver(Chunk(text, token, own, top, finish, piece))
        return finish is not None

    def _told(self, logits: torch.Tensor, token: int) -> tuple[float | None, tuple[tuple[str, float], ...], str]:
        """Log-probability of the token, the likeliest ones with theirs, and the token's text by itself."""
        if self.sampling.logprobs is None:
            return None, (), ""
        own, best = drawing.logprobs(logits, token, self.sampling.logprobs)
        tokens = self.variant.tokens
        return own, tuple((tokens.piece(other), value) for other, value in best), tokens.piece(token)


class Prefill:
    """Prompts of like length that are being read, padded on the right."""

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        self.requests = list(requests)
        self.lengths = [len(request.ids) for request in requests]
        self.width, self.done = max(self.lengths), 0
        rows = [[*request.ids, *[0] * (self.width - len(request.ids))] for request in requests]
        self.ids = torch.tensor(rows, device=device)
        lengths = torch.tensor(self.lengths, device=device)
        self.mask = (torch.arange(self.width, device=device) < lengths[:, None]).long()
        self.cache = new_cache()
        self.logits: dict[int, torch.Tensor] = {}  # after the last token of each row


class Batcher:
    """The running rows of a causal LM.

    Args:
        live: the base.
        max_batch: rows at once.
        counts: `prompt_tokens` and `generated_tokens` are counted up here.
    """

    def __init__(self, live: LiveModel, max_batch: int, counts: Counter[str]) -> None:
        self._live, self._max_batch, self._counts = live, max_batch, counts
        self._waiting: deque[Request] = deque()
        self._prefill: Prefill | None = None
        self._rows: list[Request] = []
        self._kv = KeyValues()

    @property
    def running(self) -> int:
        prefill = self._prefill  # read once: the worker may be done with it between two looks
        return len(self._rows) + (len(prefill.requests) if prefill is not None else 0)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        self._waiting.append(request)

    def step(self) -> bool:
        """Read a piece of a prompt, then give every running row a token; False where there was nothing to do."""
        self._drop_cancelled()
        if self._prefill is None and self._waiting and len(self._rows) < self._max_batch:
            self._prepare(self._admit())
        busy = self._prefill is not None or bool(self._rows)
        if self._prefill is not None:
            self._read(self._prefill)
        if self._rows:
            self._decode()
        return busy

    def _prepare(self, group: list[Request]) -> None:
        try:
            self._prefill = Prefill(group, self._live.device)
        except Exception as error:  # such as memory: it is theirs alone
            for request in group:
                request.deliver(error)

    def fail(self, error: Exception) -> None:
        """Tell everyone that is running that it will not go on, and start afresh."""
        for request in [*self._rows, *(self._prefill.requests if self._prefill is not None else ())]:
            request.deliver(error)
        self._rows, self._prefill, self._kv = [], None, KeyValues()

    def _drop_cancelled(self) -> None:
        self._waiting = deque(request for request in self._waiting if not request.cancelled)
        self._keep([row for row, request in enumerate(self._rows) if not request.cancelled])
        if self._prefill is not None and all(request.cancelled for request in self._prefill.requests):
            self._prefill = None

    def _keep(self, rows: list[int]) -> None:
        if len(rows) < len(self._rows):
            self._kv.select(rows)
            self._rows = [self._rows[row] for row in rows]

    def _admit(self) -> list[Request]:
        """The first that waits, and as many behind it as are of like length and fit a step."""
        group = [self._waiting.popleft()]
        while self._waiting and len(self._rows) + len(group) < self._max_batch:
            lengths = [len(request.ids) for request in (*group, self._waiting[0])]
            if max(lengths) > 2 * min(lengths) or max(lengths) * len(lengths) > STEP_TOKENS:
                break
            group.append(self._waiting.popleft())
        return group

    def _read(self, prefill: Prefill) -> None:
        start = prefill.done
        stop = min(prefill.width, start + max(1, STEP_TOKENS // len(prefill.requests)))
        ends = {row: length - 1 - start for row, length in enumerate(prefill.lengths) if start < length <= stop}
        columns = sorted(set(ends.values()))
        positions = torch.arange(start, stop, device=self._live.device).expand(len(prefill.requests), -1)
        logits = self._forward(
            prefill.requests, prefill.ids[:, start:stop], prefill.mask[:, :stop], positions, prefill.cache, columns
        )
        for row, column in ends.items():
            prefill.logits[row] = logits[row, columns.index(column)]
        prefill.done = stop
        if stop == prefill.width:
            self._begin(prefill)
            self._prefill = None  # not before: whatever fails in between must be told to them

    def _begin(self, prefill: Prefill) -> None:
        """First tokens of the answers; rows that go on join the others."""
        self._counts["prompt_tokens"] += sum(prefill.lengths)
        rows = [
            row
            for row, request in enumerate(prefill.requests)
            if not request.cancelled and not self._take(request, prefill.logits[row])
        ]
        if rows:
            self._kv.join(prefill.cache, {row: prefill.lengths[row] for row in rows})
            self._rows += [prefill.requests[row] for row in rows]

    def _decode(self) -> None:
        device = self._live.device
        ids = torch.tensor([[request.last] for request in self._rows], device=device)
        mask, positions = self._kv.mask(device), self._kv.positions(device)
        logits = self._forward(self._rows, ids, mask, positions, self._kv.cache, [0])[:, 0]
        self._kv.grew()
        self._keep([row for row, request in enumerate(self._rows) if not self._take(request, logits[row])])

    def _take(self, request: Request, logits: torch.Tensor) -> bool:
        self._counts["generated_tokens"] += 1
        try:
            return request.take(logits)
        except Exception as error:  # what one row cannot draw or decode does not end the others
            request.deliver(error)
            return True

    def _forward(
        self,
        requests: Sequence[Request],
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Cache,
        columns: list[int],
    ) -> torch.Tensor:
        """Logits (rows, columns, vocabulary), float32, of the given columns of `ids` (rows, tokens)."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if "position_ids" in self._accepted:
            given["position_ids"] = positions
        kept = torch.tensor(columns, device=ids.device, dtype=torch.int64)
        if "logits_to_keep" in self._accepted:
            given["logits_to_keep"] = kept
        with self._live.mixer.rows([request.variant for request in requests], ids.shape[1]):
            logits = self._live.core(**given).logits
        return (logits if "logits_to_keep" in self._accepted else logits[:, kept]).float()

    @cached_property
    def _accepted(self) -> frozenset[str]:
        return frozenset(inspect.signature(self._live.core.forward).parameters)
