"""Which coordinates of a gradient are kept: a law of a seed and a name, so that no map is stored.

A random mask as a compressor of per-row gradients: arXiv 2509.15651 (dropout), 2505.18976 (GraSS, first stage).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from blake3 import blake3

from kinfold.codec.random import uniform_bits
from kinfold.errors import AuditError

Shape = tuple[int, int]
Quota = Literal["sqrt", "equal", "proportional"]
LEAST = 4  # coordinates a module

_DOMAIN = b"kinfold.mask.v1\0"
_ADAPTER_PARTS = (
    (r"^base_model\.model\.", ""),
    (r"\.base_layer(?=\.|$)", ""),
    (r"\.(lora_[AB])\.[^.]+(?=\.weight$)", r".\1"),
    (r"\.modules_to_save\.[^.]+(?=\.weight$)", ""),
)


def canonical(name: str) -> str:
    """The name of a weight, ended by `.weight`, whatever PEFT wraps it in and whatever the adapter is called.

    >>> canonical("base_model.model.encoder.layer.0.query.lora_A.mine.weight")
    'encoder.layer.0.query.lora_A.weight'
    """
    for pattern, instead in _ADAPTER_PARTS:
        name = re.sub(pattern, instead, name)
    return name


def mask_seed(seed: int, name: str, shape: Shape) -> int:
    """The 64-bit key of one module's stream: the first 8 bytes (little-endian) of BLAKE3 over seed, name and shape.

    Args:
        seed: any signed 64-bit integer.
        name: canonical name of the weight.
        shape: (d_out, d_in) of the weight.
    """
    words = [number.to_bytes(8, "little", signed=True) for number in (seed, *shape)]
    digest = blake3(_DOMAIN + words[0] + name.encode() + b"\0" + words[1] + words[2]).digest()
    return int.from_bytes(digest[:8], "little")


def indices(seed: int, name: str, shape: Shape, count: int, among: int | None = None) -> np.ndarray:
    """`count` distinct coordinates in order of appearance, so that fewer of them are the first of more.

    Coordinate i of a (d_out, d_in) weight is its row i // d_in and column i % d_in. Words of Philox4x32-10 are
    scaled to the range, and repeats are passed over.

    Args:
        seed, name, shape: see `mask_seed`.
        count: how many; all coordinates in rising order where that is no less than there are.
        among: how many there are; the weight's values where it is not given.

    Returns:
        int64 (count,).

    Raises:
        AuditError: the weight has 2^32 or more values.
    """
    size = shape[0] * shape[1] if among is None else among
    if size >= 1 << 32:
        raise AuditError(f"`{name}` has {size} values; masks are drawn among fewer than {1 << 32}")
    if count >= size:
        return np.arange(size)
    key = mask_seed(seed, name, shape)
    found, start = np.empty(0, np.int64), 0
    while found.size < count:
        words = uniform_bits(key, start, max(1024, 4 * (-(-count // 2))))
        start += len(words)
        drawn = np.concatenate([found, (words.numpy().astype(np.uint64) * size >> 32).astype(np.int64)])
        found = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return found[:count]


def neuron_indices(seed: int, name: str, shape: Shape, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Kept outputs and inputs of a module; the block of their pairs has about `count` coordinates.

    Returns:
        int64 (k_out,) and (k_in,).
    """
    d_out, d_in = shape
    k_out = min(d_out, max(2, round((count * d_out / d_in) ** 0.5)))
    k_in = min(d_in, max(2, round(count / k_out)))
    return indices(seed, f"{name}#out", shape, k_out, d_out), indices(seed, f"{name}#in", shape, k_in, d_in)


def quotas(shapes: Mapping[str, Shape], keep: int, rule: Quota = "sqrt") -> dict[str, int]:
    """How many coordinates each module keeps; their sum is `keep`, or all there are where those are fewer.

    Shares go as the square root of a module's size, equally, or as its size; no share is below
    min(16, keep / modules), and none above the module's size.

    Raises:
        AuditError: fewer than 4 coordinates a module.
    """
    least = LEAST * len(shapes)
    if keep < least and keep < sum(d_out * d_in for d_out, d_in in shapes.values()):
        raise AuditError(
            f"{keep} coordinates are too few for {len(shapes)} modules; at least {least} are needed",
            hint=f"--keep {least}, or fewer modules",
        )
    sizes = np.array([d_out * d_in for d_out, d_in in shapes.values()], np.float64)
    wish = {"sqrt": np.sqrt(sizes), "equal": np.ones_like(sizes), "proportional": sizes}[rule]
    low, high = np.minimum(min(16, keep // len(sizes)), sizes), sizes
    total = min(float(keep), sizes.sum())
    below, above = 0.0, float((sizes / wish).max())
    for _ in range(200):  # the scale at which clipped shares add up to the total
        middle = (below + above) / 2
        below, above = (middle, above) if np.clip(wish * middle, low, high).sum() < total else (below, middle)
    exact = np.clip(wish * above, low, high)
    shares = np.floor(exact + 1e-9).astype(np.int64)
    rest = round(total) - int(shares.sum())
    for place in np.argsort(shares - exact, kind="stable")[: max(rest, 0)]:  # the largest remainders first
        shares[place] = min(shares[place] + 1, int(sizes[place]))
    return dict(zip(shapes, shares.tolist(), strict=True))


def coordinates_hash(coordinates: Sequence[tuple[str, Sequence[np.ndarray]]]) -> str:
    """BLAKE3 (64 hex digits) over all names and kept indices: equal where two stores share their coordinates."""
    hasher = blake3()
    for name, parts in coordinates:
        hasher.update(f"{name}\0{len(parts)}\0".encode())
        for part in parts:
            hasher.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
    return hasher.hexdigest()
