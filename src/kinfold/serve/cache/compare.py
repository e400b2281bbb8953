"""Caches side by side on the user's own texts: bytes, quality, time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from kinfold.errors import CacheError
from kinfold.serve.cache.base import KVCache
from kinfold.serve.cache.questions import Recall, recall
from kinfold.serve.cache.report import KVReport
from kinfold.serve.cache.spec import CacheSpec, attached, parse_cache
from kinfold.tasks import Row, Task

FULL = "full"


@dataclass(frozen=True)
class CacheRow:
    """What one cache did, mean over the texts.

    Attributes:
        cache: its text.
        ratio: bytes held at the end over those of a full cache, both counted for a model of 16 bits.
        shared_bytes: held once for all caches, such as bases; not in `ratio`.
        perplexity: of the scored tokens.
        agreement: share of them whose most likely next token is the full cache's.
        residual: share of the energy of keys and values that was lost; None where the cache does not know.
        reads_mean, reads_max: entries that a step read, of KV heads; None where each reads all.
        first, next: time to the first token and to each later one over the full cache's, on this machine.
        recall: answers to questions after codes hidden in the texts; None where none were asked.
    """

    cache: str
    ratio: float
    shared_bytes: int
    perplexity: float
    agreement: float
    residual: float | None
    reads_mean: float | None
    reads_max: int | None
    first: float
    next: float
    recall: Recall | None = None


@dataclass(frozen=True)
class CacheComparison:
    """Rows by bytes, largest first.

    Attributes:
        texts: measured.
        tokens: of them all.
        scored: of these, how many were scored.
        rows: one a cache, the full cache among them.
        notes: of the caches, such as that a text was too short to compress.
    """

    texts: int
    tokens: int
    scored: int
    rows: tuple[CacheRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """One cache on one text: losses (n,) in nats, most likely tokens (n,) int64, seconds, and its report."""

    losses: torch.Tensor
    likely: torch.Tensor
    first: float
    next: float
    report: KVReport | None


def compare_caches(
    task: Task,
    rows: Sequence[Row],
    caches: Sequence[CacheSpec],
    *,
    last: int = 512,
    most: int = 8192,
    questions: int = 0,
    watch: Callable[[int], object] = lambda _: None,
) -> CacheComparison:
    """Score the end of each text token by token, after its beginning was read at once.

    Args:
        task: a causal language model.
        rows: texts; of each, the last `last` tokens are scored, at most half of it.
        caches: the full cache is added where it is missing.
        most: longer texts are cut to this many tokens.
        questions: hide this many codes in each text and ask for them, the first in the prompt, others after it.
        watch: gets the number of tokens done.

    Raises:
        CacheError: the model is no causal language model, a text has fewer than 4 tokens, or codes cannot be hidden.
        CalibrationError: a row cannot be read.
    """
    if not type(task.model).__name__.endswith("CausalLM"):
        raise CacheError(f"`{type(task.model).__name__}` writes no text; a causal language model is wanted")
    specs = {spec.text: spec for spec in [parse_cache(FULL), *caches]}
    found: dict[str, list[Scored]] = {name: [] for name in specs}
    texts = [task.token_ids(row, most) for row in rows]
    with torch.inference_mode():  # the first pass of a process is slow, and would be the full cache's
        task.model.base_model(texts[0][:, :1024].to(task.model.device))
    for ids in texts:
        if ids.shape[1] < 4:
            raise CacheError(f"a text has {ids.shape[1]} tokens; at least 4 are needed to score its end")
        for name, spec in specs.items():
            found[name].append(score(task, spec, ids, min(last, ids.shape[1] // 2)))
            watch(ids.shape[1])
    answers = {
        name: recall(task, rows, spec, questions, most=most) if questions else None for name, spec in specs.items()
    }
    told = [_row(name, runs, found[FULL], answers[name]) for name, runs in found.items()]
    told.sort(key=lambda row: -row.ratio)
    notes = {
        f"{name}: {note}" for name, runs in found.items() for run in runs if run.report for note in run.report.notes
    }
    scored = sum(len(run.losses) for run in found[FULL])
    return CacheComparison(len(texts), sum(ids.shape[1] for ids in texts), scored, tuple(told), tuple(sorted(notes)))


@torch.inference_mode()
def score(task: Task, spec: CacheSpec, ids: torch.Tensor, last: int) -> Scored:
    """The last `last` tokens of `ids` (1, n), one by one, after the rest was read in one pass."""
    model = task.model
    cache = spec.make(model, task.tokenizer)
    few = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    ids = ids.to(model.device)
    start = ids.shape[1] - last
    with attached(cache, model):
        begun = time.perf_counter()
        logits = [model(ids[:, :start], past_key_values=cache, use_cache=True, **few).logits[0, -1].float().cpu()]
        first = time.perf_counter() - begun
        for place in range(start, ids.shape[1] - 1):
            out = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            logits.append(out.logits[0, -1].float().cpu())
        later = (time.perf_counter() - begun - first) / max(1, last - 1)
    table = torch.stack(logits)
    losses = F.cross_entropy(table, ids[0, start:].cpu(), reduction="none")
    report = cache.report() if isinstance(cache, KVCache) else None  # type: ignore[attr-defined]
    return Scored(losses, table.argmax(-1), first, later, report)


def _row(name: str, runs: list[Scored], full: list[Scored], answers: Recall | None) -> CacheRow:
    reports = [run.report for run in runs if run.report is not None]
    losses = torch.cat([run.losses for run in runs])
    same = torch.cat([run.likely == other.likely for run, other in zip(runs, full, strict=True)])
    shares = [share for report in reports for share in report.residual.values()]
    reads = [entries for report in reports for entries in report.reads]
    return CacheRow(
        cache=name,
        ratio=_mean([report.ratio_16bit for report in reports]) if reports else 1.0,
        shared_bytes=max((report.shared_bytes for report in reports), default=0),
        perplexity=math.exp(float(losses.mean())),
        agreement=float(same.float().mean()),
        residual=_mean(shares) if shares else None,
        reads_mean=_mean(reads) if reads else None,
        reads_max=max(reads, default=None),
        first=sum(run.first for run in runs) / sum(run.first for run in full),
        next=sum(run.next for run in runs) / max(1e-9, sum(run.next for run in full)),
        recall=answers,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
