"""Reading requests with a variant and judging them, by a reference or by a monitor fitted before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kinfold.audit.outliers.answers import Answers, Ids, read
from kinfold.audit.outliers.filters import GRADIENT_FILTERS, total
from kinfold.audit.outliers.finetune import finetune_trainer
from kinfold.audit.outliers.gradients import find_module
from kinfold.audit.outliers.monitor import RequestMonitor
from kinfold.audit.outliers.records import Record, require_labels, token_ids
from kinfold.errors import AuditError
from kinfold.pack.member import Member
from kinfold.pack.members import materialise
from kinfold.tasks import Task


@dataclass(frozen=True)
class Read:
    """Requests and their token ids."""

    records: list[Record]
    ids: list[Ids]


@dataclass(frozen=True)
class Judged:
    """Of the distinct requests: p-values, scores, their terms, flags; the estimated share and the module looked at."""

    p: np.ndarray
    scores: np.ndarray
    parts: Mapping[str, np.ndarray]
    flagged: np.ndarray
    share: float | None
    at: str = ""


@dataclass(frozen=True)
class Reader:
    """A variant that reads texts."""

    task: Task
    max_length: int
    batch_size: int

    def ids(self, records: list[Record]) -> list[Ids]:
        return token_ids(records, self.task.tokenizer, self.max_length)

    def answers(self, texts: Read, filter: str, at: str | None = None, labels: list[int] | None = None) -> Answers:
        """What the model makes of texts; nothing of its logits where the filter looks at features only.

        Raises:
            AuditError: an answer is not finite.
        """
        found = read(self.task, texts.ids, batch_size=self.batch_size, at=at, labels=labels)
        for table in (found.features, found.logits):
            wrong = [] if table is None else np.flatnonzero(~np.isfinite(table.reshape(len(table), -1)).all(axis=1))
            if len(wrong):
                raise AuditError(f"the variant's answer to record `{texts.records[wrong[0]].id}` is not finite")
        single = found.logits is not None and found.logits.ndim == 2 and found.logits.shape[1] < 2
        return replace(found, logits=None) if filter == "knn" and single else found


def by_reference(
    monitor: RequestMonitor, reader: Reader, known: list[Record], wild: Read, tuned: bool, at: str
) -> Judged:
    task, mean = reader.task, monitor.gradient_reference == "mean"
    place = at if monitor.filter in GRADIENT_FILTERS else None
    reference = Read(known, reader.ids(known))
    labels = None
    if tuned or (mean and place):
        labels = require_labels(known, _classes(task))
    ours = reader.answers(reference, monitor.filter, place, labels if mean else None)
    theirs = reader.answers(wild, monitor.filter, place)
    monitor.fit(
        *(ours.features, ours.logits, theirs.features, theirs.logits),
        gradients_ref=ours.gradients,
        gradients_wild=theirs.gradients,
        trainer=finetune_trainer(task, reference.ids, labels, wild.ids, seed=monitor.seed)
        if tuned and labels
        else None,
    )
    named = "" if place is None else find_module(task.model, place)[0]
    return Judged(monitor.p_values_, monitor.scores_, monitor.parts_, monitor.flagged_, monitor.share_, named)


def by_monitor(monitor: RequestMonitor, reader: Reader, wild: Read) -> Judged:
    answers = reader.answers(wild, monitor.filter)
    parts = monitor.parts(answers.features, answers.logits)
    p = monitor.p_values(answers.features, answers.logits)
    return Judged(p, total(parts.values()), parts, monitor.flags(p), None)


def _classes(task: Task) -> int:
    """How many a classifier of texts has.

    Raises:
        AuditError: the variant is none.
    """
    if type(task.model).__name__.endswith("CausalLM") or not task.has_logits:
        raise AuditError(
            f"the variant is a {type(task.model).__name__} without classes; the paper's preset "
            "and head finetune need a classifier",
            hint="leave out --preset paper",
        )
    return int(task.model.config.num_labels) if task.head is None else len(task.head[1])


def longest(task: Task) -> int:
    return getattr(task.model.config, "max_position_embeddings", None) or 1 << 30


@contextmanager
def loaded(member: Member, device: str) -> Iterator[Task]:
    """The variant's model, restored into a temporary folder where it is no model directory."""
    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder:
        directory = member.path
        if member.kind != "model":
            directory = Path(folder) / "variant"
            materialise(member, directory)
        task = Task.load(directory)
        try:
            task.model.to(device)
            task.head = None if task.head is None else (task.head[0].to(device), task.head[1].to(device))
        except (RuntimeError, AssertionError) as cause:
            raise AuditError(f"torch cannot use the device `{device}`: {cause}", hint="--device cpu") from cause
        yield task
