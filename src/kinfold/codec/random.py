"""Philox4x32-10, a counter-based generator: the same bits on every machine and device.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

import torch
from blake3 import blake3

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def tensor_seed(seed: int, name: str) -> int:
    """The 64-bit seed of one tensor: the first 8 bytes (little-endian) of BLAKE3 over "seed:name"."""
    return int.from_bytes(blake3(f"{seed}:{name}".encode()).digest()[:8], "little")


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape, each entry in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors of that shape, uniform in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 wraps, and `>> 32 & LOW` reads the upper half of the wrapped product as unsigned
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform_bits(seed: int, start: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """`count` words of 32 random bits (int64) from position `start`, a multiple of 4, of a seed's stream.

    Word i of the stream is word i % 4 of Philox with counter (i // 4, 0, 0, 0) (64-bit little-endian in
    the first two words) and the seed's low and high half as key.
    """
    if start % 4:
        raise ValueError(f"start must be a multiple of 4, got {start}")
    blocks = torch.arange(start // 4, -(-(start + count) // 4), dtype=torch.int64, device=device)
    zero = torch.zeros_like(blocks)
    words = philox((blocks & _LOW, blocks >> 32, zero, zero), (seed & _LOW, (seed >> 32) & _LOW))
    return torch.stack(words, 1).reshape(-1)[:count]
