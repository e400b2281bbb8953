"""Calibration of finished payloads: codes are chosen again so that the model's answers stay the variant's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from kinfold.codec import Codec, Payload, tensor_seed
from kinfold.codec.threads import ordered_map
from kinfold.errors import CheckpointError
from kinfold.pack.place import Place
from kinfold.pack.plan import Job
from kinfold.pack.source import Sources
from kinfold.report.progress import progress
from kinfold.tasks import Task, divergence

Steered = tuple[tuple[Codec, Place], Payload, torch.Tensor]
TURNS = 16  # tries in all
_PUSH = 0.1  # of the delta's norm at first; less after every try that did not help
_SLOWER = 0.6
_SHARE = 0.15  # of the code that may change at once: a larger step overshoots


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

        Every turn takes the gradient of the mean divergence, lets the codec choose a share of its code again a
        little against it, and keeps the result if the divergence fell.
        """
        places = {number: item for number, item in self._places(jobs).items() if item[0].steers}
        if not places:
            return list(jobs)
        for parameter in self.task.model.parameters():
            parameter.requires_grad_(False)
        for _, place in places.values():
            for parameter in place.parameters:
                parameter.requires_grad_(True)
        payloads = self._encoded(jobs, places)
        push, (loss, gradients) = _PUSH, self._measured(places, payloads)
        with progress("calibrate", TURNS) as advance:
            for turn in range(TURNS):

                def chosen_again(item: Steered, push: float = push, turn: int = turn) -> Payload:
                    (codec, place), payload, gradient = item
                    delta = self.sources.delta(place.draft.pieces)
                    return codec.steer(payload, delta, gradient, push=push, share=_SHARE, turn=turn)

                tried = list(ordered_map(chosen_again, zip(places.values(), payloads, gradients, strict=True)))
                found, slope = self._measured(places, tried)
                if found < loss:
                    loss, gradients, payloads = found, slope, tried
                else:
                    push *= _SLOWER
                advance(1)
        ready = dict(zip(places, payloads, strict=True))
        return [replace(job, ready=ready.get(number, job.ready)) for number, job in enumerate(jobs)]

    @torch.no_grad()
    def divergence(self, jobs: Sequence[Job], *, bare: bool = False) -> float:
        """Mean divergence from the variant, nats: of the coded model, or of the base alone at the jobs' tensors."""
        places = self._places(jobs)
        self._put(places, [None] * len(places) if bare else self._encoded(jobs, places))
        return sum(float(loss) for loss in self._losses())

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

    def _measured(
        self, places: dict[int, tuple[Codec, Place]], payloads: Sequence[Payload]
    ) -> tuple[float, list[torch.Tensor]]:
        """Mean divergence with these payloads, nats, and its gradient by each delta."""
        self._put(places, payloads)
        self.task.model.zero_grad(set_to_none=True)
        total = 0.0
        for loss in self._losses():
            loss.backward()
            total += float(loss.detach())
        return total, [place.gradient() for _, place in places.values()]

    def _losses(self) -> Iterator[torch.Tensor]:
        """Parts of the mean divergence over the rows, a batch each."""
        rows = sum(len(ids) for ids in self.batches)
        for ids, target in zip(self.batches, self.wanted, strict=True):
            yield divergence(target, self.task.outputs(ids), self.task.has_logits) * (len(ids) / rows)
