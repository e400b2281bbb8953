"""Which tensors the merged model has, and where each comes from: what to do with task heads."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kinfold.checkpoint import DTYPES
from kinfold.checkpoint.header import size_of
from kinfold.errors import MergeError
from kinfold.pack.member import Base, Member
from kinfold.pack.units import FLOATS

_SHOWN = 6  # names listed in a message
_BY_TYPE = {kind: name for name, kind in DTYPES.items() if name in FLOATS}


@dataclass(frozen=True)
class Output:
    """A tensor of the merged model.

    Attributes:
        name: in the merged model.
        dtype: as safetensors calls it.
        shape: of the tensor.
        base: its name in the base; None where the base has no such tensor of this shape.
        merged: every member has a delta for it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: str | None
    merged: bool

    @property
    def nbytes(self) -> int:
        return size_of(self.dtype, self.shape)


@dataclass(frozen=True)
class Layout:
    """All tensors of the merged model, in order.

    Attributes:
        outputs: sorted by name.
        owner: the member whose names, heads and files the model has; None for the base.
        kept: names of the merged model that are whole tensors of the owner's, or of the base's, because they could
            not be merged.
        left_out: MEMBER/TENSOR, or base/TENSOR, of what the merged model does not have.
    """

    outputs: list[Output]
    owner: Member | None
    kept: list[str]
    left_out: list[str]


def lay_out(base: Base, members: Sequence[Member], heads: str, dtype: str | None) -> Layout:
    """Decide by `heads`: `error`, `base`, or the name of a member.

    Args:
        base: of all members.
        members: at least one.
        heads: what to do with tensors that not every member shares with the base.
        dtype: of all floating-point tensors of the merged model, a safetensors name; None keeps the owner's.

    Raises:
        MergeError: `heads` is neither of these, or is `error` and there are such tensors; they are listed.
    """
    owner = None if heads in ("error", "base") else _member(members, heads)
    if heads == "error":
        _refuse_misfits(members)
    shared = [name for name in base.checkpoint.tensors if all(name in member.own for member in members)]
    if owner is None:
        specs = {name: (info.dtype, info.shape) for name, info in base.checkpoint.tensors.items()}
        own = {name: name for name in shared}
    else:
        specs, own = dict(owner.specs), {owner.own[name]: name for name in shared}
    outputs = [
        Output(name, dtype if dtype and kind in FLOATS else kind, shape, own.get(name), name in own)
        for name, (kind, shape) in sorted(specs.items())
    ]
    lost = [f"{member.name}/{name}" for member in members if member is not owner for name in member.whole]
    lost += [f"base/{name}" for name in owner.absent] if owner else []
    return Layout(outputs, owner, [output.name for output in outputs if not output.merged], lost)


def _refuse_misfits(members: Sequence[Member]) -> None:
    found = []
    for member in members:
        found += [f"`{name}` is not in `{member.name}`" for name in member.absent]
        for name in member.whole:
            kind, shape = member.specs[name]
            found.append(f"`{name}` {kind}{list(shape)} of `{member.name}` has no counterpart in the base")
    if found:
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise MergeError(
            f"not all tensors can be merged: {'; '.join(found[:_SHOWN])}{more}",
            hint=f"--heads base leaves new ones out; --heads {members[0].name} takes that member's",
        )


def _member(members: Sequence[Member], name: str) -> Member:
    for member in members:
        if member.name == name:
            return member
    names = [member.name for member in members]
    near = difflib.get_close_matches(name, [*names, "base", "error"], 1)
    raise MergeError(
        f"heads={name!r} is no member; it is error, base, or one of {', '.join(names)}",
        hint=f"--heads {near[0]}" if near else "",
    )


def dtype_name(dtype: str | torch.dtype | None) -> str | None:
    """The safetensors name of a floating-point dtype given as torch has it, or by its name (`bfloat16`).

    Raises:
        MergeError: anything else.
    """
    if dtype is None:
        return None
    kind = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if kind not in _BY_TYPE:
        allowed = ", ".join(str(one).removeprefix("torch.") for one in _BY_TYPE)
        raise MergeError(f"dtype {dtype} is none a merged model can have: it is one of {allowed}")
    return _BY_TYPE[kind]
