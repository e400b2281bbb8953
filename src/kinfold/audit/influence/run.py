"""`influence`: which training rows made a variant answer so."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinfold.audit.influence import subject as subjects
from kinfold.audit.influence.baselines import Bm25
from kinfold.audit.influence.collect import fill, gradients_of, plan
from kinfold.audit.influence.estimate import Estimate
from kinfold.audit.influence.listing import Listing
from kinfold.audit.influence.mask import Quota
from kinfold.audit.influence.metrics import mislabel_auc
from kinfold.audit.influence.ranking import Ranking, own_scores, rank, weighted
from kinfold.audit.influence.report import InfluenceReport
from kinfold.audit.influence.rows import Rows, check_rows, rows_of, wrong_rows
from kinfold.audit.influence.scores import sweep
from kinfold.audit.influence.settings import Blocks, CurvatureKind, Layout, Spec
from kinfold.audit.influence.store import GradientStore, row_hash
from kinfold.errors import AuditError
from kinfold.pack.member import PathLike
from kinfold.tasks import MAX_TOKENS


def influence(
    variant: PathLike,
    *,
    base: PathLike | None = None,
    train: Rows,
    probe: Rows | None = None,
    gradients: PathLike | None = None,
    keep: int = 4096,
    mask: Literal["entry", "neuron"] = "entry",
    masks: int = 1,
    quota: Quota = "sqrt",
    modules: Sequence[str] | None = None,
    blocks: Blocks = "module",
    curvature: CurvatureKind = "fisher",
    damping: float | Literal["sweep"] = 0.3,
    at: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    max_tokens: int = MAX_TOKENS,
    task: str = "auto",
    top: int = 20,
    full: bool = False,
    batch_size: int = 16,
    device: str = "auto",
    memory_limit: int = 2 << 30,
    seed: int = 0,
) -> InfluenceReport:
    """Say which training rows lowered or raised a variant's loss on probe rows, and which it learned by heart.

    A seeded subset of the entries of each row's gradient is kept (arXiv 2509.15651 calls it dropout), and scores are
    G (F + lam I)^-1 P^T in these coordinates (see `scores`). Above 0, the training row lowers the probe's loss. It is
    a local, damped, linear estimate: neither a proof that a row was used, nor the effect of removing it. Baselines
    (BM25, gradient cosine, the plain loss) stand beside every score.

    Args:
        variant: model directory, pack, or PEFT adapter.
        base: its model directory; needed for packs and adapters. With it, only linear modules that differ are
            looked at; without it, all are.
        train: the rows it was trained on: a JSONL file or a list, with `text` or `input_ids`, and `label` for a
            classifier; or for a causal LM `prompt` and `completion`, whose loss is that of the completion. With a
            boolean `wrong` in every row, AUCs of finding these are reported.
        probe: rows of the same kind to be explained; None for self-influence only.
        gradients: folder to keep the compressed gradients in; rows that it has already are not computed again.
        keep: coordinates in all; more are better, and cost 2 bytes a row each.
        mask: `entry`, single entries; `neuron`, a block of outputs and inputs.
        masks: average over this many masks of keep / masks coordinates.
        quota: how `keep` is shared among modules: by the root of their sizes, equally, or by size.
        modules: the base's names of modules, instead of those that differ: give the same for all of a family, and
            their stores share coordinates.
        blocks: curvature within a `module` only, or `joint`.
        curvature: damped empirical `fisher`, or `identity`.
        damping: of F, relative to the mean of its eigenvalues; `sweep` takes the best of .03 to 3 where the rows say
            which are `wrong`.
        at: where gradients are taken on the way from the base, 0, to the variant, 1. At the end of training those of
            rows that taught the same cancel each other; at 0.25 they agree, which finds the rows of a fact.
        reduction: of the losses of a row's tokens.
        max_tokens: longer rows are cut to this many, or to what the model reads at once.
        task: `auto`, `causal-lm`, `sequence-classification` or `pooled-head`.
        top: rows to list at each end.
        full: keep the scores of all pairs in `report.scores`.
        batch_size: most rows a batch.
        device: `auto`, or as torch names it.
        memory_limit: bytes that curvature and kept scores may take.
        seed: of the mask.

    Raises:
        AuditError: settings or rows that do not fit, nothing to look at, gradients that are not finite.
        GradientStoreError: `gradients` is damaged, or of another variant or setting.
        CalibrationError: a file of rows cannot be read.
        CheckpointError, PackError, AdapterError, WrongBaseError: the variant or base cannot be read.
    """
    if min(top, batch_size, max_tokens) < 1:
        counts = f"top is {top}, batch_size {batch_size} and max_tokens {max_tokens}"
        raise AuditError(f"{counts}; whole numbers of 1 or more are allowed")
    spec = Spec(
        keep=keep,
        compressor=mask,
        masks=masks,
        quota=quota,
        blocks=blocks,
        curvature=curvature,
        damping=1.0 if damping == "sweep" else damping,
        seed=seed,
    )
    if mask not in ("entry", "neuron") or reduction not in ("mean", "sum"):
        raise AuditError(f"mask {mask!r} with reduction {reduction!r}; entry or neuron, and mean or sum are allowed")
    rows, asked = rows_of(train, "training"), None if probe is None else rows_of(probe, "probe")
    wrong = wrong_rows(rows, damping)
    with subjects.opened(variant, base, modules, task, device, at, max_tokens) as subject:
        check_rows(subject, rows, "training")
        check_rows(subject, asked or [], "probe")
        compressors, store_spec = plan(subject, spec, reduction)
        layout = Layout.of(compressors, spec)
        _check_memory(layout, len(rows), len(asked or []), full, memory_limit)
        with tempfile.TemporaryDirectory(prefix="kinfold-") if gradients is None else nullcontext("") as folder:
            store = _store(Path(gradients) if gradients is not None else Path(folder) / "rows.grads", store_spec)
            fill(store, subject, rows, compressors, reduction, batch_size)
            probes = gradients_of(subject, asked, compressors, reduction, batch_size) if asked else None
            hashes = [row_hash(row) for row in rows]
            weights = Counter(hashes)
            estimate = Estimate.of(weighted(store, layout, weights), layout, len(rows), curvature)
            swept: tuple[tuple[float, float], ...] = ()
            if damping == "sweep":
                damping, swept = _swept(store, estimate, weights, hashes, wrong)
            estimate = estimate.damped(damping)
            ranking = rank(store, estimate, weights, None if probes is None else probes[0] * layout.rescale, top, full)
            store_bytes = store.nbytes
    listing = Listing(rows, hashes, ranking, Bm25(rows) if asked else None, top)
    place = {one: number for number, one in enumerate(ranking.hashes)}
    order = np.array([place[one] for one in hashes])
    own, losses, norms = ranking.own[order], ranking.losses[order], ranking.norms[order]
    return InfluenceReport(
        variant=str(variant),
        base="" if base is None else str(base),
        task=subject.kind,
        reduction=reduction,
        at=at,
        rows=len(rows),
        keep=layout.width,
        size=sum(c.size for c in compressors) // masks,
        modules=len(subject.modules),
        damping=damping,
        swept=swept,
        effective=estimate.effective,
        store_bytes=store_bytes,
        left_out=tuple(subject.left_out),
        left_share=subject.left_share,
        probes=tuple(listing.probes(asked, probes[1])) if asked and probes is not None else (),
        self_top=tuple(listing.own()),
        auc=_aucs(own, losses, norms, None if not asked else ranking.mean[order], wrong),
        notes=tuple(_notes(subject, ranking, estimate, layout, keep, damping, curvature)),
        scores=None if ranking.scores is None else ranking.scores[order],
        mean_scores=ranking.mean[order] if asked else None,
        self_scores=own,
        losses=losses,
        norms=norms,
    )


def _check_memory(layout: Layout, rows: int, probes: int, full: bool, limit: int) -> None:
    widths = [columns.stop - columns.start for columns, _ in layout.groups]
    need = sum(8 * width * (width + min(width, rows)) for width in widths) + 16 * probes * layout.width
    need += 4 * rows * probes if full else 0
    if need > limit:
        raise AuditError(
            f"curvature and scores would take {need} bytes, {limit} are allowed by the memory limit",
            hint="a smaller --keep, --blocks module, fewer probes, or without --full",
        )


def _store(path: Path, spec: Any) -> GradientStore:
    """The store at `path`, made where there is none."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return GradientStore.create(path, spec)
    store = GradientStore.open(path)
    store.require(spec)
    return store


def _swept(
    store: GradientStore, estimate: Estimate, weights: Counter[bytes], hashes: list[bytes], wrong: Any
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The damping whose self-influence finds the wrong rows best."""

    def auc(damping: float) -> float:
        own, names = own_scores(store, estimate.damped(damping), weights)
        found = dict(zip(names, own, strict=True))
        return mislabel_auc(np.array([found[one] for one in hashes]), wrong)

    best, tried = sweep(auc)
    return best, tuple(tried)


def _aucs(
    own: np.ndarray, losses: np.ndarray, norms: np.ndarray, mean: np.ndarray | None, wrong: np.ndarray | None
) -> dict[str, float]:
    if wrong is None:
        return {}
    figures = {"self": own, "loss": losses, "norm": norms}
    if mean is not None:
        figures["minus mean score"] = -mean
    return {name: mislabel_auc(values, wrong) for name, values in figures.items()}


def _notes(
    subject: subjects.Subject,
    ranking: Ranking,
    estimate: Estimate,
    layout: Layout,
    keep: int,
    damping: float,
    curvature: str,
) -> list[str]:
    notes = list(subject.notes)
    if layout.width < keep:
        notes.append(f"{keep} coordinates were asked for, the modules have or round to {layout.width}")
    zero = int((ranking.norms == 0).sum())
    if zero:
        notes.append(f"{zero} rows have a gradient of zero, and score 0")
    if curvature == "fisher":
        ratios = [damping * size / min(estimate.rows, size) for _, size in layout.groups]
        notes.append(f"as a multiple of trace(F)/d the damping is {min(ratios):.3g} to {max(ratios):.3g}")
        if estimate.effective > layout.width / layout.masks / 2:
            notes.append(
                f"the rows span {estimate.effective:.0f} directions, more than half of the {layout.width} kept: "
                "a larger --keep would tell them apart better"
            )
    return notes
