"""Reading a PEFT LoRA adapter with plain safetensors and JSON.

LoRA: Hu et al. (2021), arXiv 2106.09685. rsLoRA: Kalajdzievski (2023), arXiv 2312.03732.

PEFT keeps lora_A (r, in) and lora_B (out, r): delta = scaling * lora_B @ lora_A. Here the first factor is the tall
one, A = scaling * lora_B and C = lora_A^T, so that delta = A C^T; this module converts and nobody else does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3

from kinfold.checkpoint.adapter_config import CONFIG, Settings, read_config
from kinfold.checkpoint.fingerprint import digests, fingerprint, specs_of
from kinfold.checkpoint.header import TensorInfo, read_header
from kinfold.checkpoint.reader import Checkpoint
from kinfold.errors import AdapterError

WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."  # what PEFT puts before the names of the model's modules

_FLOATS = ("F64", "F32", "F16", "BF16")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<what>weight|bias)")
_EMBEDDED = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<what>.+)")
_COPY = re.compile(r"(?P<module>.+)\.(?:base_layer|original_module)\.(?P<what>.+)")


def is_adapter(directory: Path) -> bool:
    """Whether a folder is a PEFT adapter; transformers too takes it for one by its config."""
    return (directory / CONFIG).is_file()


@dataclass(frozen=True)
class Lora:
    """One adapted module.

    Attributes:
        module: its full name in the model.
        down, up: keys of lora_A (r, in, ...) and lora_B (out, r), or of their embedding kinds, lora_embedding_A
            (r, vocabulary) and lora_embedding_B (dim, r).
        bias: key of lora_B's bias (out,), where it has one.
        rank: r.
        scaling: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA.
        shape: of the delta: (out, in), (out, in, *kernel), or (vocabulary, dim).
        embedding: the module is an embedding.
    """

    module: str
    down: str
    up: str
    bias: str | None
    rank: int
    scaling: float
    shape: tuple[int, ...]
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter folder; tensors are read when asked for.

    Attributes:
        directory: the folder.
        settings: what its config says.
        tensors: its weight file.
        loras: adapted modules by name, sorted.
        saved: keys of tensors kept whole, by the parameter's name in the model: those of `modules_to_save`,
            trained biases, resized embeddings.
        copies: keys of copies of the base's own tensors that PEFT put beside them, by the parameter's name.
    """

    directory: Path
    settings: Settings
    tensors: Checkpoint
    loras: Mapping[str, Lora]
    saved: Mapping[str, str]
    copies: Mapping[str, str]

    @classmethod
    def open(cls, directory: str | Path) -> Adapter:
        """Read config and header, and check every factor.

        Raises:
            AdapterError: nothing readable is there; the adapter is not a LoRA, or of a kind whose delta is not
                A C^T on this base; a factor is missing, of the wrong rank, or not finite.
        """
        directory = Path(directory)
        settings = read_config(directory)
        checkpoint = Checkpoint(directory, *_header(directory))
        keys = _Keys(directory, settings, checkpoint.tensors)
        for key in checkpoint.tensors:
            keys.take(key)
        found = cls(directory, settings, checkpoint, keys.loras(), dict(sorted(keys.saved.items())), keys.copies)
        found._check_finite()
        return found

    def factors(self, lora: Lora) -> tuple[torch.Tensor, torch.Tensor]:
        """A (out, r) and C (in, r) in float64, the delta being A C^T; a kernel's in is in times its cells.

        A is rounded to float32 once the scaling is in it, so that an adapter written from these factors and read
        again gives the same bits.
        """
        up, down = self.tensors.read(lora.up).double(), self.tensors.read(lora.down).double()
        if lora.embedding:
            up, down = down.T, up.T
        a, c = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1).T
        return (lora.scaling * a).float().double().contiguous(), c.contiguous()

    def bias(self, lora: Lora) -> torch.Tensor:
        """The delta (out,) of the module's bias, float32."""
        assert lora.bias is not None
        return (lora.scaling * self.tensors.read(lora.bias).double()).float()

    def digests(self) -> dict[str, str]:
        """BLAKE3 of each tensor, by key."""
        return digests(self.tensors)

    def fingerprint(self, digest: Mapping[str, str]) -> str:
        """Names the adapter's content: its tensors as in DESIGN's fingerprint, and the scaling of each module."""
        scales = json.dumps({name: lora.scaling for name, lora in self.loras.items()}, sort_keys=True)
        return blake3((fingerprint(specs_of(self.tensors), digest) + scales).encode()).hexdigest()

    def _check_finite(self) -> None:
        for lora in self.loras.values():
            for key in filter(None, (lora.down, lora.up, lora.bias)):
                if not bool(self.tensors.read(key).isfinite().all()):
                    raise AdapterError(
                        f"`{key}` of `{self.directory}` holds NaN or infinity; the training diverged or overflowed",
                        hint="take an earlier checkpoint of this training",
                    )


def peft_tensors(
    module: str, a: torch.Tensor, c: torch.Tensor, *, kernel: tuple[int, ...] = (), embedding: bool = False
) -> dict[str, torch.Tensor]:
    """A (out, r) and C (in, r) under PEFT's keys and in its layout, float32, scaling 1.

    Args:
        module: its full name.
        a, c: of an embedding (vocabulary, r) and (dim, r); of a convolution, in is in times its cells.
        kernel: (height, width) of a convolution.
        embedding: the module is an embedding.
    """
    up, down = a.float(), c.float().T
    if embedding:
        up, down = down.T, up.T
    if kernel:
        down = down.reshape(down.shape[0], -1, *kernel)
        up = up.reshape(*up.shape, *(1 for _ in kernel))
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return {f"{ROOT}{module}.{name}": tensor.contiguous() for name, tensor in zip(names, (down, up), strict=True)}


class _Keys:
    """Sorts the keys of a weight file by what they are."""

    def __init__(self, directory: Path, settings: Settings, tensors: Mapping[str, TensorInfo]) -> None:
        self.directory, self.settings, self.tensors = directory, settings, tensors
        self.saved: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self._parts: dict[str, dict[str, str]] = {}  # module -> down, up, bias, embedded
        self._adapters: set[str] = set()

    def take(self, key: str) -> None:
        name = key.removeprefix(ROOT)
        if found := _FACTOR.fullmatch(name):
            part = {"A": "down", "B": "up"}[found["side"]] if found["what"] == "weight" else "bias"
            self._part(found, part, key)
        elif found := _EMBEDDED.fullmatch(name):
            self._part(found, {"A": "down", "B": "up"}[found["side"]], key)
            self._parts[found["module"]]["embedded"] = key
        elif "lora_" in name.split(".modules_to_save.")[0]:
            raise AdapterError(
                f"`{key}` of `{self.directory}` belongs to no plain LoRA; only lora_A and lora_B are read",
                hint="merge the adapter into its base with PEFT (`merge_and_unload`), and give the merged model",
            )
        elif found := _SAVED.fullmatch(name):
            self._one_adapter(found["adapter"])
            self.saved[f"{found['module']}.{found['what']}"] = key
        elif found := _COPY.fullmatch(name):
            trained = found["what"] == "bias" and self.settings.bias != "none"
            (self.saved if trained else self.copies)[f"{found['module']}.{found['what']}"] = key
        else:
            self.saved[name] = key

    def _part(self, found: re.Match[str], part: str, key: str) -> None:
        self._one_adapter(found["adapter"])
        if self.tensors[key].dtype not in _FLOATS:
            raise AdapterError(f"`{key}` of `{self.directory}` is {self.tensors[key].dtype}; factors are floats")
        self._parts.setdefault(found["module"], {})[part] = key

    def _one_adapter(self, name: str | None) -> None:
        self._adapters |= {name} if name else set()
        if len(self._adapters) > 1:
            raise AdapterError(
                f"`{self.directory}` holds several adapters: {', '.join(sorted(self._adapters))}",
                hint="save each with PEFT's save_pretrained(..., selected_adapters=[NAME])",
            )

    def loras(self) -> dict[str, Lora]:
        if not self._parts and not self.saved:
            raise AdapterError(f"`{self.directory}` holds no lora_A and lora_B, and no whole tensor")
        return {module: self._lora(module, self._parts[module]) for module in sorted(self._parts)}

    def _lora(self, module: str, parts: Mapping[str, str]) -> Lora:
        missing = [side for part, side in (("down", "lora_A"), ("up", "lora_B")) if part not in parts]
        if missing:
            raise AdapterError(f"`{self.directory}` has no `{missing[0]}` for `{module}`", hint=_AGAIN)
        down, up = (self.tensors[parts[part]].shape for part in ("down", "up"))
        rank, scaling = self.settings.scale(module)
        if not _is_pair(down, up, rank):
            raise AdapterError(
                f"`{module}` of `{self.directory}` has lora_A {list(down)} and lora_B {list(up)}; rank {rank} needs "
                f"({rank}, in) and (out, {rank})",
                hint=_AGAIN,
            )
        embedded = "embedded" in parts
        out, *inner = (down[1], up[0]) if embedded else (up[0], *down[1:])
        bias = parts.get("bias")
        if bias is not None and self.tensors[bias].shape != (out,):
            raise AdapterError(f"`{bias}` of `{self.directory}` is {list(self.tensors[bias].shape)}, not [{out}]")
        shape = (out, *inner)
        return Lora(module, parts["down"], parts["up"], bias, rank, scaling, shape, embedded)


def _is_pair(down: tuple[int, ...], up: tuple[int, ...], rank: int) -> bool:
    """Whether lora_A (r, in, ...) and lora_B (out, r, 1, ...) are factors of `rank`."""
    deep = len(down) >= 2 and len(up) >= 2 and 0 not in (*down, *up)
    return deep and down[:1] == up[1:2] == (rank,) and math.prod(up[2:]) == 1


_AGAIN = "save the adapter again with PEFT's save_pretrained, all shards gathered"


def _header(directory: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    path = directory / WEIGHTS
    if not path.is_file():
        pickle = (directory / "adapter_model.bin").exists()
        what = "holds adapter_model.bin, a pickle that can run code when read;" if pickle else "has no"
        wanted = f"{WEIGHTS} is wanted" if pickle else WEIGHTS
        raise AdapterError(
            f"`{directory}` {what} {wanted}",
            hint="save it with PEFT's save_pretrained(..., safe_serialization=True)" if pickle else f"ls {directory}",
        )
    metadata, infos = read_header(path, AdapterError)
    return dict(sorted(infos.items())), metadata
