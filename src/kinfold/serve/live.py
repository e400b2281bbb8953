"""The base model in memory, wrapped so that variants can be mixed, with what else its directory holds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from kinfold.errors import CheckpointError, ServeError
from kinfold.pack.member import Base
from kinfold.serve.delta import Kind, kind_of
from kinfold.serve.mix import Mixer
from kinfold.tasks import model_class, quiet_transformers

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "mlp", "moe"}


class LiveModel:
    """A base that answers rows of many variants at once.

    Attributes:
        base: its checkpoint, opened and hashed.
        core: what runs: the whole model of a causal LM, else the encoder without any head.
        architecture: name of the class in the config.
        generates: the core is a causal LM.
        dtype, device: of the weights.
        mixer: names the variants of the rows of a pass.
        unused: tensors of the model's own head, which is not part of the core.
        places: every parameter of the core by all of its names, tied ones under each.
        tied: all names of each parameter, by each of them.
        limit: tokens the positions allow.
    """

    def __init__(self, base: Base, *, dtype: str = "auto", device: str = "cpu") -> None:
        self.base = base
        model = _load(base.checkpoint.directory, dtype).to(device).eval().requires_grad_(False)
        self.architecture = type(model).__name__
        self.config = model.config
        self._check()
        self.generates = bool(model.can_generate())
        self.prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
        self.core: Any = model if self.generates else model.base_model
        beside = () if self.core is model else model.state_dict()
        self.unused = frozenset(name for name in beside if not name.startswith(self.prefix))
        self.places: dict[str, nn.Parameter] = dict(self.core.named_parameters(remove_duplicate=False))
        self._modules: dict[str, nn.Module] = dict(self.core.named_modules(remove_duplicate=False))
        named = {id(module): name for name, module in self.core.named_modules()}
        self._module_names = {name: named[id(module)] for name, module in self._modules.items()}
        first = next(iter(self.places.values()))
        self.dtype, self.device = first.dtype, first.device
        self.mixer = Mixer(self.core)
        self._plain: tuple[torch.Tensor, torch.Tensor] | None = None
        names: dict[int, list[str]] = {}
        for name, parameter in self.places.items():
            names.setdefault(id(parameter), []).append(name)
        self.tied = {name: tuple(group) for group in names.values() for name in group}

    @classmethod
    def open(cls, directory: str | Path, *, dtype: str = "auto", device: str = "cpu") -> LiveModel:
        """Hash and load a model directory.

        Args:
            directory: of the base.
            dtype: `auto` keeps the checkpoint's.
            device: as torch names it.

        Raises:
            CheckpointError: the directory cannot be read, or transformers cannot build its model.
            ServeError: another dtype, or a model whose rows cannot be mixed.
        """
        if dtype not in ("auto", *DTYPES):
            raise ServeError(f"`{dtype}` is no dtype to serve in; there are auto, {', '.join(DTYPES)}")
        return cls(Base.open(directory), dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return sum({id(p): p.nbytes for p in self.places.values()}.values())

    @property
    def stored_dtype(self) -> torch.dtype:
        """That of the largest tensor of the base's checkpoint."""
        return max(self.base.checkpoint.tensors.values(), key=lambda info: info.nbytes).torch_dtype

    @property
    def vocabulary(self) -> int:
        return self.core.get_input_embeddings().num_embeddings

    @cached_property
    def limit(self) -> int:
        text = self.config.get_text_config()
        positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2048
        rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
        if "longrope" in (rope.get("rope_type"), rope.get("type")):
            # beyond these, all rows of a batch would turn with the longest of them
            first = rope.get("original_max_position_embeddings")
            positions = min(positions, first or getattr(text, "original_max_position_embeddings", None) or positions)
        for name, module in self._modules.items():  # positions may start behind that of padding, as in RoBERTa
            padding = module.padding_idx if isinstance(module, nn.Embedding) else None
            if name.endswith("position_embeddings") and padding is not None:
                return positions - padding - 1
        return positions

    @property
    def inner(self) -> Any:
        """The part that gives hidden states."""
        return self.core.base_model

    def module_of(self, place: str) -> tuple[str, str, Kind]:
        """(module's name in the mixer, parameter, kind) of a place."""
        path, _, parameter = place.rpartition(".")
        return self._module_names[path], parameter, kind_of(self._modules[path])

    def spell(self, name: str) -> str | None:
        """The place that a tensor of a checkpoint has, with or without the prefix of the base model."""
        spellings = (name, name.removeprefix(self.prefix), self.prefix + name)
        return next((spelling for spelling in spellings if spelling in self.places), None)

    @cached_property
    def _bones(self) -> Any:
        """The core's class without weights or hooks."""
        with quiet_transformers(), torch.device("meta"):
            model = model_class(self.config)
            made = model(self.config) if hasattr(model, "base_model_prefix") else model.from_config(self.config)
        return (made if self.generates else made.base_model).eval()

    def run_with(self, values: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """`probe_features` of the base with some parameters replaced: no hooks and no deltas have a part in it.

        Args:
            values: by place, in the shapes of the parameters.
            ids: (rows, tokens), int64.
        """
        state = {**self.places, **dict(self.core.named_buffers()), **values}
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            output = functional_call(self._bones, state, (), arguments, tie_weights=False)
        return self.features(output)

    def plain(self, ids: torch.Tensor) -> torch.Tensor:
        """`run_with` of nothing, remembered for the last ids."""
        if self._plain is None or not torch.equal(self._plain[0], ids):
            self._plain = ids, self.run_with({}, ids)
        return self._plain[1]

    def features(self, output: Any) -> torch.Tensor:
        """(rows, vocabulary) log-probabilities at the last position of a causal LM, (rows, hidden) means of an
        encoder; float32."""
        if self.generates:
            return output.logits[:, -1].float().log_softmax(-1)
        return output.last_hidden_state.float().mean(1)

    def _check(self) -> None:
        text = self.config.get_text_config()
        odd = set(getattr(text, "layer_types", None) or ()) - _PLAIN_LAYERS
        if getattr(self.config, "is_encoder_decoder", False) or odd:
            what = f"layers of {', '.join(sorted(odd))}" if odd else "an encoder and a decoder"
            raise ServeError(
                f"`{self.base.checkpoint.directory}` is a {self.architecture} with {what}, which is not served"
            )


def _load(directory: Path, dtype: str) -> Any:
    import transformers

    with quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(directory)
            kind = model_class(config)
            return kind.from_pretrained(directory, dtype=DTYPES.get(dtype, "auto"))
        except (OSError, ValueError) as cause:
            raise CheckpointError(f"transformers cannot load `{directory}`: {cause}") from cause


def config_of(raw: bytes) -> Any:
    """The transformers config that the bytes of a `config.json` say; no code of the model's own is run."""
    import transformers

    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder, quiet_transformers():
        (Path(folder) / "config.json").write_bytes(raw)
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_json(data: bytes | None) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
