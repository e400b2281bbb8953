"""Calibration of finished payloads: codes are chosen again so that the model's answers stay the variant's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from kinfold.codec import Payload, tensor_seed
from kinfold.codec.threads import ordered_map
from kinfold.errors import BudgetError, CheckpointError
from kinfold.pack.manifest import Piece
from kinfold.pack.plan import Job
from kinfold.pack.source import Sources
from kinfold.report.progress import progress
from kinfold.tasks import Task, divergence

TURNS = 16  # tries in all
_PUSH = 0.1  # of the delta's norm at first; less after every try that did not help
_SLOWER = 0.6
_SHARE = 0.15  # of the code that may change at once: a larger step overshoots


@dataclass
class _Place:
    """A job whose code may change, and where its tensors lie in the model."""

    job: Job
    payload: Payload
    spots: list[tuple[Piece, torch.nn.Parameter]]

    @property
    def steers(self) -> bool:
        return self.job.codec is not None and self.job.codec.steers

    def write(self, sources: Sources, payload: Payload | None) -> None:
        """Put base + decoded delta into the model; the base alone without a payload."""
        reference = sources.reference(self.job.draft.pieces)
        assert reference is not None  # only tensors with a base are coded as deltas
        assert self.job.codec is not None
        values = reference.reshape(-1).float()
        if payload is not None:
            values = values + self.job.codec.decode(payload, self.job.draft.shape).reshape(-1)
        for (_, view), part in zip(self._views(), values.split([p.numel for p, _ in self.spots]), strict=True):
            view.copy_(part.reshape(view.shape))

    def gradient(self) -> torch.Tensor:
        """Of the loss by the job's delta, float32 in its shape."""
        parts = [torch.zeros_like(view) if grad is None else grad for grad, view in self._views()]
        return torch.cat([part.reshape(-1) for part in parts]).reshape(self.job.draft.shape)

    def _views(self) -> Iterator[tuple[torch.Tensor | None, torch.Tensor]]:
        for piece, parameter in self.spots:
            first, last = piece.rows or (0, parameter.shape[0] if parameter.dim() else 0)
            whole = parameter.dim() == 0 or (first, last) == (0, parameter.shape[0])
            grad, value = parameter.grad, parameter.data
            yield (grad, value) if whole else (None if grad is None else grad[first:last], value[first:last])


def steered(
    sources: Sources,
    jobs: Sequence[Job],
    task: Task,
    batches: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    seed: int,
) -> list[Job]:
    """The jobs with payloads that make the model diverge less from the variant on the calibration rows.

    Every turn takes the gradient of the mean divergence, lets the codec choose a share of its code again a
    little against it, and keeps the result if the divergence fell.

    Args:
        sources: base and variant.
        jobs: the plan.
        task: a model of the variant's shape; its parameters are changed.
        batches: token ids of the calibration rows, int64 (rows, tokens) each.
        wanted: the variant's outputs for them.
        seed: of the pack.
    """
    places = {number: place for number, place in _places(task, sources, jobs, seed).items() if place.steers}
    if not places:
        return list(jobs)
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    for place in places.values():
        for _, parameter in place.spots:
            parameter.requires_grad_(True)
    _write(sources, places, [place.payload for place in places.values()])
    push, loss = _PUSH, _loss_and_gradient(task, batches, wanted)
    gradients = [place.gradient() for place in places.values()]
    with progress("calibrate", TURNS) as advance:
        for turn in range(TURNS):
            tried = list(ordered_map(lambda item: _steer(sources, *item), _turn(places, gradients, push, turn)))
            _write(sources, places, tried)
            found = _loss_and_gradient(task, batches, wanted)
            if found < loss:
                loss, gradients = found, [place.gradient() for place in places.values()]
                for place, payload in zip(places.values(), tried, strict=True):
                    place.payload = payload
            else:
                push *= _SLOWER
            advance(1)
    ready = {number: place.payload for number, place in places.items()}
    return [replace(job, ready=ready.get(number, job.ready)) for number, job in enumerate(jobs)]


def divergence_left(
    sources: Sources,
    jobs: Sequence[Job],
    task: Task,
    batches: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    seed: int,
) -> float:
    """Mean divergence of the coded model from the variant, as a share of the bare base's; arguments as `steered`'s.

    Raises:
        BudgetError: base and variant answer alike, so there is nothing to recover.
    """
    places = _places(task, sources, jobs, seed)
    with torch.no_grad():
        found = []
        for payloads in ([None] * len(places), [place.payload for place in places.values()]):
            _write(sources, places, payloads)
            found.append(_loss(task, batches, wanted))
    if not found[0] > 0:
        raise BudgetError("on the calibration rows the base answers as the variant does: there is no gain to recover")
    return found[1] / found[0]


def _turn(
    places: dict[int, _Place], gradients: list[torch.Tensor], push: float, turn: int
) -> list[tuple[_Place, torch.Tensor, float, int]]:
    return [(place, gradient, push, turn) for place, gradient in zip(places.values(), gradients, strict=True)]


def _steer(sources: Sources, place: _Place, gradient: torch.Tensor, push: float, turn: int) -> Payload:
    assert place.job.codec is not None
    delta = sources.delta(place.job.draft.pieces)
    return place.job.codec.steer(place.payload, delta, gradient, push=push, share=_SHARE, turn=turn)


def _places(task: Task, sources: Sources, jobs: Sequence[Job], seed: int) -> dict[int, _Place]:
    """By number: the deltas that are coded with loss and whose tensors are parameters of the model."""

    def encoded(number: int) -> Payload:
        job = jobs[number]
        assert job.codec is not None
        own = tensor_seed(seed, job.draft.name)
        return job.codec.encode(sources.delta(job.draft.pieces), budget_bits=job.bits, seed=own)

    spots = {}
    for number, job in enumerate(jobs):
        if job.codec is not None and job.draft.matrix:
            try:
                own = task.parameters([piece.name for piece in job.draft.pieces])
            except CheckpointError:  # a tensor that the model does not load, such as a pooler
                continue
            spots[number] = [(piece, own[piece.name]) for piece in job.draft.pieces]
    payloads = ordered_map(encoded, list(spots), values=lambda number: jobs[number].draft.numel)
    return {
        number: _Place(jobs[number], payload, spots[number])
        for number, payload in zip(list(spots), payloads, strict=True)
    }


def _write(sources: Sources, places: dict[int, _Place], payloads: Sequence[Payload | None]) -> None:
    with torch.no_grad():
        for place, payload in zip(places.values(), payloads, strict=True):
            place.write(sources, payload)


def _loss_and_gradient(task: Task, batches: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Mean divergence over the rows, nats; its gradients are left in the parameters."""
    task.model.zero_grad(set_to_none=True)
    return sum(_backward(loss) for loss in _losses(task, batches, wanted))


def _backward(loss: torch.Tensor) -> float:
    loss.backward()
    return float(loss.detach())


def _loss(task: Task, batches: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    return sum(float(loss) for loss in _losses(task, batches, wanted))


def _losses(task: Task, batches: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    rows = sum(len(ids) for ids in batches)
    for ids, target in zip(batches, wanted, strict=True):
        yield divergence(target, task.outputs(ids), task.has_logits) * (len(ids) / rows)
