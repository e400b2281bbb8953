"""A pair of factors A (n, k), C (d, k) as bytes: dense, or with only some entries kept."""

from __future__ import annotations

import math

import numpy as np
import torch

from kinfold.codec.base import Shape
from kinfold.codec.bits import pack_bits, packed_bytes, unpack_bits
from kinfold.codec.positions import check_rising, decode_positions, encode_positions, positions_bytes
from kinfold.codec.threads import single_threaded
from kinfold.codec.values import decode_values, encode_values, values_bytes
from kinfold.errors import PackError


def matrix_sides(shape: Shape) -> tuple[int, int]:
    """(n, d) of the matrix that a tensor is coded as; kernels are flattened to (out, rest)."""
    return shape[0], math.prod(shape[1:])


def product(a: torch.Tensor, c: torch.Tensor, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """A C^T in float32 on one thread, cast once."""
    with single_threaded():
        return (a @ c.T).reshape(shape).to(dtype)


def dense_bytes(n: int, d: int, rank: int, width: int) -> int:
    """Bytes of a dense pair of `rank` at `width` bits an entry."""
    return values_bytes(n * rank, rank, width) + values_bytes(d * rank, rank, width) if rank else 0


def encode_dense(a: torch.Tensor, c: torch.Tensor, width: int) -> bytes:
    """Both factors, row by row, every entry."""
    return b"".join(
        encode_values(f.reshape(-1).double().numpy(), _columns(f.numel(), f.shape[1]), f.shape[1], width)
        for f in (a, c)
        if f.shape[1]
    )


def decode_dense(data: bytes, n: int, d: int, rank: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `encode_dense` stored, float32 (n, rank) and (d, rank).

    Raises:
        PackError: the length does not fit, or a value is impossible.
    """
    _require_length(data, dense_bytes(n, d, rank, width))
    if rank == 0:
        return torch.zeros(n, 0), torch.zeros(d, 0)
    split = values_bytes(n * rank, rank, width)
    parts = ((data[:split], n), (data[split:], d))
    a, c = (decode_values(part, _columns(rows * rank, rank), rank, width) for part, rows in parts)
    return a.reshape(n, rank), c.reshape(d, rank)


def _require_length(data: bytes, expected: int) -> None:
    """Refuse a wrong length before anything of the factor's size is allocated."""
    if len(data) != expected:
        raise PackError(f"a factor's sections take {len(data)} bytes, {expected} were expected")


def _columns(count: int, rank: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32) % np.int32(rank)


def index_width(cells: int) -> int:
    """Bits of a flat index of fixed width: ceil(log2(cells))."""
    return (cells - 1).bit_length()


def _places_bytes(cells: int, kept: int, width: int) -> int:
    """32-bit values go with the paper's fixed-width indices, narrower ones with coded positions."""
    return packed_bytes(kept, index_width(cells)) if width == 32 else positions_bytes(cells, kept)


def sparse_bytes(cells: int, kept: int, columns: int, width: int) -> int:
    """Bytes of one factor with `kept` of `cells` entries: positions, then values."""
    return _places_bytes(cells, kept, width) + values_bytes(kept, columns, width)


def encode_sparse(factor: torch.Tensor, kept: np.ndarray, width: int) -> bytes:
    """One factor (rows, k): the flat positions `kept` (rising) and their values."""
    cells, columns = factor.numel(), factor.shape[1]
    values = encode_values(factor.reshape(-1).numpy()[kept].astype(np.float64), kept % columns, columns, width)
    places = pack_bits(kept, index_width(cells)) if width == 32 else encode_positions(kept, cells)
    return places + values


def decode_sparse(data: bytes, rows: int, columns: int, kept: int, width: int) -> torch.Tensor:
    """What `encode_sparse` stored, float32 (rows, columns), zero elsewhere.

    Raises:
        PackError: positions or values are impossible.
    """
    cells = rows * columns
    _require_length(data, sparse_bytes(cells, kept, columns, width))
    split = _places_bytes(cells, kept, width)
    if width == 32:
        places = unpack_bits(data[:split], index_width(cells), kept).astype(np.int64)
        check_rising(places, cells)
    else:
        places = decode_positions(data[:split], cells, kept)
    values = decode_values(data[split:], places % max(columns, 1), columns, width)
    factor = torch.zeros(cells)
    factor[torch.from_numpy(places)] = values
    return factor.reshape(rows, columns)
