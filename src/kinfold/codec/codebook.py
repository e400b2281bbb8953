"""A codebook that every reader can draw again: 4096 random directions, shared by all tensors.

A vector x becomes the index of the codeword c with the largest inner product <c, x>. For directions drawn
evenly over the sphere the mean of the chosen codeword is parallel to x, so one common amplitude makes the
code an unbiased estimate of x: what is lost is spread over all directions as noise instead of being taken
out of a few. With b bits the largest of 2^b products captures about 2 ln(2^b) of the energy per codeword,
close to Shannon's bound at low rates (Sakrison 1968: a Gaussian codebook; here with a fixed, seeded one).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from kinfold.codec.random import uniform_bits

INDEX_BITS = 12  # of a codeword's index: 11 for the direction, 1 for its sign
LENGTH = 1024  # entries of a codeword
_DIRECTIONS = 1 << (INDEX_BITS - 1)
_LEVELS = 127  # of a vector's entries: 128 * 127 * 1024 < 2^24, so float32 sums are exact in any order
_BLOCK = 1 << 17  # entries of the table drawn at once
_CHUNK = 256  # vectors whose products are held at once: 2 MiB, about a core's cache


@cache
def codewords() -> torch.Tensor:
    """The directions, int8 (2048, 1024): sums of four random bytes, centred, in quarters; nearly Gaussian.

    Entry i of the row-major table is made of word i of the stream of seed 0 (see `uniform_bits`).
    """
    return torch.cat([_summed(start) for start in range(0, _DIRECTIONS * LENGTH, _BLOCK)]).reshape(-1, LENGTH)


def _summed(start: int) -> torch.Tensor:
    """Entries `start` to `start + _BLOCK` of the table: in blocks, as the words of all would take 160 MB."""
    words = uniform_bits(0, start, _BLOCK)
    total = words.to(torch.int32).view(torch.uint8).reshape(-1, 4).sum(1, dtype=torch.int32)
    return ((total - 509) >> 2).to(torch.int8)


@cache
def _as_float() -> torch.Tensor:
    return codewords().float()


def choose(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codeword for each vector.

    Args:
        vectors: float32 (length, count) with length <= 1024, one vector a column.

    Returns:
        Indices, int64 (count,): twice the direction, plus 1 where it is taken negative. And the inner
        products with the chosen codewords, float64 (count,). Products are taken of entries rounded to
        +-127 levels of each vector's largest, which makes every sum exact: the same on any machine.
    """
    length, count = vectors.shape
    table = _as_float()[:, :length]
    index = torch.empty(count, dtype=torch.int64)
    product = torch.empty(count, dtype=torch.float64)
    products, sizes = torch.empty(2, min(_CHUNK, count), len(table))  # once: fresh pages cost as much as the work
    for start in range(0, count, _CHUNK):
        part = vectors[:, start : start + _CHUNK]
        step = part.abs().amax(0) / _LEVELS
        rounded = torch.where(step > 0, part / step, 0.0).round_().clamp_(-_LEVELS, _LEVELS)
        own, size = products[: part.shape[1]], sizes[: part.shape[1]]
        torch.mm(rounded.T, table.T, out=own)
        torch.abs(own, out=size)
        direction = torch.from_numpy(size.numpy().argmax(1))  # numpy: its argmax is vectorised, torch's is not
        best = own.gather(1, direction[:, None])[:, 0]
        index[start : start + _CHUNK] = 2 * direction + (best < 0)
        product[start : start + _CHUNK] = best.abs().double() * step.double()
    return index, product


@cache
def _signed() -> np.ndarray:
    """Column i is the codeword of index i: float32 (1024, 4096)."""
    table = _as_float().T
    return torch.stack([table, -table], 2).reshape(LENGTH, -1).numpy()


def expand(index: torch.Tensor, length: int) -> torch.Tensor:
    """The codeword for each index (int64, below 4096): float32 (length, count)."""
    # numpy: twice as fast here as torch's index_select, and it lets other threads run
    return torch.from_numpy(np.take(_signed()[:length], index.numpy(), axis=1, mode="clip"))
