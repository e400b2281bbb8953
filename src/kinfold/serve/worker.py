"""The one thread that runs the model."""

from __future__ import annotations

import threading
from collections import Counter, deque

import torch

from kinfold.serve.alone import OneByOne, attention
from kinfold.serve.cache.spec import CacheSpec
from kinfold.serve.encode import Encoder, Input
from kinfold.serve.generate import Batcher, Request
from kinfold.serve.live import LiveModel


class Worker:
    """Takes requests from any thread and works on them, step by step, in its own.

    Args:
        live: the base.
        max_batch: rows at once.
        cache: of keys and values, one for every row; None for one of all rows, uncompressed.
    """

    def __init__(self, live: LiveModel, max_batch: int, cache: CacheSpec | None = None) -> None:
        self.counts: Counter[str] = Counter()
        alone = cache and OneByOne(live, max_batch, self.counts, cache)
        self._batcher = alone or Batcher(live, max_batch, self.counts)
        self._attention = attention(live, cache)
        self._encoder = Encoder(live, max_batch, self.counts)
        self._inbox: deque[Request | Input] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="kinfold-worker", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return self._batcher.running + self._encoder.running

    @property
    def waiting(self) -> int:
        return len(self._inbox) + self._batcher.waiting + self._encoder.waiting

    def submit(self, request: Request | Input) -> None:
        """Queue a request; its `deliver` will be called in the worker's thread."""
        with self._wake:
            self._inbox.append(request)
            self._wake.notify()

    def stop(self) -> None:
        """Stop after the step that is running, and wait for its end."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        busy = False
        with torch.inference_mode(), self._attention:
            while self._sort(busy):
                busy = False
                for part in (self._batcher, self._encoder):
                    try:
                        busy = part.step() or busy
                    except Exception as error:  # whatever torch raises ends these requests, not the server
                        part.fail(error)
                        busy = True

    def _sort(self, busy: bool) -> bool:
        """Hand on what came in, waiting for it where there is nothing else to do; False to stop."""
        with self._wake:
            if not busy:
                self._wake.wait_for(lambda: self._stopped or bool(self._inbox))
            while self._inbox:
                request = self._inbox.popleft()
                if isinstance(request, Request):
                    self._batcher.submit(request)
                else:
                    self._encoder.submit(request)
            return not self._stopped
