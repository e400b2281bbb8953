"""Which served requests are not a variant's business: a reference of in-domain texts beside an unlabelled log."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinfold.audit.outliers.answers import Answers, Ids, read
from kinfold.audit.outliers.filters import GRADIENT_FILTERS, total
from kinfold.audit.outliers.finetune import finetune_trainer
from kinfold.audit.outliers.firststage import Filter
from kinfold.audit.outliers.gradients import AUTO, LAST_NORM, find_module
from kinfold.audit.outliers.medix import PAPER_EPS, PAPER_ROUNDS, PAPER_SHARE
from kinfold.audit.outliers.monitor import LEAST_REFERENCE, LEAST_WILD, RequestMonitor
from kinfold.audit.outliers.records import Record, read_records, require_labels, token_ids
from kinfold.audit.outliers.requestreport import RequestReport, RequestVerdict
from kinfold.checkpoint.atomic import refuse_existing
from kinfold.errors import AuditError, AuditOptionError
from kinfold.pack.member import Base, Member, PathLike
from kinfold.pack.members import materialise, open_member
from kinfold.tasks import Task

Texts = PathLike | Sequence[str]


def requests(
    base: PathLike,
    variant: PathLike,
    reference: Texts | None,
    requests: Texts,
    *,
    filter: Filter = "sum",
    head: Literal["linear", "none", "finetune"] = "linear",
    preset: Literal["default", "paper"] = "default",
    at: str = AUTO,
    k: int | float | Literal["auto"] = "auto",
    eps: float = 0.0,
    false_alarm: float = 0.05,
    fdr: float | None = None,
    max_length: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    with_text: bool = False,
    monitor: PathLike | None = None,
    save_monitor: PathLike | None = None,
) -> RequestReport:
    """Say which requests of a log are out of a variant's distribution; two stages as in Medix (arXiv 2510.06505).

    Distribution is all that is looked at: a harmful request in the style of the reference is not found.

    Args:
        base: model directory.
        variant: model directory, pack or adapter of it; it is not changed.
        reference: JSONL file or texts, 50 in-domain requests or more, best ones the variant was not trained on, cut and
            rendered as the log is; None with `monitor`.
        requests: the log, 20 different ones or more (1 with `monitor`).
        filter: see `RequestMonitor`.
        head: `linear`, `none`, or `finetune`: the paper's, trained with a copy of the model; hours on a processor.
        preset: `paper`: filter `medix` at the last norm against the mean of true-label gradients, up to 9 rounds, head
            `finetune`; the reference needs labels.
        at: module for gradients: a name, `auto` or `last-norm`.
        k: rows that the filter hands to the head, `auto` by the estimated share.
        eps: of `medix`, see `RequestMonitor`.
        false_alarm: share of in-domain requests that may be flagged.
        fdr: flag by Benjamini-Hochberg at this share instead.
        max_length: tokens a text is cut to.
        batch_size: texts at once.
        seed: of the folds.
        device: as torch names it.
        with_text: keep texts in the report; logs are private.
        monitor: file of a fitted monitor to use in place of a reference.
        save_monitor: where to keep the fitted monitor.

    Raises:
        AuditError: too few texts, a line that cannot be read, a variant without logits where they are needed, no such
            module, labels that are missing, or a monitor of another variant.
        AuditOptionError: an option is out of range; it is a ValueError too.
        DegenerateGradientError: of `medix`, where medians tell nothing.
        WrongBaseError: a pack of another base.
        CheckpointError, PackError, AdapterError: the variant cannot be read.
        OutputError: the monitor cannot be written.
    """
    settings, tuned = _settings(filter, head, preset, k, eps, false_alarm, fdr, seed)
    if max_length < 1 or batch_size < 1:
        raise AuditOptionError(f"max_length is {max_length}, batch_size {batch_size}; whole numbers from 1 are allowed")
    if (reference is None) == (monitor is None):
        raise AuditError("either a reference or a monitor is needed, and not both", hint="--reference FILE")
    if save_monitor is not None:
        refuse_existing(Path(save_monitor), overwrite=False)
    known = [] if reference is None else read_records(reference)
    log = read_records(requests)
    _require_enough(known, log, monitor is not None)
    member = open_member(variant, Base.open(base))
    with _loaded(member, device) as task:
        if monitor is not None:
            settings = RequestMonitor.load(monitor, variant=member.fingerprint)
            settings.false_alarm, settings.fdr = false_alarm, fdr
            max_length = settings.facts_.get("max_length", max_length)
        reader = _Reader(task, min(max_length, _longest(task)), batch_size)
        ids = reader.ids(log)
        first, place = _distinct(ids)
        wild = _Texts([log[i] for i in first], [ids[i] for i in first])
        if monitor is None:
            at = LAST_NORM if preset == "paper" and at == AUTO else at
            judged = _by_reference(settings, reader, known, wild, tuned, at)
        else:
            judged = _by_monitor(settings, reader, wild)
    if save_monitor is not None:
        settings.save(save_monitor, variant=member.fingerprint, facts={"max_length": max_length})
    seen = len(settings.reference_scores_)
    return RequestReport(
        base=str(base),
        variant=str(variant),
        fingerprint=member.fingerprint,
        filter=settings.filter,
        head="finetune" if tuned else settings.head,
        preset=preset,
        at=judged.at,
        false_alarm=false_alarm,
        fdr=fdr,
        seed=settings.seed,
        reference=seen,
        requests=len(log),
        distinct=len(first),
        share=judged.share,
        least_p=1 / (1 + seen),
        verdicts=_verdicts(log, place, judged, with_text),
        notes=tuple(_notes(settings, len(first), task)),
    )


@dataclass(frozen=True)
class _Texts:
    records: list[Record]
    ids: list[Ids]


@dataclass(frozen=True)
class _Judged:
    """Of the distinct requests: p-values, scores, their terms, flags; the estimated share and the module looked at."""

    p: np.ndarray
    scores: np.ndarray
    parts: Mapping[str, np.ndarray]
    flagged: np.ndarray
    share: float | None
    at: str = ""


@dataclass(frozen=True)
class _Reader:
    """A variant that reads texts."""

    task: Task
    max_length: int
    batch_size: int

    def ids(self, records: list[Record]) -> list[Ids]:
        return token_ids(records, self.task.tokenizer, self.max_length)

    def answers(self, texts: _Texts, filter: str, at: str | None = None, labels: list[int] | None = None) -> Answers:
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


def _by_reference(
    monitor: RequestMonitor, reader: _Reader, known: list[Record], wild: _Texts, tuned: bool, at: str
) -> _Judged:
    task, mean = reader.task, monitor.gradient_reference == "mean"
    place = at if monitor.filter in GRADIENT_FILTERS else None
    reference = _Texts(known, reader.ids(known))
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
    return _Judged(monitor.p_values_, monitor.scores_, monitor.parts_, monitor.flagged_, monitor.share_, named)


def _by_monitor(monitor: RequestMonitor, reader: _Reader, wild: _Texts) -> _Judged:
    answers = reader.answers(wild, monitor.filter)
    parts = monitor.parts(answers.features, answers.logits)
    p = monitor.p_values(answers.features, answers.logits)
    return _Judged(p, total(parts.values()), parts, monitor.flags(p), None)


def _classes(task: Task) -> int:
    """How many a classifier of texts has.

    Raises:
        AuditError: the variant is none.
    """
    if type(task.model).__name__.endswith("CausalLM") or not task.has_logits:
        raise AuditError(
            f"the variant is a {type(task.model).__name__} without classes; the paper's preset and head finetune need a "
            "classifier",
            hint="leave out --preset paper",
        )
    return int(task.model.config.num_labels) if task.head is None else len(task.head[1])


def _longest(task: Task) -> int:
    return getattr(task.model.config, "max_position_embeddings", None) or 1 << 30


def _require_enough(known: list[Record], log: list[Record], by_monitor: bool) -> None:
    for what, have, least in (
        ("reference", len(known), 0 if by_monitor else LEAST_REFERENCE),
        ("log", len(log), 1 if by_monitor else LEAST_WILD),
    ):
        if have < least:
            raise AuditError(f"the {what} has {have} rows; {least} or more are needed")


@contextmanager
def _loaded(member: Member, device: str) -> Iterator[Task]:
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


def _distinct(ids: list[Ids]) -> tuple[list[int], list[int]]:
    """Numbers of the requests that are no copies of an earlier one, and each request's place among those."""
    places: dict[tuple[int, ...], int] = {}
    first, place = [], []
    for number, one in enumerate(ids):
        known = places.setdefault(tuple(one), len(first))
        if known == len(first):
            first.append(number)
        place.append(known)
    return first, place


def _verdicts(log: list[Record], place: list[int], judged: _Judged, with_text: bool) -> tuple[RequestVerdict, ...]:
    copies = Counter(place)
    return tuple(
        RequestVerdict(
            id=record.id,
            p_value=float(judged.p[i]),
            score=float(judged.scores[i]),
            parts={name: float(part[i]) for name, part in judged.parts.items()},
            flagged=bool(judged.flagged[i]),
            copies=copies[i],
            text=(record.text or json.dumps(record.messages)) if with_text else None,
        )
        for record, i in zip(log, place, strict=True)
    )


def _notes(monitor: RequestMonitor, distinct: int, task: Task) -> list[str]:
    count = len(monitor.reference_scores_)
    notes = [
        "p-values hold on average over in-domain requests, and only if those resemble the reference: a request that is "
        "not flagged may still be harmful, one that is flagged may still be in domain"
    ]
    if monitor.fdr is not None:
        stand_out = math.ceil(distinct / (monitor.fdr * (count + 1)) - 1e-9)
        notes.append(
            f"no p-value is below 1 / {count + 1}, so an fdr of {monitor.fdr:g} over {distinct} different requests can "
            f"flag some only where {stand_out} or more stand out above all of the reference"
        )
    elif (count + 1) * monitor.false_alarm < 1:
        notes.append(f"no p-value is below 1 / {count + 1}, so none can be flagged at {monitor.false_alarm:g}")
    if type(task.model).__name__.endswith("CausalLM"):
        notes.append("causal language models have not been measured: energy is the mean surprise a token here")
    return notes


def _settings(
    filter: Filter, head: str, preset: str, k: Any, eps: float, false_alarm: float, fdr: float | None, seed: int
) -> tuple[RequestMonitor, bool]:
    """The monitor's parameters, and whether the head is trained with the model."""
    for name, value, allowed in (
        ("preset", preset, ("default", "paper")),
        ("head", head, ("linear", "none", "finetune")),
    ):
        if value not in allowed:
            raise AuditOptionError(f"{name} is {value!r}; {', '.join(map(repr, allowed))} are allowed")
    given: dict[str, Any] = {"filter": filter, "k": k, "eps": eps}
    if preset == "paper":
        given = {"filter": "medix", "k": PAPER_SHARE if k == "auto" else k, "eps": eps or PAPER_EPS}
        given |= {"max_rounds": PAPER_ROUNDS, "gradient_reference": "mean"}
        head = "finetune" if head == "linear" else head
    monitor = RequestMonitor(
        **given, head="none" if head == "none" else "linear", false_alarm=false_alarm, fdr=fdr, seed=seed
    )
    return monitor.check(), head == "finetune"
