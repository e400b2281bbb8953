"""What a layer of several members is stored as, in bytes: a shared section, and a small one of each member's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kinfold.codec.lowrank import Pair
from kinfold.codec.values import decode_values, encode_values, values_bytes
from kinfold.errors import PackError
from kinfold.family.jd import Jd
from kinfold.family.rmm import Rmm, split

WIDTHS = (32, 16, 8, 4)  # bits of a stored value


def encode_rmm(model: Rmm, width: int) -> tuple[dict[str, Any], bytes, list[bytes]]:
    """Params, the shared section (mean, then basis) and each member's coefficients."""
    rank, directions = model.basis.shape[1:]
    centred = bool(model.mean.any())
    rank = rank if centred or directions else 0  # all members are zero
    shared = (_encode(model.mean, width) if centred else b"") + _encode(model.basis.flatten(1), width)
    own = [_encode(model.coefficients[..., member], width) for member in range(model.coefficients.shape[-1])]
    return {"r": rank, "p": directions, "w": width, "c": int(centred)}, shared, own


def rmm_bytes(positions: int, params: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the shared section and of one member's own."""
    rank, directions, width = params["r"], params["p"], params["w"]
    mean = _bytes(positions, rank, width) if params["c"] else 0
    return mean + _bytes(positions, rank * directions, width), _bytes(positions, directions, width)


def encode_jd(model: Jd, width: int) -> tuple[dict[str, Any], bytes, list[bytes]]:
    """Params, the shared section (U, then V) and each member's core."""
    shared = _encode(model.u, width) + _encode(model.v, width)
    return {"k": model.u.shape[1], "w": width}, shared, [_encode(core, width) for core in model.cores]


def jd_bytes(sides: tuple[int, int], params: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the shared section and of one member's own."""
    rank, width = params["k"], params["w"]
    return sum(_bytes(side, rank, width) for side in sides), _bytes(rank, rank, width)


def decode(codec: str, params: dict[str, Any], sides: tuple[int, int], shared: bytes, own: bytes) -> Pair:
    """A (m, r) and C (d, r), float32, of one member.

    Raises:
        PackError: params or lengths are impossible for a layer of these sides.
    """
    _check(codec, params, sides)
    lengths = rmm_bytes(sum(sides), params) if codec == "rmm" else jd_bytes(sides, params)
    if (len(shared), len(own)) != lengths:
        raise PackError(f"{codec}: sections of {len(shared)} and {len(own)} bytes, {lengths} were expected")
    if codec == "jd":
        rank, width = params["k"], params["w"]
        end = _bytes(sides[0], rank, width)
        u, v = _decode(shared[:end], sides[0], rank, width), _decode(shared[end:], sides[1], rank, width)
        return u @ _decode(own, rank, rank, width), v
    return split(_stacked(params, sum(sides), shared, own), sides[0])


def _stacked(params: dict[str, Any], positions: int, shared: bytes, own: bytes) -> torch.Tensor:
    rank, directions, width = params["r"], params["p"], params["w"]
    start = _bytes(positions, rank, width) if params["c"] else 0
    z = _decode(shared[:start], positions, rank, width) if start else torch.zeros(positions, rank)
    basis = _decode(shared[start:], positions, rank * directions, width).reshape(positions, rank, directions)
    coefficients = _decode(own, positions, directions, width)
    for direction in range(directions):  # in one order, so that every machine gives the same bits
        z = z + basis[..., direction] * coefficients[:, direction, None]
    return z


def _check(codec: str, params: dict[str, Any], sides: tuple[int, int]) -> None:
    wanted = {"rmm": ("r", "p", "w", "c"), "jd": ("k", "w")}.get(codec, ())
    whole = set(params) == set(wanted) and all(type(value) is int and value >= 0 for value in params.values())
    most = min(sides)
    if not wanted or not whole or params["w"] not in WIDTHS or params.get("c", 0) > 1:
        raise PackError(f"{codec}: {params} are impossible params")
    empty = codec == "rmm" and not (params["c"] or params["p"]) and params["r"] > 0  # no byte vouches for its size
    if empty or max(params.get("r", 0), params.get("k", 0)) > most or params.get("p", 0) > params.get("r", 0):
        raise PackError(f"{codec}: {params} are impossible for a layer of {sides[0]} x {sides[1]}")


def _bytes(rows: int, columns: int, width: int) -> int:
    return values_bytes(rows * columns, columns, width) if columns else 0


def _encode(matrix: torch.Tensor, width: int) -> bytes:
    """(rows, columns), one step a column where values are narrow."""
    rows, columns = matrix.shape
    return encode_values(matrix.reshape(-1).numpy(), _columns(rows, columns), columns, width) if columns else b""


def _decode(data: bytes, rows: int, columns: int, width: int) -> torch.Tensor:
    if not columns:
        return torch.zeros(rows, 0)
    return decode_values(data, _columns(rows, columns), columns, width).reshape(rows, columns)


def _columns(rows: int, columns: int) -> np.ndarray:
    return np.arange(rows * columns, dtype=np.int32) % np.int32(max(columns, 1))
