"""Which variants vLLM can serve as LoRA, and the adapter folder of one that it can."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kinfold.checkpoint import Checkpoint
from kinfold.checkpoint.adapter import Adapter
from kinfold.errors import AdapterError, KinfoldError, ServeError
from kinfold.family.peft_io import ExportReport, LeftOut, export_member
from kinfold.family.peft_plan import NOISY, VLLM_RANKS
from kinfold.pack.member import Member
from kinfold.serve.vllm.fit import config_changes, text_changes
from kinfold.serve.vllm.settings import Settings

FACTS = "kinfold.json"
_SHOWN = 5  # tensors named in a message


class RefusedError(ServeError, ValueError):
    """A variant is in the store and cannot be served; as a ValueError its words reach the client of vLLM, with 400."""


@dataclass(frozen=True)
class Lora:
    """An adapter that is ready to be served.

    Attributes:
        rank: the largest of a module.
        modules: how many are adapted.
        lost: norm of what is missing, relative to the delta's.
        left_out: variant's tensors that do not travel, why, and their share of the delta's norm.
        notes: what a reader of the server's log should know.
    """

    rank: int
    modules: int
    lost: float
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Lora:
        """Of a folder that `write` made."""
        return cls(**json.loads((folder / FACTS).read_text("utf-8")))

    @property
    def sentence(self) -> str:
        """How it is served, for a log."""
        parts = f": {_listed(self.left_out)}" if self.left_out else ""
        lost = f"; {self.lost:.2%} of its delta's norm is lost{parts}" if self.lost > 1e-6 else ""
        return f"LoRA of rank {self.rank} on {self.modules} modules{lost}"


def write(variant: Member, name: str, out: Path, settings: Settings) -> Lora:
    """Write a variant as an adapter that vLLM takes, or say why it cannot go as one.

    Args:
        variant: of the base that is served.
        name: as requests call it.
        out: an empty folder to fill; what is in it after an error is of no use.
        settings: ranks, tolerance, and whether a part will do.

    Raises:
        RefusedError: the server's rank is too small, or too much of the delta would be missing; the variant's config
            computes otherwise; a module is not in the base's checkpoint; nothing differs from the base.
    """
    if not (variant.changed or variant.whole):
        raise RefusedError(f"`{name}` is equal to the base", hint="ask for the base by its own name")
    if not settings.partial:
        _check_noise(variant, name)
        _check_config(variant, name)
    base = variant.base.checkpoint.directory
    try:
        report = export_member(
            variant,
            out,
            base=str(base),
            rank=settings.max_rank,
            engine="vllm",
            partial=True,
            overwrite=True,
        )
    except AdapterError as cause:
        raise RefusedError(f"`{name}` cannot go as LoRA: {cause}", hint=cause.hint or weights_hint(name)) from cause
    if not settings.partial:
        _check_loss(report, variant, name, settings)
    check_names(out, variant.base.checkpoint, name, settings.max_rank)
    found = Lora(report.rank, report.modules, report.error, _left_out(report), [*report.notes, *_notes(variant)])
    (out / FACTS).write_text(json.dumps(asdict(found), indent=2), "utf-8")
    return found


def own_rank(variant: Member) -> int:
    """The largest rank among the factors that a variant is kept in; 0 where it has none."""
    pairs = (variant.factors(name) for name in variant.changed)
    return max((pair[0].shape[1] for pair in pairs if pair is not None), default=0)


def flag_for(rank: int) -> int | None:
    """The least --max-lora-rank that takes adapters of `rank`; None above vLLM's largest."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def weights_hint(name: str) -> str:
    """What to do with a variant that is no LoRA."""
    return (
        f"serve it as weights: `kinfold store get {name} --store STORE -o PACK`, "
        "`kinfold restore PACK --base BASE -o OUT`, `vllm serve OUT`; or swap it into a running LLM with "
        "kinfold.serve.vllm.patch"
    )


def _check_noise(variant: Member, name: str) -> None:
    if variant.codec in NOISY:
        raise RefusedError(
            f"`{name}` is a `{variant.codec}` pack: it decodes to the delta and unbiased noise of full rank, which no "
            "LoRA can carry",
            hint=weights_hint(name),
        )


def _check_config(variant: Member, name: str) -> None:
    changed = config_changes(variant)
    if changed:
        raise RefusedError(
            f"`{name}` has a config of its own, and a LoRA is computed by the base's: {_listed(changed)} differ",
            hint=weights_hint(name),
        )


def _check_loss(report: ExportReport, variant: Member, name: str, settings: Settings) -> None:
    new = [row for row in report.left_out if row.share is None]
    if report.error <= settings.tolerance and not new:
        return
    what = "tensors that the base lacks" if new else ""
    share = f"{report.error:.1%} of its delta's norm" if report.error > settings.tolerance else ""
    raise RefusedError(
        f"`{name}` would lose {' and '.join(filter(None, (share, what)))} as a LoRA of rank {report.rank}, where "
        f"{settings.tolerance:.1%} may be lost: {_listed([*_missed(report), *_left_out(report)])}",
        hint=_rank_hint(report, variant, settings) or f"{weights_hint(name)}; KINFOLD_VLLM_PARTIAL=1 serves the rest",
    )


def _rank_hint(report: ExportReport, variant: Member, settings: Settings) -> str:
    """The flag, where a larger one is all that the variant's own factors need."""
    flag = flag_for(own_rank(variant))
    if report.left_out or flag is None or flag <= settings.max_rank:
        return ""
    return (
        f"start the server with --max-lora-rank {flag}; where that stands in a config file, set "
        f"KINFOLD_VLLM_MAX_LORA_RANK={flag} as well"
    )


def _missed(report: ExportReport) -> list[str]:
    worst = max(report.tensors, key=lambda row: row.error, default=None)
    return [f"rank {worst.rank} misses {worst.error:.1%} of `{worst.name}`"] if worst and worst.error > 0 else []


def _left_out(report: ExportReport) -> list[str]:
    """Reason by reason: which tensors, and their share of the delta's norm."""
    reasons: dict[str, list[LeftOut]] = {}
    for row in report.left_out:
        reasons.setdefault(row.why, []).append(row)
    lines = []
    for why, rows in reasons.items():
        rows = sorted(rows, key=lambda row: -1.0 if row.share is None else -row.share)
        more = f" and {len(rows) - 2} more" if len(rows) > 2 else ""
        known = [row.share for row in rows if row.share is not None]
        share = f"{math.sqrt(sum(known)):.2%} of the norm" if known else "new"
        lines.append(f"{', '.join(f'`{row.name}`' for row in rows[:2])}{more} ({share}): {why}")
    return lines


def _notes(variant: Member) -> list[str]:
    texts, settings = text_changes(variant), config_changes(variant)
    notes = [f"its own {_listed(texts)} is not used; vLLM has the base's for all"] if texts else []
    return notes + ([f"its config has other {_listed(settings)}; vLLM computes by the base's"] if settings else [])


def _listed(rows: list[str]) -> str:
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return "; ".join(rows[:_SHOWN]) + more


def check_names(folder: Path, base: Checkpoint, name: str, max_rank: int) -> None:
    """Every adapted module must be in the base's checkpoint under the same name, shape for shape.

    vLLM compares the last part of a name alone: it loads an adapter whose names do not fit, lists it, and answers
    with the base's tokens.

    Raises:
        RefusedError: a module or shape is not the base's, or a rank is over `max_rank`.
    """
    try:
        adapter = Adapter.open(folder)
    except KinfoldError as cause:
        raise RefusedError(f"`{name}`: {cause}", hint=cause.hint) from cause
    wrong = [
        module
        for module, lora in adapter.loras.items()
        if (info := base.tensors.get(f"{module}.weight")) is None or info.shape != lora.shape
    ]
    if wrong:
        raise RefusedError(
            f"`{name}` adapts {len(wrong)} modules that `{base.directory}` does not have by these names and shapes, so "
            f"vLLM would answer with the base's tokens: {_listed(wrong)}",
            hint="save the base with the transformers class that its config names (save_pretrained), and pack again",
        )
    rank = max((lora.rank for lora in adapter.loras.values()), default=0)
    if rank > max_rank:
        raise RefusedError(
            f"`{name}` has rank {rank}, and this server takes {max_rank}", hint=f"--max-lora-rank {flag_for(rank)}"
        )
