"""Calibration of finished payloads: codes are chosen again so that the model's answers stay the variant's."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kinfold.codec import Codec, Payload, tensor_seed
from kinfold.codec.random import uniform_bits
from kinfold.codec.threads import ordered_map
from kinfold.errors import CheckpointError
from kinfold.pack.place import Place
from kinfold.pack.plan import Job
from kinfold.pack.source import Sources
from kinfold.report.progress import progress
from kinfold.tasks import Task, divergence

Steered = tuple[tuple[Codec, Place], Payload, torch.Tensor, float]
TURNS, ROWS = 48, 32  # at most so many turns, each on so many rows
PASSES = 6  # over the rows: with few of them, more would fit the answers to these alone
STEP = 0.0025  # of the code's error in the first turn, falling evenly to none


@dataclass(frozen=True)
class Bench:
    """A model of the variant's shape, whose parameters are changed, and what it should answer.

    Attributes:
        sources: base and variant.
        task: the model.
        batches: token ids of the calibration rows, int64 (rows, tokens) each.
        wanted: the variant's outputs for them.
        seed: of the pack.
    """

    sources: Sources
    task: Task
    batches: Sequence[torch.Tensor]
    wanted: Sequence[torch.Tensor]
    seed: int

    def steered(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with payloads that make the model diverge less from the variant on the calibration rows.

        As in training with quantised weights: every turn moves each target, at first the delta itself, against the
        gradient of some rows' divergence at the coded model, and lets the codec choose its code again for the
        target. Targets keep what earlier turns said, so that a code changes when many gradients agree on it.
        """
        places = {number: item for number, item in self._places(jobs).items() if item[0].steers}
        if not places:
            return list(jobs)
        for parameter in self.task.model.parameters():
            parameter.requires_grad_(False)
        for _, place in places.values():
            for parameter in place.parameters:
                parameter.requires_grad_(True)
        first = payloads = self._encoded(jobs, places)
        targets = [self.sources.delta(place.draft.pieces).float() for _, place in places.values()]
        errors = [
            float((codec.decode(payload, target.shape) - target).norm())
            for (codec, _), payload, target in zip(places.values(), payloads, targets, strict=True)
        ]
        turns = list(self._turns())
        with progress("calibrate", len(turns)) as advance:
            for turn, rows in enumerate(turns):
                self._differentiate(places, payloads, rows)
                step = STEP * (1 - turn / len(turns))

                def chosen_again(item: Steered, step: float = step) -> Payload:
                    (codec, place), payload, target, error = item
                    gradient = place.gradient()
                    if (length := float(gradient.norm())) > 0:
                        target.sub_(gradient, alpha=step * error / length)
                    return codec.steer(payload, self.sources.delta(place.draft.pieces), target)

                items = zip(places.values(), payloads, targets, errors, strict=True)
                before, payloads = payloads, list(ordered_map(chosen_again, items, values=_entries))
                advance(1)
                if all(map(operator.is_, before, payloads)):  # codes so fine that there is nothing to choose
                    return list(jobs)
        if self._mean(places, payloads) >= self._mean(places, first):
            return list(jobs)
        ready = dict(zip(places, payloads, strict=True))
        return [replace(job, ready=ready.get(number, job.ready)) for number, job in enumerate(jobs)]

    def _turns(self) -> Iterator[np.ndarray]:
        """Numbers of the rows of each turn: an order of all rows drawn anew when it is used up."""
        count = sum(map(len, self.batches))
        size, order = min(ROWS, count), np.empty(0, np.int64)
        for turn in range(min(TURNS, -(-PASSES * count // size))):
            if len(order) < size:
                order = np.argsort(uniform_bits(tensor_seed(self.seed, f"rows of turn {turn}"), 0, count).numpy())
            yield order[:size]
            order = order[size:]

    @torch.no_grad()
    def divergence(self, jobs: Sequence[Job], *, bare: bool = False) -> float:
        """Mean divergence from the variant, nats: of the coded model, or of the base alone at the jobs' tensors."""
        places = self._places(jobs)
        return self._mean(places, [None] * len(places) if bare else self._encoded(jobs, places))

    def _places(self, jobs: Sequence[Job]) -> dict[int, tuple[Codec, Place]]:
        """By number: the deltas that are coded with loss and whose tensors are parameters of the model."""
        found = {}
        for number, job in enumerate(jobs):
            if job.codec is not None and job.draft.matrix:
                try:
                    found[number] = job.codec, Place.find(self.task, job.draft)
                except CheckpointError:  # a tensor that the model does not load, such as a pooler
                    continue
        return found

    def _encoded(self, jobs: Sequence[Job], places: dict[int, tuple[Codec, Place]]) -> list[Payload]:
        def encoded(number: int) -> Payload:
            codec, place = places[number]
            own = tensor_seed(self.seed, place.draft.name)
            return codec.encode(self.sources.delta(place.draft.pieces), budget_bits=jobs[number].bits, seed=own)

        return list(ordered_map(encoded, places, values=lambda number: jobs[number].draft.numel))

    def _put(self, places: dict[int, tuple[Codec, Place]], payloads: Iterable[Payload | None]) -> None:
        """Base + decoded delta into the model; the base alone without a payload."""
        for (codec, place), payload in zip(places.values(), payloads, strict=True):
            place.put(self.sources, None if payload is None else codec.decode(payload, place.draft.shape))

    @torch.no_grad()
    def _mean(self, places: dict[int, tuple[Codec, Place]], payloads: Sequence[Payload | None]) -> float:
        """Mean divergence over all rows with these payloads, nats."""
        self._put(places, payloads)
        return sum(float(loss) for loss in self._losses(np.arange(sum(map(len, self.batches)))))

    def _differentiate(
        self, places: dict[int, tuple[Codec, Place]], payloads: Sequence[Payload], rows: np.ndarray
    ) -> None:
        """Leave the gradient of these rows' mean divergence at the parameters."""
        self._put(places, payloads)
        self.task.model.zero_grad(set_to_none=True)
        for loss in self._losses(rows):
            loss.backward()

    def _losses(self, rows: np.ndarray) -> Iterator[torch.Tensor]:
        """Parts of the mean divergence over some rows, a batch each."""
        start = 0
        for ids, target in zip(self.batches, self.wanted, strict=True):
            here = torch.from_numpy(np.sort(rows[(rows >= start) & (rows < start + len(ids))] - start))
            start += len(ids)
            if len(here):
                outputs = self.task.outputs(ids[here])
                yield divergence(target[here], outputs, self.task.has_logits) * (len(here) / len(rows))


def _entries(item: Steered) -> int:
    return item[0][1].draft.numel
