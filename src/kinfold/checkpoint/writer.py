"""Writing a model directory whose tensors arrive in any order and need not fit in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from kinfold.checkpoint.header import DTYPES, build_header, size_of
from kinfold.checkpoint.reader import INDEX
from kinfold.errors import CheckpointError

Spec = tuple[str, str, tuple[int, ...]]  # name, safetensors dtype, shape

SHARD_BYTES = 5_000_000_000  # what transformers writes by default


class CheckpointWriter:
    """Preallocates `model.safetensors` (or shards and their index) and fills it tensor by tensor.

    All names, dtypes and shapes are given beforehand, so headers are written first and each tensor goes
    straight to its place: memory use is one tensor, whatever the size of the model.
    """

    def __init__(
        self,
        directory: Path,
        tensors: Iterable[Spec],
        *,
        metadata: Mapping[str, str] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.directory = directory
        self._place: dict[str, tuple[BinaryIO, int, Spec]] = {}
        self._files: list[BinaryIO] = []
        self._missing: set[str] = set()
        shards = _split(sorted(tensors), shard_bytes)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            single = len(shards) == 1
            name = "model.safetensors" if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
            self._open(directory / name, shard, dict(metadata or {"format": "pt"}))
            weight_map |= {spec[0]: name for spec in shard}
        if len(shards) > 1:
            total = sum(size_of(dtype, shape) for shard in shards for _, dtype, shape in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), "utf-8")

    def _open(self, path: Path, shard: list[Spec], metadata: dict[str, str]) -> None:
        header = build_header(shard, metadata)
        file = path.open("wb+", buffering=0)
        self._files.append(file)
        file.write(header)
        offset = len(header)
        for spec in shard:
            self._place[spec[0]] = (file, offset, spec)
            self._missing.add(spec[0])
            offset += size_of(spec[1], spec[2])
        if hasattr(os, "posix_fallocate"):  # a full disk shows now, not after an hour
            os.posix_fallocate(file.fileno(), 0, offset)
        else:
            file.truncate(offset)

    def write(self, name: str, tensor: torch.Tensor, *, first_row: int = 0, last: bool = True) -> None:
        """Put `tensor` (or a block of its rows, starting at `first_row`) into its place.

        Raises:
            CheckpointError: the name was not announced, or dtype or shape differ from what was.
        """
        if name not in self._place:
            raise CheckpointError(f"tensor `{name}` was not announced to the writer")
        file, offset, (_, dtype, shape) = self._place[name]
        block = tensor.shape == torch.Size(shape) or (
            tensor.dim() == len(shape) > 0
            and tensor.shape[1:] == torch.Size(shape[1:])
            and first_row + tensor.shape[0] <= shape[0]
        )
        if tensor.dtype != DTYPES[dtype] or not block:
            raise CheckpointError(
                f"tensor `{name}` is {tensor.dtype}{list(tensor.shape)}, announced as {dtype}{list(shape)}"
            )
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        row = size_of(dtype, shape[1:]) if shape else 0
        file.seek(offset + first_row * row)
        view = memoryview(raw.data)
        while view:
            view = view[file.write(view) :]
        if last:
            self._missing.discard(name)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            if kind is None:
                os.fsync(file.fileno())
            file.close()
        if kind is None and self._missing:
            raise CheckpointError(f"{len(self._missing)} tensors were never written, among them `{min(self._missing)}`")


def _split(tensors: list[Spec], shard_bytes: int) -> list[list[Spec]]:
    shards: list[list[Spec]] = [[]]
    room = shard_bytes
    for spec in tensors:
        nbytes = size_of(spec[1], spec[2])
        if nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(spec)
        room -= nbytes
    return shards
