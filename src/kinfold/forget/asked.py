"""What `forget` was asked for, and every refusal that needs no model: training takes long, and mistakes should not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from kinfold.checkpoint import Checkpoint
from kinfold.checkpoint.atomic import probe_file, refuse_existing
from kinfold.errors import ForgetOptionError, ForgetRowsError, OutputError
from kinfold.forget.config import ForgetConfig
from kinfold.forget.models import Material
from kinfold.forget.rivals import RIVALS
from kinfold.forget.subject import Subject
from kinfold.forget.targets import Targets
from kinfold.forget.tokens import Reader
from kinfold.pack.member import stem
from kinfold.pack.write import recipe

METHODS = ("ofmu", *RIVALS, "rmu")
SEEDS = 1 << 63


@dataclass(frozen=True)
class Asked:
    """What all steps need; see `forget` for the names."""

    base: Path
    variant: Path
    out: Path
    method: str
    config: ForgetConfig
    permanent: bool
    codec: str
    budget: str | int | None
    seed: int
    force: bool
    overwrite: bool
    relearn: int
    reference: Path | None


def check_options(asked: Asked, target: Any, unseen: bool, max_tokens: int | None) -> None:
    """Refuse options out of range, or which do not fit each other.

    Raises:
        ForgetOptionError: one of them.
        BudgetError, CodecError: of a permanent pack.
    """
    if asked.method not in METHODS:
        raise ForgetOptionError(f"method is {asked.method!r}; {', '.join(map(repr, METHODS))} are allowed")
    if unseen and target != "auto":
        raise ForgetOptionError("unseen rows and a target both say which losses to reach", hint="leave one of them out")
    if target != "auto":
        if not isinstance(target, Real):
            raise ForgetOptionError(f"target is {target!r}; 'auto' or a number of nats is allowed")
        Targets.fixed(float(target))
    if asked.permanent:
        recipe(asked.codec, None, asked.budget, None, asked.seed)
    elif asked.codec != "exact" or asked.budget is not None:
        raise ForgetOptionError(
            "codec and budget are of a permanent pack; else the delta is kept as 16-bit factors", hint="--permanent"
        )
    if max_tokens is not None and max_tokens < 1:
        raise ForgetOptionError(f"max_tokens is {max_tokens}; 1 or more is allowed")
    if asked.relearn < 0:
        raise ForgetOptionError(f"relearn is {asked.relearn}; 0 or more steps are allowed")
    if not 0 <= asked.seed < SEEDS:
        raise ForgetOptionError(f"the seed is {asked.seed}; 0 to 2**63 - 1 is allowed")


def check_output(asked: Asked, rows: Iterable[Any], dry_run: bool) -> None:
    """Refuse an output that cannot be written, or that would replace what is read.

    Args:
        asked: with the output, and the models that are read.
        rows: files of rows, and whatever else stands for rows.
        dry_run: nothing will be written.

    Raises:
        OutputError: one of these.
    """
    out = asked.out
    refuse_existing(out, asked.overwrite or dry_run)
    if not stem(out):
        raise OutputError(f"`{out}` has no name before its ending", hint="-o NAME.kin.safetensors")
    read = [asked.base, asked.reference, *(Path(one) for one in rows if isinstance(one, (str, Path)))]
    if not (asked.permanent and asked.variant.is_file()):  # to replace the variant's own pack is what that is for
        read.append(asked.variant)
    for path in read:
        if path is not None and replaces(out, path):
            raise OutputError(f"`{out}` would replace what is read from `{path}`", hint="choose another -o")
    if not dry_run:
        probe_file(out)


def replaces(out: Path, read: Path) -> bool:
    """Whether writing a file would replace another, or one in a directory that is read."""
    out, read = out.resolve(), read.resolve()
    return out == read or (out.exists() and read.is_dir() and out.is_relative_to(read))


def reference_reader(asked: Asked, task: str, device: str, cut: int | None) -> Reader | None:
    """What the reference reads, by loading it as it will be measured; it is freed again.

    Raises:
        CheckpointError, ForgetError: it cannot be loaded, or no loss of a row is known for it.
    """
    if asked.reference is None:
        return None
    Checkpoint.open(asked.reference)
    return Subject.load(asked.reference, task, device).reader(cut)


def check_reference(reader: Reader, kind: str, material: Material) -> None:
    """Refuse a reference that cannot read the rows as the variant's tokens and labels.

    Raises:
        ForgetOptionError: it is of another task.
        ForgetRowsError: a row is too long, or has a token or label that it does not know.
    """
    if reader.kind != kind:
        raise ForgetOptionError(f"the reference is of {reader.kind!r}, the variant of {kind!r}")
    for one in material.all():
        for what, found, known in (
            ("token", max(one.ids), reader.vocabulary - 1),
            ("length", len(one.ids), reader.context or len(one.ids)),
            ("label", one.label or 0, reader.classes - 1 if kind != "causal-lm" else 0),
        ):
            if found > known:
                raise ForgetRowsError(
                    f"a row has {what} {found}, the reference takes at most {known}",
                    hint="give a --reference of the variant's own base, or none",
                )
