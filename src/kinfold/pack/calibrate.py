"""What calibration adds to a plan: importance of every matrix, and the choice among whole-model settings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kinfold.budget import Budget, Calibration
from kinfold.budget.importance import answers, mean_divergence, measure, read_importance, targets
from kinfold.codec import Codec, Importance
from kinfold.codec.factors import matrix_sides
from kinfold.codec.lowrank import as_matrix, leading
from kinfold.codec.threads import ordered_map, single_threaded
from kinfold.pack.place import Place
from kinfold.pack.plan import Importances, Job
from kinfold.pack.search import Divergence
from kinfold.pack.source import Sources
from kinfold.pack.steer import Bench
from kinfold.pack.units import Draft
from kinfold.tasks import Task


@dataclass(frozen=True)
class Guide:
    """What calibration gives: the codec to plan with, importance by name, a last improvement of the jobs, and
    how far the model they make is from the variant."""

    codec: Codec | None
    importance: Importances = lambda _: None
    improve: Callable[[list[Job]], list[Job]] = lambda jobs: jobs
    divergence: Divergence | None = None


@contextmanager
def calibrated(
    sources: Sources,
    matrices: Sequence[Draft],
    codec: Codec | None,
    budget: Budget | None,
    calibration: Calibration | None,
    seed: int,
) -> Iterator[Guide]:
    """Yield what calibration says of the codec and of each matrix.

    Without calibration the codec is the one given. With it, importance is measured once at the model that
    the largest low-rank part gives; a codec with whole-model alternatives is settled on the one whose
    restored model diverges least from the variant; one that can be steered has its payloads improved.
    """
    if codec is None or budget is None or calibration is None or not matrices:
        yield Guide(codec)
        return
    # one thread here too: gradients decide which entries are kept, so their last bits decide bytes
    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder, single_threaded():
        task = Task.load(sources.variant.directory)
        bench = Bench(sources, task, *answers(task, calibration), seed)
        row_by_row = codec.needs_importance or codec.alternatives()
        wanted = targets(task, calibration) if row_by_row else []
        path = Path(folder) / "importance.safetensors"
        shares = _shares(matrices, codec, budget, sources)
        shapes = {draft.name: draft.shape for draft in matrices}
        if codec.needs_importance:
            ranks = [codec.top_rank(draft.shape, bits) for draft, bits in zip(matrices, shares, strict=True)]
            approximate = ordered_map(
                lambda item: _low_rank(sources.delta(item[0].pieces), item[1]),
                list(zip(matrices, ranks, strict=True)),
            )
            _place(task, sources, matrices, approximate)
            measure(task, list(shapes), calibration, wanted, seed, path)

        def importance(name: str) -> Importance | None:
            return read_importance(path, name, shapes[name]) if path.exists() else None

        chosen = _least_divergence(task, sources, matrices, codec, shares, calibration, wanted, importance)
        yield Guide(chosen, importance, bench.steered if chosen.steers else list, bench.divergence)


def _shares(matrices: Sequence[Draft], codec: Codec, budget: Budget, sources: Sources) -> list[int]:
    """About the bits each matrix will get: norms and header are left out of the account here."""
    if budget.kind == "gain":  # for choices among settings a middling rate will do
        budget = Budget.parse("1/64")
    if budget.kind == "rank":
        return [budget.matrix_bits(matrix_sides(draft.shape)) for draft in matrices]
    total = budget.file_bytes(sum(2 * draft.numel for draft in matrices)) or 0
    return codec.shares([draft.shape for draft in matrices], 8 * total)


def _entries(item: tuple[Draft, int]) -> int:
    return item[0].numel


def _low_rank(delta: torch.Tensor, rank: int) -> torch.Tensor:
    a, c = leading(as_matrix(delta), rank).balanced(rank)
    return (a @ c.T).float().reshape(delta.shape)


def _place(task: Task, sources: Sources, matrices: Sequence[Draft], deltas: Iterator[torch.Tensor]) -> None:
    """Set every coded matrix of the model to base + delta, and leave the rest as the variant has it."""
    for draft, delta in zip(matrices, deltas, strict=True):
        Place.find(task, draft).put(sources, delta)


def _least_divergence(
    task: Task,
    sources: Sources,
    matrices: Sequence[Draft],
    codec: Codec,
    shares: Sequence[int],
    calibration: Calibration,
    wanted: Sequence[torch.Tensor],
    importance: Importances,
) -> Codec:
    best, least = codec, float("inf")
    for candidate in codec.alternatives():

        def rebuilt(item: tuple[Draft, int], candidate: Codec = candidate) -> torch.Tensor:
            draft, bits = item
            delta = sources.delta(draft.pieces)
            payload = candidate.encode(delta, budget_bits=bits, importance=importance(draft.name))
            return candidate.decode(payload, draft.shape)

        _place(task, sources, matrices, ordered_map(rebuilt, list(zip(matrices, shares, strict=True)), values=_entries))
        found = mean_divergence(task, calibration, wanted)
        if found < least:
            best, least = candidate, found
    return best
