"""Members coded each alone by `fold`, side by side in one file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from kinfold.errors import BudgetError, CodecError
from kinfold.family.file import Part, family_bytes
from kinfold.family.manifest import FamilyManifest
from kinfold.pack.format import FILES, PackFile, pack_bytes
from kinfold.pack.member import Member
from kinfold.pack.members import materialise
from kinfold.pack.write import pack

_CLOSE = 512  # bytes: a second round for less is not worth its time
_SPARE = 64  # bytes
_ROUNDS = 4


def pack_members(
    members: Sequence[Member], skeleton: FamilyManifest, total: int, text: str
) -> tuple[FamilyManifest, dict[str, bytes], list[Part], int]:
    """Pack every member at its share of `total` bytes: its header, and the rest in proportion to its changed weights.

    Packs that fit their share are taken over as they are.

    Raises:
        BudgetError: the shares are too small.
    """
    weights = [member.reference_bytes for member in members]
    headers = [_header(member) for member in members]
    room, least = total, 0
    for _ in range(_ROUNDS):
        rest = max(room - sum(headers), 0)
        shares = [own + rest * weight // max(sum(weights), 1) for own, weight in zip(headers, weights, strict=True)]
        parts = []
        for member, share, own, weight in zip(members, shares, headers, weights, strict=True):
            try:
                parts.append(_packed(member, share, skeleton.seed))
            except CodecError as error:
                raise CodecError(f"`{member.name}`: {error}", hint="mend that member, or leave it out") from error
            except BudgetError as error:
                more = max(error.least_bytes - own, 0) * sum(weights)  # every share grows with the whole
                raise _too_small(total, text, member.name, sum(headers) + -(-more // max(weight, 1))) from error
        size = family_bytes(skeleton, {}, parts)
        if size <= total:
            return skeleton, {}, parts, size
        room, least = room - (size - total) - _CLOSE, size
    raise BudgetError(
        f"a budget of `{text}` is {total} bytes; these members need {least}",
        hint=f"--budget {least}",
        least_bytes=least,
    )


def _too_small(total: int, text: str, name: str, least: int) -> BudgetError:
    return BudgetError(
        f"a budget of `{text}` is {total} bytes; the share of `{name}` is too small for it, about {least} would do",
        hint=f"--budget {-(-least // 1000)}kB",
        least_bytes=least,
    )


def _header(member: Member) -> int:
    """What a pack of it takes at least, a little more than without any payload."""
    manifest, files = member.skeleton(codec="fold")
    return int(1.02 * pack_bytes(manifest, len(files))) + _SPARE


def _packed(member: Member, share: int, seed: int) -> Part:
    if member.kind == "pack" and member.path.stat().st_size <= share:
        return absorbed(member.name, PackFile.open(member.path))
    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder:
        directory = member.path
        if member.kind != "model":
            directory = Path(folder) / "model"
            materialise(member, directory)
        out = Path(folder) / "member.kin.safetensors"
        pack(member.base.checkpoint.directory, directory, out, budget=share, seed=seed)
        return absorbed(member.name, PackFile.open(out))


def absorbed(name: str, opened: PackFile) -> Part:
    """A pack as a member of a family; nothing of it changes."""
    payloads = b"".join(data for _, data in opened.payloads())
    files = opened.entry(FILES) if FILES in opened.entries else b""
    return Part(name, opened.manifest.model_copy(update={"entries": {}}), payloads + files)
