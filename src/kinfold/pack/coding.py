"""A unit's tensors to a payload, and a payload back to tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from kinfold.checkpoint import DTYPES
from kinfold.codec import Codec, Payload, create, exact, tensor_seed
from kinfold.codec.sums import squared_distance, squared_norm
from kinfold.errors import CodecError, PackError
from kinfold.pack.manifest import Piece, Unit
from kinfold.pack.plan import Importances, Job, naming
from kinfold.pack.source import Deltas, lay
from kinfold.pack.units import Draft

Reader = Callable[[Piece], torch.Tensor]


@dataclass(frozen=True)
class Coded:
    """A payload with what the manifest says of it."""

    data: bytes
    params: dict[str, Any] = field(default_factory=dict)
    error: float = 0.0
    norm: float = 0.0


def encode(sources: Deltas, job: Job, seed: int, importance: Importances) -> Coded:
    """Code one unit and measure its error on what the decoder will give.

    Raises:
        CodecError: the tensor cannot be coded; its name is in the message.
    """
    draft = job.draft
    with naming(draft):
        if job.codec is None and job.ready is not None:
            return Coded(job.ready.data)
        if job.codec is None:
            return Coded(exact.encode(sources.values(draft.pieces), sources.reference(draft.pieces)))
        own = tensor_seed(seed, draft.name)
        weigh = importance(draft.name) if draft.matrix else None
        payload = job.ready or job.codec.encode(
            sources.delta(draft.pieces), budget_bits=job.bits, importance=weigh, seed=own
        )
        return Coded(payload.data, payload.params, *_errors(sources, draft, job.codec.decode(payload, draft.shape)))


def _errors(sources: Deltas, draft: Draft, decoded: torch.Tensor) -> tuple[float, float]:
    """(relative error, norm of the delta), three digits; the delta is read again, a block at a time."""
    norm = missed = 0.0
    for piece, part in _split(decoded, list(draft.pieces)):
        for start, block in sources.delta_blocks(piece):
            norm += squared_norm(block)
            missed += squared_distance(part.reshape(-1)[start : start + block.numel()], block)
    return _three_digits(math.sqrt(missed / norm) if norm else math.sqrt(missed)), _three_digits(math.sqrt(norm))


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def decode(unit: Unit, payload: bytes, seed: int, read: Reader) -> Iterator[tuple[Piece, torch.Tensor]]:
    """The variant's tensors of a unit, in the variant's dtype.

    Args:
        unit: from a checked manifest.
        payload: its bytes.
        seed: of the pack.
        read: gives the base's values for a piece, in the base's dtype; called for pieces with a base.

    Raises:
        PackError: the payload does not fit the unit.
    """
    pieces = unit.pieces
    based = pieces[0].base is not None
    reference = [read(piece) for piece in pieces] if based else []
    dtype = DTYPES[pieces[0].dtype]
    if unit.codec == "exact":
        flat = exact.decode(payload, unit.shape, dtype, lay(reference) if based else None)
        yield from _split(flat, pieces)
        return
    for number, (piece, part) in enumerate(decode_delta(unit, payload, seed)):
        if not based:
            yield piece, part.to(dtype)
            continue
        exactly = torch.float64 if torch.float64 in (dtype, reference[number].dtype) else torch.float32
        yield piece, part.to(exactly).add_(reference[number]).to(dtype)  # in place: fresh pages cost as much as the sum


def decode_delta(unit: Unit, payload: bytes, seed: int) -> Iterator[tuple[Piece, torch.Tensor]]:
    """What a unit coded with loss says of each piece, float32: its delta, or its values where it has no base.

    Raises:
        PackError: the payload does not fit the unit.
    """
    codec, coded = _coded(unit, payload, seed)
    yield from _split(codec.decode(coded, unit.shape), unit.pieces)


def factors(unit: Unit, payload: bytes, seed: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A (n, k) and C (d, k), float32, of a unit whose delta is kept as their product; None for any other."""
    if unit.codec == "exact" or len(unit.pieces) > 1:
        return None
    codec, coded = _coded(unit, payload, seed)
    return codec.factors(coded, unit.shape)


def _coded(unit: Unit, payload: bytes, seed: int) -> tuple[Codec, Payload]:
    try:
        codec = create(unit.codec)
    except CodecError as cause:
        raise PackError(
            str(cause), hint="install the package that brings this codec, or fetch the pack again"
        ) from cause
    return codec, Payload(payload, unit.params, tensor_seed(seed, unit.pieces[0].name))


def _split(tensor: torch.Tensor, pieces: list[Piece]) -> Iterator[tuple[Piece, torch.Tensor]]:
    if len(pieces) == 1:
        yield pieces[0], tensor
        return
    position = 0
    for piece in pieces:
        part = tensor[position : position + piece.numel]
        position += piece.numel
        yield piece, part.reshape(piece.part)
    if position != tensor.numel():
        raise PackError(f"`{pieces[0].name}`: a payload holds {tensor.numel()} values, {position} were expected")
