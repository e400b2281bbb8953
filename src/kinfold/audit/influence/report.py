"""What an influence audit reports: rows by score with the baselines beside, and its HTML page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kinfold.checkpoint import atomic_file
from kinfold.report.html import write_page
from kinfold.tasks import Row

TEXT = 2000  # characters of a row that a report keeps


@dataclass(frozen=True)
class RankedRow:
    """A training row as one probe sees it.

    Attributes:
        row: its place in the training rows, from 0; of equal rows the first.
        copies: how often it occurs there.
        text: its text, or its tokens.
        label: its label, where it has one.
        score: above 0 where the row lowers the probe's loss; None without a probe.
        cosine, bm25: what the baselines say of the pair.
        self_score, loss, norm: of the row alone: influence on itself, training loss in nats, gradient norm.
    """

    row: int
    copies: int
    text: str
    label: Any
    score: float | None
    cosine: float | None
    bm25: float | None
    self_score: float
    loss: float
    norm: float


@dataclass(frozen=True)
class ProbeInfluence:
    """One probe, or the mean over all of them.

    Attributes:
        probe: its place in the probe rows, from 0; None for the mean over all.
        text, label: its own.
        loss: nats.
        top, bottom: training rows of the highest score, and of the lowest.
        shared: of the top rows, the share that a baseline puts into its own top: `bm25`, `cosine`.
        firsts: each baseline's first training row.
    """

    probe: int | None
    text: str
    label: Any
    loss: float
    top: tuple[RankedRow, ...]
    bottom: tuple[RankedRow, ...]
    shared: dict[str, float]
    firsts: dict[str, int]


@dataclass(frozen=True)
class InfluenceSummary:
    """Which training rows moved the answers of a variant; a local, damped, linear estimate.

    Attributes:
        variant, base: as given.
        task, reduction: how a row's loss is taken.
        at: where gradients are taken on the way from the base, 0, to the variant, 1.
        rows: training rows, repeats counted.
        keep: coordinates kept of each gradient, of `size` values in the modules looked at.
        modules: how many.
        damping: relative; `swept` has what a sweep tried, as (damping, AUC of the rows marked `wrong`).
        effective: directions that the gradients span against the damping, of `keep`.
        store_bytes: of the compressed gradients.
        left_out: changed tensors that are not looked at; `left_share` is their share of the delta's energy.
        probes: the mean over all first, where there are several.
        self_top: rows of the highest influence on themselves.
        auc: of rows marked `wrong`, by self-influence and by the baselines; empty where none are marked.
        notes: what a reader must know.
    """

    variant: str
    base: str
    task: str
    reduction: str
    at: float
    rows: int
    keep: int
    size: int
    modules: int
    damping: float
    swept: tuple[tuple[float, float], ...]
    effective: float
    store_bytes: int
    left_out: tuple[str, ...]
    left_share: float | None
    probes: tuple[ProbeInfluence, ...]
    self_top: tuple[RankedRow, ...]
    auc: dict[str, float]
    notes: tuple[str, ...]

    def listed(self) -> Iterator[dict[str, Any]]:
        """One plain dict a listed row: `probe` (a place, `mean` or `self`), `list` (top or bottom), and the row."""
        for probe in self.probes:
            for name, rows in (("top", probe.top), ("bottom", probe.bottom)):
                for row in rows:
                    place = "mean" if probe.probe is None else probe.probe
                    yield {"probe": place, "list": name, **dataclasses.asdict(row)}
        for row in self.self_top:
            yield {"probe": "self", "list": "top", **dataclasses.asdict(row)}


@dataclass(frozen=True)
class InfluenceReport(InfluenceSummary):
    """A summary with the scores of every row, in the order of the rows given.

    Attributes:
        scores: float32 (n, m), where all were asked for; None else.
        mean_scores: float64 (n,), the mean over all probes; None without probes.
        self_scores, losses, norms: float64 (n,) each.
    """

    scores: np.ndarray | None
    mean_scores: np.ndarray | None
    self_scores: np.ndarray
    losses: np.ndarray
    norms: np.ndarray

    def summary(self) -> InfluenceSummary:
        """The part that is small enough for JSON."""
        return InfluenceSummary(**{f.name: getattr(self, f.name) for f in dataclasses.fields(InfluenceSummary)})

    def worst(self, count: int) -> list[int]:
        """Places of suspect rows: those that raise the probes' loss most, or without probes the highest in self."""
        order = -self.self_scores if self.mean_scores is None else self.mean_scores
        return np.argsort(order, kind="stable")[:count].tolist()


def write_lines(path: Path, report: InfluenceSummary) -> None:
    """Every listed row as a JSON line, see `InfluenceSummary.listed`."""
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in report.listed()), "utf-8")


def write_suspects(path: Path, report: InfluenceReport, rows: Sequence[Row], count: int) -> None:
    """The worst rows as they are, see `InfluenceReport.worst`: what `kinfold forget --forget` reads."""
    with atomic_file(path, overwrite=True) as temporary:
        text = "".join(json.dumps(rows[place], ensure_ascii=False) + "\n" for place in report.worst(count))
        temporary.write_text(text, "utf-8")


def write_scores(path: Path, report: InfluenceReport) -> None:
    """All arrays of a report as a safetensors file: `scores` (n, m), where kept, and float64 vectors (n,)."""
    names = ("scores", "mean_scores", "self_scores", "losses", "norms")
    arrays = {name: getattr(report, name) for name in names if getattr(report, name) is not None}
    with atomic_file(path, overwrite=True) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def columns(with_score: bool) -> list[str]:
    """Heads of `cells`."""
    return ["text", "label", "row", *(["score", "cosine", "bm25"] if with_score else []), "self", "loss", "norm"]


def cells(row: RankedRow, width: int = TEXT) -> list[str]:
    """A row of a table; `width` characters of its text."""
    text = " ".join(row.text.split())
    pair = [row.score, row.cosine, row.bm25] if row.score is not None else []
    figures = [_figure(value) for value in (*pair, row.self_score, row.loss, row.norm)]
    number = f"{row.row}" if row.copies == 1 else f"{row.row} (x{row.copies})"
    label = "" if row.label is None else str(row.label)
    return [text if len(text) <= width else text[: width - 1] + "…", label, number, *figures]


def heading(probe: ProbeInfluence, width: int = 200) -> str:
    """What a probe's tables stand under."""
    if probe.probe is None:
        return "mean over all probes"
    text = " ".join(probe.text.split())
    label = "" if probe.label is None else f", label {probe.label}"
    return f"probe {probe.probe}{label}, loss {_figure(probe.loss)}: {text[:width]}"


def agreement(probe: ProbeInfluence) -> str:
    """How much of the top the baselines would have found."""
    parts = [f"{share:.0%} of the top rows are in the top of {name}" for name, share in probe.shared.items()]
    return f"{'; '.join(parts)}; first of " + ", ".join(f"{name}: row {row}" for name, row in probe.firsts.items())


def write_report(path: Path, report: InfluenceSummary) -> None:
    """An HTML page with the rows' texts.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: the disk cannot take it.
    """
    parts: list[dict[str, Any]] = []
    for probe in report.probes:
        for name, rows in (("raise the answer", probe.top), ("oppose it", probe.bottom)):
            note = agreement(probe) if rows is probe.top else ""
            title = f"{heading(probe)} - rows that {name}"
            parts.append({"heading": title, "note": note, "columns": columns(True), "rows": [cells(r) for r in rows]})
    parts.append(
        {
            "heading": "Rows of the highest influence on themselves",
            "note": "Nearly a function of the training loss: compare the two columns before calling a row mislabelled.",
            "columns": columns(False),
            "rows": [cells(dataclasses.replace(row, score=None)) for row in report.self_top],
        }
    )
    parts.append({"heading": "How it was measured", "columns": ["what", "value"], "rows": facts(report)})
    lead = (
        "A score above 0 says that a training row lowers the loss of the probe. It is a local, linear estimate, no "
        "proof that a row was used, and not the effect of removing it."
    )
    write_page(path, f"Influence on {Path(report.variant).name}", lead, parts)


def facts(report: InfluenceSummary) -> list[tuple[str, str]]:
    """What stands below the tables: (name, value) pairs."""
    share = "" if report.left_share is None else f", {report.left_share:.1%} of the delta's energy"
    names = ", ".join(report.left_out[:4]) + (", ..." if len(report.left_out) > 4 else "")
    rate = 1 - min(1.0, report.keep / report.size)
    pairs = [
        ("rows", f"{report.rows}, loss of {report.task} ({report.reduction} over tokens)"),
        ("kept", f"{report.keep} of {report.size} gradient entries in {report.modules} modules (dropped {rate:.2%})"),
        ("stored", f"{report.store_bytes} bytes"),
        ("damping", f"{report.damping:g}; the rows span {report.effective:.0f} directions against it"),
    ]
    if report.left_out:
        pairs.append(("left out", f"{len(report.left_out)} changed tensors{share}: {names}"))
    if report.swept:
        pairs.append(("sweep", ", ".join(f"{damping:g}: AUC {auc:.3f}" for damping, auc in report.swept)))
    if report.auc:
        pairs.append(("AUC, wrong", ", ".join(f"{name} {value:.3f}" for name, value in report.auc.items())))
    return pairs + [("note", note) for note in report.notes]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
