"""Members coded each alone by `fold`, side by side in one file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kinfold.errors import BudgetError, CodecError
from kinfold.family.file import Part, family_bytes
from kinfold.family.manifest import FamilyManifest
from kinfold.pack.format import PackFile, pack_bytes
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

    Packs coded with loss are taken over as they are, and the others share what these leave.

    Raises:
        BudgetError: the shares are too small.
    """
    ready = {member.name: absorbed(member.name, PackFile.open(member.path)) for member in members if _stays(member)}
    taken = sum(member.path.stat().st_size for member in members if member.name in ready)
    others = [member for member in members if member.name not in ready]
    headers = {member.name: _header(member) for member in others}
    whole = sum(member.reference_bytes for member in others)
    room, least = total, 0
    for _ in range(_ROUNDS):
        rest = max(room - taken - sum(headers.values()), 0)
        parts = dict(ready)
        for member in others:
            own, weight = headers[member.name], member.reference_bytes
            try:
                parts[member.name] = _packed(member, own + rest * weight // max(whole, 1), skeleton.seed)
            except CodecError as error:
                raise CodecError(f"`{member.name}`: {error}", hint="mend that member, or leave it out") from error
            except BudgetError as error:
                more = -(-max(error.least_bytes - own, 0) * whole // max(weight, 1))  # every share grows with the whole
                raise _too_small(total, text, member.name, taken + sum(headers.values()) + more) from error
        ordered = [parts[member.name] for member in members]
        size = family_bytes(skeleton, {}, ordered)
        if size <= total:
            return skeleton, {}, ordered, size
        room, least = room - (size - total) - _CLOSE, size
        if not others:
            break
    raise BudgetError(
        f"a budget of `{text}` is {total} bytes; these members need {least}",
        hint=f"--budget {least}",
        least_bytes=least,
    )


def _stays(member: Member) -> bool:
    """Whether it is taken over as it is: what was coded with loss would only lose more, or become noise of noise."""
    return member.kind == "pack" and member.codec != "exact"


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
        part = absorbed(member.name, PackFile.open(out))
    if member.kind == "model":
        return part
    variant = part.manifest.variant.model_copy(update={"name": member.name})  # not the temporary folder's
    return replace(part, manifest=part.manifest.model_copy(update={"variant": variant}))


def absorbed(name: str, opened: PackFile) -> Part:
    """A pack as a member of a family; nothing of it changes."""
    payloads = b"".join(data for _, data in opened.payloads())
    return Part(name, opened.manifest.model_copy(update={"entries": {}}), payloads + opened.files)
