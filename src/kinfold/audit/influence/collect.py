"""Gradients of a variant's rows: into a store, or for the few probe rows into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinfold.audit.influence.compress import Compressor
from kinfold.audit.influence.gradients import evaluating, row_gradients, shape_of
from kinfold.audit.influence.mask import coordinates_hash
from kinfold.audit.influence.settings import Spec
from kinfold.audit.influence.store import Block, GradientStore, StoreSpec, row_hash
from kinfold.audit.influence.subject import Subject
from kinfold.errors import AuditError
from kinfold.report.progress import progress
from kinfold.tasks import Row


def plan(subject: Subject, spec: Spec, reduction: Any) -> tuple[list[Compressor], StoreSpec]:
    """The compressors of a variant's modules, and what a store of their gradients must say."""
    shapes = {name: shape_of(module) for name, module in subject.modules.items()}
    compressors = spec.compressors(shapes)
    store = StoreSpec(
        variant=subject.fingerprint,
        base=subject.base,
        task=subject.kind,
        reduction=reduction,
        tokenizer=subject.tokenizer,
        max_tokens=subject.max_tokens,
        mask=spec.compressor,
        seed=spec.seed,
        masks=spec.masks,
        coordinates=coordinates_hash([(c.name, c.coordinates) for c in compressors]),
        blocks=[Block(name=c.name, shape=list(c.shape), width=c.width) for c in compressors],
    )
    return compressors, store


def fill(
    store: GradientStore,
    subject: Subject,
    rows: Sequence[Row],
    compressors: Sequence[Compressor],
    reduction: Any,
    batch_size: int,
) -> None:
    """Append the gradients of all rows that the store does not have yet.

    Batches are those of an uninterrupted run, so that a resumed one gives the same bytes.

    Raises:
        AuditError: a gradient is not finite.
    """
    first: dict[bytes, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row_hash(row), place)
    places, hashes, done = list(first.values()), list(first), set(store.hashes)
    batches = subject.task.grouped([rows[place] for place in places], batch_size, subject.max_tokens)
    with progress("gradients", sum(ids.numel() for _, ids in batches)) as advance, evaluating(subject.model):
        for members, ids in batches:
            fresh = [number for number, member in enumerate(members) if hashes[member] not in done]
            if fresh:
                found = _batch(subject, ids, [places[m] for m in members], rows, compressors, reduction)
                store.append(found[0][fresh], found[1][fresh], [hashes[members[number]] for number in fresh])
            advance(ids.numel())
    store.flush()


def gradients_of(
    subject: Subject, rows: Sequence[Row], compressors: Sequence[Compressor], reduction: Any, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compressed gradients float32 (m, width) and losses (m,) of rows in their order, in memory.

    Raises:
        AuditError: as `fill`.
    """
    gradients = np.empty((len(rows), sum(c.width for c in compressors)), np.float32)
    losses = np.empty(len(rows), np.float32)
    with evaluating(subject.model):
        for places, ids in subject.task.grouped(rows, batch_size, subject.max_tokens):
            gradients[places], losses[places] = _batch(subject, ids, places, rows, compressors, reduction)
    return gradients, losses


def _batch(
    subject: Subject,
    ids: Any,
    places: list[int],
    rows: Sequence[Row],
    compressors: Sequence[Compressor],
    reduction: Any,
) -> tuple[np.ndarray, np.ndarray]:

    def loss(model: Any, batch: Any) -> Any:
        return subject.losses(model, batch, reduction)

    batch = ids, [rows[place] for place in places]
    found, losses = row_gradients(loss, subject.model, batch, subject.modules, compressors)
    gradients, values = found.cpu().numpy(), losses.cpu().numpy()
    bad = [str(place) for place, row in zip(places, gradients, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise AuditError(
            f"the gradients of rows {', '.join(bad[:10])} are not finite", hint="check the variant's weights"
        )
    return gradients, values
