"""Fingerprints: BLAKE3 over names, dtypes, shapes and bytes of a checkpoint's tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from blake3 import blake3

from kinfold.checkpoint.reader import Checkpoint


def digests(checkpoint: Checkpoint, advance: Callable[[int], object] = lambda _: None) -> dict[str, str]:
    """BLAKE3 (hex) of each tensor's raw little-endian bytes, by name; `advance` gets bytes done."""
    result: dict[str, str] = {}
    for name in checkpoint.tensors:
        hasher = blake3(max_threads=blake3.AUTO)
        for block in checkpoint.blocks(name):
            hasher.update(block)
            advance(len(block))
        result[name] = hasher.hexdigest()
    return result


def fingerprint(specs: Mapping[str, tuple[str, tuple[int, ...]]], digest: Mapping[str, str]) -> str:
    """The checkpoint's name: BLAKE3 (64 hex digits) over one JSON line a tensor, sorted by name.

    A line is `["name","dtype",[shape],"digest of the bytes"]` without spaces, ended by a newline. How
    tensors are spread over files does not matter.

    Args:
        specs: safetensors dtype and shape of each tensor.
        digest: what `digests` gave.
    """
    hasher = blake3()
    for name in sorted(specs):
        dtype, shape = specs[name]
        line = json.dumps([name, dtype, list(shape), digest[name]], separators=(",", ":"), ensure_ascii=False)
        hasher.update(line.encode() + b"\n")
    return hasher.hexdigest()


def specs_of(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each tensor, as `fingerprint` takes them."""
    return {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
