"""Reading a Hugging Face model directory tensor by tensor."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinfold.checkpoint.header import TensorInfo, read_header
from kinfold.errors import CheckpointError

INDEX = "model.safetensors.index.json"
BLOCK = 8 << 20  # bytes read at once while hashing: large enough for full disk speed
SIDE_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}  # what from_pretrained reads
TRAINING = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}  # of no use to it
MAX_SIDE_FILE = 64 << 20

# keeps every tensor, as AutoModel would not keep a head; `weights_only` runs no code of the pickle
_CONVERT = (
    "import pathlib, torch; from safetensors.torch import save_file; d = pathlib.Path({directory}); "
    'save_file({{k: v.clone().contiguous() for f in d.glob("pytorch_model*.bin") '
    "for k, v in torch.load(f, weights_only=True).items()}}, "
    'd / "model.safetensors", {{"format": "pt"}})'
)


@dataclass(frozen=True)
class Checkpoint:
    """A model directory with one or several safetensors files; nothing is loaded until asked for.

    Attributes:
        directory: the model directory.
        tensors: where each tensor lies, by name, sorted.
        metadata: the `__metadata__` of the weight files, merged.
    """

    directory: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @classmethod
    def open(cls, directory: str | Path) -> Checkpoint:
        """Read the headers of a model directory.

        Raises:
            CheckpointError: no directory, no safetensors weights in it, or a damaged file.
        """
        directory = Path(directory)
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        for path in _weight_files(directory):
            more, infos = read_header(path)
            twice = tensors.keys() & infos.keys()
            if twice:
                raise CheckpointError(
                    f"tensor `{min(twice)}` is in two weight files of `{directory}`",
                    hint="remove the stale *.safetensors files, or write an index that names each tensor once",
                )
            tensors |= infos
            metadata |= more
        if not tensors:
            raise CheckpointError(f"the weight files of `{directory}` hold no tensor")
        _check_index(directory, tensors)
        return cls(directory, dict(sorted(tensors.items())), metadata)

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`, or an empty dict where there is none."""
        path = self.directory / "config.json"
        try:
            return json.loads(path.read_text("utf-8")) if path.exists() else {}
        except ValueError as cause:
            raise CheckpointError(f"`{path}` is no valid JSON: {cause}") from cause

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor in fresh memory; with `rows` (first, past the last), only those rows."""
        info = self.tensors[name]
        first, last = rows or (0, info.shape[0] if info.shape else 1)
        row = info.nbytes // max(info.shape[0] if info.shape else 1, 1)
        shape = info.shape if rows is None else (last - first, *info.shape[1:])
        nbytes = row * (last - first)
        if nbytes == 0:  # an empty array has no strides that torch would view as another dtype
            return torch.empty(shape, dtype=info.torch_dtype)
        raw = np.fromfile(info.file, dtype=np.uint8, count=nbytes, offset=info.start + first * row)
        if raw.size != nbytes:
            raise CheckpointError(f"`{info.file}` changed while it was read")
        return torch.from_numpy(raw).view(info.torch_dtype).reshape(shape)

    def blocks(self, name: str) -> Iterator[bytes]:
        """The raw bytes of a tensor in pieces of at most 8 MiB."""
        info = self.tensors[name]
        left = info.nbytes
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.start)
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise CheckpointError(f"`{info.file}` changed while it was read")
                left -= len(block)
                yield block

    def side_files(self) -> tuple[list[str], list[str]]:
        """Relative paths of the files that `from_pretrained` reads, and of those it does not.

        Configs, tokenizers and templates are the first kind; optimizer states, logs and model cards the
        second. Weights and hidden files are in neither list.
        """
        kept, left = [], []
        for path in sorted(self.directory.rglob("*")):
            name = path.relative_to(self.directory).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            weights = path.suffix == ".safetensors" or name.endswith(".safetensors.index.json")
            if not path.is_file() or hidden or weights:
                continue
            fits = path.suffix in SIDE_SUFFIXES and path.name not in TRAINING and path.stat().st_size <= MAX_SIDE_FILE
            (kept if fits else left).append(name)
        return kept, left


def _weight_files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise CheckpointError(
            f"`{directory}` {what}; a model directory with config.json and *.safetensors is wanted",
            hint=""
            if directory.exists()
            else f"a name on the hub is not fetched: hf download {directory} --local-dir DIR",
        )
    index = directory / INDEX
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"`{index}` names `{missing[0]}`, which is not there ({len(missing)} of {len(names)} missing)",
                hint="finish the download of this model",
            )
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    if (directory / "adapter_config.json").exists() and not single.exists():
        raise CheckpointError(
            f"`{directory}` is a PEFT adapter, and a model directory is wanted",
            hint="kinfold export and the commands on families take adapters; PEFT's `merge_and_unload` makes a model",
        )
    files = [single] if single.exists() else sorted(directory.glob("*.safetensors"))
    if files:
        return files
    if any(directory.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"`{directory}` holds pytorch_model.bin, a pickle that can run code when read; safetensors is wanted",
            hint=shlex.join(["python", "-c", _CONVERT.format(directory=json.dumps(str(directory)))]),
        )
    raise CheckpointError(f"`{directory}` holds no *.safetensors file", hint=f"ls {directory}")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        valid = all(isinstance(file, str) and Path(file).name == file for file in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise CheckpointError(f"`{index}` is no valid index: {cause!r}") from cause
    if not valid:
        raise CheckpointError(f"`{index}` names a file outside its directory")
    return weight_map


def _check_index(directory: Path, tensors: dict[str, TensorInfo]) -> None:
    index = directory / INDEX
    if not index.exists():
        return
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"`{index}` puts tensor `{name}` into `{file}`, which does not hold it")
