"""The verbs that packs and families have in common; each looks at what the file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kinfold.errors import FamilyError, PackError
from kinfold.family.file import FamilyFile, is_family
from kinfold.family.look import FamilyReport, report
from kinfold.pack import look
from kinfold.pack.format import PackFile
from kinfold.pack.look import PackInfo, VerifyReport
from kinfold.pack.restore import load as load_pack


def inspect(path: str | Path) -> PackInfo | FamilyReport:
    """Bytes and errors of a pack, tensor by tensor, or of a family, member by member; the base is not needed.

    Raises:
        PackError: neither of the two, or damaged.
    """
    return report(FamilyFile.open(path)) if _is_family(path) else look.inspect(path)


def verify(path: str | Path, base: str | Path | None = None) -> VerifyReport:
    """Check structure and hashes of a pack or a family; with `base`, decode every tensor as well.

    Damage is the answer, not an exception.

    Raises:
        CheckpointError: `base` cannot be read.
        WrongBaseError: `base` is another one.
    """
    return look.verified(path, lambda: _check(path, base)) if _is_family(path) else look.verify(path, base)


def _check(path: str | Path, base: str | Path | None) -> list[str]:
    """Read all of a family, and decode it where the base is given; what was looked at, in words."""
    family = FamilyFile.open(path)
    for layer in family.manifest.shared:
        family.shared(layer)
    for name in family.manifest.members:
        look.check(family.member(name), base)
    decoded = " and decoding" if base is not None else ""
    return [f"hashes{decoded} of {len(family.manifest.members)} members"]


def load(
    path: str | Path,
    base: str | Path,
    *,
    member: str | None = None,
    force: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """A variant as a `transformers` model in memory; nothing is written to disk but its config.

    The model's class is the one the config names. Tensors that class does not know (a head of your own)
    are left out with a warning.

    Args:
        path: a pack, or a family.
        base: model directory of the base.
        member: of the family.
        force: accept another base of fitting shapes.
        dtype: of the model; None keeps the variant's.

    Raises:
        PackError, WrongBaseError: as `restore`.
        FamilyError: `member` is missing, unknown, or given for a pack.
    """
    return load_pack(artefact(path, member), base, force=force, dtype=dtype)


def artefact(path: str | Path, member: str | None) -> PackFile:
    """The pack at `path`, or the member of the family there.

    Raises:
        FamilyError: `member` is missing, unknown, or given for a pack.
        PackError: damaged, or neither of the two.
    """
    if not _is_family(path):
        if member is not None:
            raise FamilyError(f"`{path}` is a pack, it has no member `{member}`", hint="leave --member out")
        return PackFile.open(path)
    family = FamilyFile.open(path)
    if member is None:
        names = ", ".join(family.manifest.members[:20])
        raise FamilyError(f"`{path}` is a family of {names}; one of them must be named", hint="pass --member NAME")
    return family.member(member)


def _is_family(path: str | Path) -> bool:
    try:
        return is_family(Path(path))
    except PackError:  # a damaged file: what reads it next says how
        return False
