"""The safetensors header: read strictly, written canonically.

One parser serves model directories and packs. It trusts nothing: lengths are checked against the file
before a byte is allocated, duplicate names and gaps between tensors are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinfold.errors import CheckpointError, KinfoldError

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `start` and `nbytes` are absolute bytes within `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def size_of(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of `dtype` (a safetensors name) and `shape`."""
    return math.prod(shape) * DTYPES[dtype].itemsize


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name `{twice}` occurs twice")
    return keys


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _entry(name: str, entry: Any, file: Path, data_start: int, data_bytes: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"`{name}` must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"`{name}` has dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(_is_count, shape)):
        raise ValueError(f"`{name}` has no valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise ValueError(f"`{name}` has no valid data_offsets")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise ValueError(f"`{name}` lies at bytes {begin}-{end} of a data section of {data_bytes}")
    if end - begin != size_of(dtype, shape):
        raise ValueError(f"`{name}` takes {end - begin} bytes, {dtype}{shape} needs {size_of(dtype, shape)}")
    if size_of(dtype, (max(side, 1) for side in shape)) >= 1 << 62:  # even an empty tensor needs strides
        raise ValueError(f"`{name}` has no valid shape")
    return TensorInfo(name, dtype, tuple(shape), file, data_start + begin, end - begin)


def _check_contiguous(infos: list[TensorInfo], data_start: int, size: int) -> None:
    position = data_start
    for info in sorted(infos, key=lambda t: (t.start, t.nbytes)):
        if info.start != position:
            raise ValueError(f"`{info.name}` overlaps its neighbour or leaves a gap")
        position += info.nbytes
    if position != size:
        raise ValueError(f"the file has {size} bytes, its tensors end at {position}")


def read_header(
    path: Path, error: type[KinfoldError] = CheckpointError
) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Parse the header of a safetensors file.

    Returns:
        The `__metadata__` strings, and the tensors by name in the file's order.

    Raises:
        error: the file is truncated, its header does not parse, or names, dtypes, shapes and offsets
            do not fit the file exactly.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError(f"a header of {length} bytes does not fit a file of {size}")
            text = file.read(length)
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        if not isinstance(header, dict) or not text.startswith(b"{"):
            raise ValueError("the header is no JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("__metadata__ must map strings to strings")
        start = 8 + length
        infos = {name: _entry(name, entry, path, start, size - start) for name, entry in header.items()}
        _check_contiguous(list(infos.values()), start, size)
    except (ValueError, RecursionError, OSError) as cause:
        raise error(f"`{path}` is no valid safetensors file: {cause}", hint="fetch or copy the file again") from cause
    return metadata, infos


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data section, for `tensors` (name, dtype, shape) laid out in the given order.

    Keys of the metadata are sorted and the header is padded with spaces to a multiple of 8, so equal
    input gives equal bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + size_of(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
