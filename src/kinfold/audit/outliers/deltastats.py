"""A variant as one row of numbers: statistics of its delta, tensor by tensor.

Of each matrix (as outputs x the rest): `norm`, log10 of its Frobenius norm over the base's; `stable_rank`, ln of
sum s^2 / s_1^2; `effective_rank`, the entropy of s^2 / sum s^2 in nats; `kurtosis`, ln of m4 / m2^2 of its entries;
`energy`, log10 of its share of the whole delta's squared norm. Vectors of one layer are one, with three of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from kinfold.checkpoint import Checkpoint
from kinfold.codec.lowrank import as_matrix, multiply, multiply_transposed, spectrum
from kinfold.codec.sums import PIECE, is_finite, squared_norm
from kinfold.codec.threads import ordered_map
from kinfold.errors import AuditError
from kinfold.pack.member import Base, Member, PathLike
from kinfold.pack.members import open_member

MATRIX = ("norm", "stable_rank", "effective_rank", "kurtosis", "energy")
VECTOR = ("norm", "kurtosis", "energy")
LEVELS = ("tensor", "layer")
EXACT_SIDE = 2048  # up to this shorter side all singular values are computed
NORMAL = math.log(3)  # the kurtosis of a normal distribution stands for that of no change
_POWER_STEPS = 30
_ROWS = 512
_LEAST_NORM, _LEAST_ENERGY, _LEAST_KURTOSIS = 1e-8, 1e-12, 1e-3


@dataclass(frozen=True)
class Group:
    """Tensors of the base whose statistics are pooled, and what the pool is called."""

    name: str
    matrices: bool
    tensors: list[str] = field(default_factory=list)

    def units(self) -> list[list[str]]:
        """What is read at once: each matrix, or all vectors."""
        return [[name] for name in self.tensors] if self.matrices else [self.tensors]


@dataclass(frozen=True)
class _Measured:
    """What is known of some entries of a delta; ranks are those of a matrix."""

    energy: float  # squared norm
    base_energy: float
    kurtosis: float = NORMAL
    stable_rank: float = 0.0
    effective_rank: float = 0.0

    @property
    def norm(self) -> float:
        ratio = math.sqrt(self.energy / (self.base_energy or 1.0))  # of a base of zeros, the norm itself
        return math.log10(max(ratio, _LEAST_NORM))


def row(
    base: Base | PathLike,
    variant: Member | PathLike,
    *,
    tensors: Iterable[str] | None = None,
    level: str = "tensor",
    base_energies: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Statistics of a variant's delta; a few tensors are held, never a model.

    Args:
        base: model directory.
        variant: model directory, pack or adapter.
        tensors: the base's names of those that count; all that the variant has in the base's shape if not given.
        level: `tensor`: a matrix has its own statistics; `layer`: matrices of a layer are pooled.
        base_energies: squared norms of the base's tensors, where known already.

    Returns:
        float64 (d,), and d names TENSOR:STATISTIC.

    Raises:
        AuditError: no tensor has the base's shape, or a delta is not finite.
        WrongBaseError: a pack of another base.
        CheckpointError, PackError, AdapterError: a member cannot be read.
    """
    root = base if isinstance(base, Base) else Base.open(base)
    member = variant if isinstance(variant, Member) else open_member(variant, root)
    names = [name for name in (member.own if tensors is None else tensors) if root.checkpoint.tensors[name].numel]
    if not names:
        raise AuditError(f"`{member.path}` has no tensor in the base's shape; there is no delta to measure")
    energies = squared_norms(root.checkpoint, names) if base_energies is None else base_energies
    found = groups(root.checkpoint, names, level)
    units = [unit for group in found for unit in group.units()]
    measured = ordered_map(
        lambda unit: _measure(member, unit, energies),
        units,
        values=lambda unit: sum(root.checkpoint.tensors[name].numel for name in unit),
    )
    parts = [_pooled([next(measured) for _ in group.units()]) for group in found]
    total = sum(part.energy for part in parts)
    values, columns = [], []
    for group, part in zip(found, parts, strict=True):
        share = part.energy / total if total else 0.0
        known = {**vars(part), "norm": part.norm, "energy": math.log10(max(share, _LEAST_ENERGY))}
        for statistic in MATRIX if group.matrices else VECTOR:
            values.append(known[statistic])
            columns.append(f"{group.name}:{statistic}")
    return np.array(values), columns


def groups(checkpoint: Checkpoint, names: Iterable[str], level: str = "tensor") -> list[Group]:
    """What is measured together: a matrix alone (of a layer, for `layer`), the vectors of a layer.

    A tensor belongs to the layer that its path names up to and with its last whole number, or to its module where
    the path has none.

    Raises:
        ValueError: another level.
    """
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; {' and '.join(map(repr, LEVELS))} are allowed")
    found: dict[tuple[str, bool], Group] = {}
    for name in names:
        matrix = len(checkpoint.tensors[name].shape) > 1
        called = name if matrix and level == "tensor" else f"{layer(name)} ({'matrices' if matrix else 'vectors'})"
        found.setdefault((called, matrix), Group(called, matrix)).tensors.append(name)
    return list(found.values())


def layer(name: str) -> str:
    """`encoder.layer.3` for `encoder.layer.3.output.dense.bias`, `pooler.dense` for `pooler.dense.bias`."""
    numbered = re.match(r"(?:.*\.)?\d+(?=\.|$)", name)
    return numbered[0] if numbered else name.rpartition(".")[0] or name


def squared_norms(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, float]:
    """||T||_F^2 of tensors, read one by one."""
    return {name: squared_norm(checkpoint.read(name)) for name in names}


def _measure(member: Member, names: Sequence[str], energies: Mapping[str, float]) -> _Measured:
    """Statistics of one matrix, or of the vectors of a layer laid end to end."""
    base_energy = sum(energies[name] for name in names)
    if all(name in member.same for name in names):
        return _Measured(0.0, base_energy)
    deltas = [member.delta(name) for name in names]
    for name, delta in zip(names, deltas, strict=True):
        if not is_finite(delta):
            raise AuditError(
                f"the delta of `{name}` in `{member.path}` holds NaN or infinity; it must be finite",
                hint="mend that variant, or leave it out",
            )
    delta = deltas[0] if len(deltas) == 1 else torch.cat([one.reshape(-1) for one in deltas])
    energy = squared_norm(delta)
    if energy == 0:
        return _Measured(0.0, base_energy)
    stable, effective = ranks(as_matrix(delta), energy) if delta.dim() > 1 else (0.0, 0.0)
    return _Measured(energy, base_energy, log_kurtosis(delta), stable, effective)


def _pooled(parts: Sequence[_Measured]) -> _Measured:
    """Sums of squared norms, means of the other statistics."""
    mean = {key: float(np.mean([getattr(part, key) for part in parts])) for key in ("kurtosis", *MATRIX[1:3])}
    return _Measured(sum(part.energy for part in parts), sum(part.base_energy for part in parts), **mean)


def log_kurtosis(delta: torch.Tensor) -> float:
    """ln(m4 / m2^2) of the entries, from central moments in float64; that of a normal where they are all equal."""
    pieces = delta.reshape(-1).split(PIECE)
    count = delta.numel()
    mean = sum(float(piece.double().sum()) for piece in pieces) / count
    second = fourth = 0.0
    for piece in pieces:
        squares = (piece.double() - mean).square_()
        second += float(squares.sum()) / count
        fourth += float(squares.square_().sum()) / count
    if second <= 1e-24 * mean**2 or second**2 == 0:
        return NORMAL
    return math.log(max(fourth / second**2, _LEAST_KURTOSIS))


def ranks(delta: torch.Tensor, energy: float) -> tuple[float, float]:
    """ln of the stable rank, and the effective rank in nats, of a matrix (n, d) that is not zero.

    From all singular values up to a shorter side of 2048. Above, the largest comes from 30 power steps and the
    effective rank is the Renyi entropy of order 2, ln(||D||_F^4 / ||D D^T||_F^2); the shape alone decides.
    """
    if min(delta.shape) <= EXACT_SIDE:
        squares = spectrum(delta).square().numpy()
        shares = squares / squares.sum()
        present = shares[shares > 0]
        return float(-np.log(shares.max())), float(-(present * np.log(present)).sum())
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    largest = _largest(wide)
    return math.log(energy / largest**2), math.log(energy**2 / _gram_energy(wide))


def _largest(delta: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(delta.shape[1], 1, dtype=torch.float64, generator=generator)
    for _ in range(_POWER_STEPS):
        vector = multiply_transposed(delta, multiply(delta, vector / vector.norm()))
    return math.sqrt(float(vector.norm()))


def _gram_energy(delta: torch.Tensor) -> float:
    """||D D^T||_F^2 in float64, a block of rows against another: no Gram matrix is held."""
    blocks = delta.split(_ROWS)
    total = 0.0
    for i, one in enumerate(blocks):
        exact = one.double()
        total += float((exact @ exact.T).square().sum())
        total += 2 * sum(float((exact @ other.double().T).square().sum()) for other in blocks[:i])
    return total
