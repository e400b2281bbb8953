"""`compare`: every codec at equal whole-file bytes, packed, restored and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinfold.budget import Budget, Calibration
from kinfold.checkpoint import Checkpoint
from kinfold.compare.metric import Metric
from kinfold.compare.outputs import Probe, bare_tensors, write_bare
from kinfold.compare.result import Cell, Comparison, Measure, Quality
from kinfold.compare.settings import BUDGETS, Setting, read_budgets, read_settings
from kinfold.errors import BudgetError, CheckpointError
from kinfold.pack import pack, restore
from kinfold.pack.format import PackFile
from kinfold.pack.restore import weights
from kinfold.pack.source import Sources
from kinfold.report.progress import progress


def compare(
    base: str | Path,
    variant: str | Path,
    *,
    budgets: str | Sequence[str | int] = BUDGETS,
    codecs: str | Sequence[str] | None = None,
    calibration: Calibration | None = None,
    rows: str | Path | None = None,
    metric: str | Callable[[Path], float] | None = None,
    seed: int = 0,
) -> Comparison:
    """Pack a variant with every codec at every budget, restore it, and measure what came back.

    Two models are in memory at a time; with a metric, one restored directory is on the disk at a time.

    Args:
        base: model directory of the base.
        variant: model directory of the fine-tune.
        budgets: bytes of the whole file (`4MB`) or fractions of the reference size (`1/64`).
        codecs: `dare`, or with options `dare:value_bits=1`; None takes all that ship, at their usual options.
        calibration: rows for the scores that need them; not the rows that measure.
        rows: JSONL of `text`, `input_ids` or `prompt` and `completion` on which outputs are compared; None draws
            random tokens.
        metric: a function of a model directory, higher is better, or its name as `package.module:function`.
            Without one, codecs are ranked by the divergence of the outputs.
        seed: of the packs and the random tokens.

    Raises:
        CheckpointError: a directory cannot be read, the two are equal or strangers, or the model cannot be
            loaded and there is no metric.
        BudgetError: no budget, or a malformed one; one that is too small is a cell of the result.
        CodecError: an unknown codec or option.
        CalibrationError: rows are malformed or do not fit the model.
        MetricError: the metric cannot be found, fails, or gives no finite number.
    """
    wanted = read_budgets(budgets)
    settings = read_settings(codecs, calibrated=calibration is not None)
    judge = Metric.find(metric) if metric is not None else None
    sources = Sources.open(Checkpoint.open(base), Checkpoint.open(variant))
    _require_delta(sources)
    reference_bytes = sources.reference_bytes
    notes: list[str] = []
    probe = _probe(sources, rows, judge, seed, notes)
    bench = _Bench(sources, probe, judge, calibration, seed)
    with progress("compare", len(settings) * len(wanted) * reference_bytes) as advance:
        uncompressed, bare = bench.uncompressed(), bench.bare()
        cells = []
        for budget in wanted:
            for setting in settings:
                cells.append(bench.cell(setting, budget))
                advance(reference_bytes, cells[-1].bytes or 0)
    measure: Measure = "divergence" if judge is None else "gain"
    if uncompressed.score is not None and bare.score is not None:
        low, high = bare.score, uncompressed.score
        if high > low:
            uncompressed, bare = _with_gain(uncompressed, low, high), _with_gain(bare, low, high)
            cells = [replace(cell, quality=_with_gain(cell.quality, low, high)) for cell in cells]
        else:
            measure = "score"
            notes.append(f"the variant scores {high:.4g}, the bare base {low:.4g}: there is no gain to recover")
    return Comparison(
        base=str(base),
        variant=str(variant),
        reference_bytes=reference_bytes,
        variant_bytes=sources.variant.nbytes,
        budgets=[budget.text for budget in wanted],
        codecs=[setting.text for setting in settings],
        seed=seed,
        inputs=probe.inputs if probe else "",
        metric=judge.name if judge else None,
        measure=measure,
        divergence_unit=None if probe is None else "nats" if probe.task.has_logits else "relative",
        uncompressed=uncompressed,
        bare=bare,
        cells=cells,
        notes=notes,
    )


@dataclass(frozen=True)
class _Bench:
    """Everything that measures a model, and nothing that changes from cell to cell."""

    sources: Sources
    probe: Probe | None
    judge: Metric | None
    calibration: Calibration | None
    seed: int

    def uncompressed(self) -> Quality:
        score = self.judge(self.sources.variant.directory) if self.judge else None
        return Quality(0.0, 0.0 if self.probe else None, score)

    def bare(self) -> Quality:
        away = self.probe.divergence(dict(bare_tensors(self.sources))) if self.probe else None
        score = None
        if self.judge:
            with self._folder() as directory:
                write_bare(self.sources, directory)
                score = self.judge(directory)
        return Quality(1.0, away, score)

    def cell(self, setting: Setting, budget: Budget) -> Cell:
        base, variant = self.sources.base, self.sources.variant
        limit = budget.file_bytes(self.sources.reference_bytes) or 0
        with self._folder() as directory:
            out = directory.with_suffix(".kin.safetensors")
            try:
                report = pack(
                    base.directory,
                    variant.directory,
                    out,
                    codec=setting.codec,
                    options=setting.options,
                    budget=None if setting.codec == "exact" else budget.text,
                    calibration=self.calibration,
                    seed=self.seed,
                )
            except BudgetError as error:
                return Cell(setting.text, budget.text, None, error.least_bytes or None, None)
            if report.file_bytes > limit:  # `exact` knows no budget
                return Cell(setting.text, budget.text, None, report.file_bytes, None)
            away = self.probe.divergence(weights(PackFile.open(out), base)) if self.probe else None
            score = None
            if self.judge:
                restore(out, base.directory, directory)
                score = self.judge(directory)
        return Cell(setting.text, budget.text, report.file_bytes, None, Quality(report.error or 0.0, away, score))

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A place for one model directory, called as the variant's is; gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="kinfold-") as folder:
            yield Path(folder) / self.sources.variant.directory.resolve().name


def _probe(
    sources: Sources, rows: str | Path | None, judge: Metric | None, seed: int, notes: list[str]
) -> Probe | None:
    """None, with a note, where only the user's metric can ask the model."""
    try:
        return Probe.load(sources.variant.directory, rows, seed)
    except CheckpointError as problem:
        if judge is None or rows is not None:
            hint = problem.hint or "--metric package.module:function measures any model"
            raise CheckpointError(str(problem), hint=hint) from problem
        notes.append(f"outputs were not compared: {problem}")
        return None


def _require_delta(sources: Sources) -> None:
    """Raise CheckpointError where no tensor differs."""
    if not sources.reference_bytes:
        raise CheckpointError(
            f"every tensor of `{sources.variant.directory}` is equal to one of `{sources.base.directory}`: there is "
            "no delta to compare codecs on",
            hint=f"kinfold diff {sources.base.directory} {sources.variant.directory}",
        )


def _with_gain(quality: Quality | None, low: float, high: float) -> Any:
    """The same with its gain, where it has a score."""
    if quality is None or quality.score is None:
        return quality
    return replace(quality, gain=(quality.score - low) / (high - low))
