"""Gram matrices of a family, tensor by tensor: a few deltas are held, never a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kinfold.codec.gram import Delta, cross_gram, gram
from kinfold.errors import AuditError
from kinfold.pack.member import Member
from kinfold.report.progress import progress

_FLOAT32 = 4
MEMORY_LIMIT = 2 << 30  # bytes of deltas held at once


@dataclass(frozen=True)
class Grams:
    """Inner products of N deltas.

    Attributes:
        names: of the members.
        total: float64 (N, N), over the whole model.
        tensors: the same for each tensor that any member changed, of sum `total`.
        notes: what a reader must know, one sentence each.
    """

    names: tuple[str, ...]
    total: np.ndarray
    tensors: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()


def member_grams(members: Sequence[Member], *, memory_limit: int = MEMORY_LIMIT) -> Grams:
    """Inner products of opened members of one base. A tensor that a member lacks counts as unchanged in it.

    Args:
        members: of one base.
        memory_limit: bytes of deltas held at once; two deltas always are.

    Raises:
        AuditError: a tensor that some member changed has another shape or kind in another, or a delta is not finite.
    """
    changed: dict[str, list[int]] = {}  # a tensor's name -> those of the members that changed it
    for i, member in enumerate(members):
        for name in member.changed:
            changed.setdefault(name, []).append(i)
    for member in members:
        _require_alike(member, changed)

    def load(i: int, name: str) -> Delta:
        pair = members[i].factors(name)
        return members[i].delta(name) if pair is None else pair

    sizes = {name: members[holders[0]].base.checkpoint.tensors[name].numel for name, holders in changed.items()}
    lacking = {member.name: [name for name in changed if name in member.absent] for member in members}
    notes = [
        f"`{name}` lacks {', '.join(missing)}: counted as unchanged" for name, missing in lacking.items() if missing
    ]
    return _measure([member.name for member in members], sizes, changed, load, memory_limit, notes)


def tensor_grams(members: Mapping[str, Mapping[str, torch.Tensor]], *, memory_limit: int = MEMORY_LIMIT) -> Grams:
    """Inner products of deltas given as tensors.

    Args:
        members: name -> tensor name -> delta, in any floating dtype.
        memory_limit: bytes that float64 copies may take; see `member_grams`.

    Raises:
        AuditError: members differ in names or shapes of tensors, or a delta is not finite.
    """
    names, deltas = list(members), list(members.values())
    for name, other in members.items():
        if other.keys() != deltas[0].keys():
            differ = min(other.keys() ^ deltas[0].keys())
            raise AuditError(f"of `{names[0]}` and `{name}` only one has a tensor `{differ}`; all must have the same")
        for key, tensor in other.items():
            if tensor.shape != deltas[0][key].shape:
                raise AuditError(
                    f"`{key}` is {list(tensor.shape)} in `{name}` and {list(deltas[0][key].shape)} in `{names[0]}`; "
                    "all must have the same shape"
                )
    sizes = {key: tensor.numel() for key, tensor in (deltas[0] if deltas else {}).items()}
    everyone = {key: range(len(names)) for key in sizes}
    return _measure(names, sizes, everyone, lambda i, key: deltas[i][key], memory_limit, [])


def _require_alike(member: Member, changed: Mapping[str, Sequence[int]]) -> None:
    unlike = [name for name in changed if name not in member.own and name not in member.absent]
    if unlike:
        info = member.base.checkpoint.tensors[unlike[0]]
        raise AuditError(
            f"`{unlike[0]}` of `{member.path}` is not {info.dtype} {list(info.shape)} as in the base, and another "
            "member changed that tensor; what is compared must have one shape",
            hint=f"kinfold diff {member.base.checkpoint.directory} {member.path}",
        )


def _measure(
    names: Sequence[str],
    sizes: Mapping[str, int],
    holders: Mapping[str, Sequence[int]],
    load: Callable[[int, str], Delta],
    memory_limit: int,
    notes: Sequence[str],
) -> Grams:
    total, tensors = np.zeros((len(names), len(names))), {}
    with progress(
        "compare deltas", _FLOAT32 * sum(sizes[name] * len(held) for name, held in holders.items())
    ) as advance:
        for name, held in holders.items():
            nbytes = _FLOAT32 * sizes[name]
            at_once = len(held) if len(held) * nbytes <= memory_limit else max(1, memory_limit // (2 * nbytes))
            own = _tensor_gram(lambda i, name=name: load(i, name), held, at_once)
            wrong = np.flatnonzero(~np.isfinite(np.diag(own)))
            if wrong.size:
                raise AuditError(
                    f"the delta of `{name}` in `{names[held[wrong[0]]]}` holds NaN or infinity; it must be finite"
                )
            tensors[name] = np.zeros_like(total)
            tensors[name][np.ix_(held, held)] = own
            total += tensors[name]
            advance(nbytes * len(held))
    return Grams(tuple(names), total, tensors, tuple(notes))


def _tensor_gram(load: Callable[[int], Delta], members: Sequence[int], at_once: int) -> np.ndarray:
    """The Gram matrix in blocks of members, two of which are held: those to the right are read again and again."""
    count = len(members)
    result = np.zeros((count, count))
    for top in range(0, count, at_once):
        block = [load(i) for i in members[top : top + at_once]]
        rows = slice(top, top + len(block))
        result[rows, rows] = gram(block)
        for left in range(top + at_once, count, at_once):
            other = [load(i) for i in members[left : left + at_once]]
            columns = slice(left, left + len(other))
            result[rows, columns] = cross_gram(block, other)
            result[columns, rows] = result[rows, columns].T
    return result
