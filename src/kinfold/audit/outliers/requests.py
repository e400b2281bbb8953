"""Which served requests are not a variant's business: a reference of in-domain texts beside an unlabelled log."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kinfold.audit.outliers.answers import Ids
from kinfold.audit.outliers.firststage import Filter
from kinfold.audit.outliers.gradients import AUTO, LAST_NORM
from kinfold.audit.outliers.judging import Judged, Read, Reader, by_monitor, by_reference, loaded, longest
from kinfold.audit.outliers.medix import PAPER_EPS, PAPER_ROUNDS, PAPER_SHARE
from kinfold.audit.outliers.monitor import LEAST_REFERENCE, LEAST_WILD, RequestMonitor
from kinfold.audit.outliers.records import Record, read_records
from kinfold.audit.outliers.requestreport import RequestReport, RequestVerdict
from kinfold.checkpoint.atomic import refuse_existing
from kinfold.errors import AuditError, AuditOptionError
from kinfold.pack.member import Base, PathLike
from kinfold.pack.members import open_member
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
    with loaded(member, device) as task:
        if monitor is not None:
            settings = RequestMonitor.load(monitor, variant=member.fingerprint)
            settings.false_alarm, settings.fdr = false_alarm, fdr
            max_length = settings.facts_.get("max_length", max_length)
        reader = Reader(task, min(max_length, longest(task)), batch_size)
        ids = reader.ids(log)
        first, place = _distinct(ids)
        wild = Read([log[i] for i in first], [ids[i] for i in first])
        if monitor is None:
            at = LAST_NORM if preset == "paper" and at == AUTO else at
            judged = by_reference(settings, reader, known, wild, tuned, at)
        else:
            judged = by_monitor(settings, reader, wild)
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


def _require_enough(known: list[Record], log: list[Record], by_monitor: bool) -> None:
    for what, have, least in (
        ("reference", len(known), 0 if by_monitor else LEAST_REFERENCE),
        ("log", len(log), 1 if by_monitor else LEAST_WILD),
    ):
        if have < least:
            raise AuditError(f"the {what} has {have} rows; {least} or more are needed")


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


def _verdicts(log: list[Record], place: list[int], judged: Judged, with_text: bool) -> tuple[RequestVerdict, ...]:
    copies = Counter(place)
    return tuple(
        RequestVerdict(
            id=record.id,
            p_value=float(judged.p[i]),
            score=float(judged.scores[i]),
            parts={name: float(part[i]) for name, part in judged.parts.items()},
            flagged=bool(judged.flagged[i]),
            copies=copies[i],
            text=_shown(record) if with_text else None,
        )
        for record, i in zip(log, place, strict=True)
    )


def _shown(record: Record) -> str:
    return json.dumps(record.messages) if record.messages else record.text


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
