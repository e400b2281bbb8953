"""A PEFT LoRA adapter as a member: deltas on the base's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kinfold.checkpoint.adapter import Adapter, Lora
from kinfold.checkpoint.header import size_of
from kinfold.checkpoint.match import common_prefix, renamed
from kinfold.codec.factors import product
from kinfold.errors import AdapterError
from kinfold.pack.files import against
from kinfold.pack.manifest import Manifest, Source
from kinfold.pack.member import Base, Member, Pair
from kinfold.pack.skeleton import Skeleton, skeleton
from kinfold.pack.source import created_by, difference, source_of
from kinfold.pack.units import FLOATS


@dataclass(frozen=True)
class _Change:
    """What the adapter does to one tensor: `lora` adds to it, `key` names a tensor that replaces it."""

    lora: Lora | None = None
    key: str | None = None
    transposed: bool = False


class AdapterMember(Member):
    """A LoRA adapter folder; its tensors go by the base's names.

    Attributes:
        kept: the base's names of the tensors that the adapter replaces whole.

    Where the adapter parts two tensors that the base ties, such as the embedding and the head, the variant has
    both, and its config says that they are not tied.
    """

    kind = "adapter"

    def __init__(self, name: str, path: Path, base: Base) -> None:
        super().__init__(name, path, base)
        self._adapter = Adapter.open(path)
        self._digests = self._adapter.digests()
        self.fingerprint = self._adapter.fingerprint(self._digests)
        self._prefix = self._find_prefix()
        self._changes = self._find_changes()
        self._stand_in: dict[str, str] = {}  # a tensor that the base only ties -> the one it is tied to
        self._untied = False
        self._tie()
        self._check_copies()
        tensors = base.checkpoint.tensors
        self.specs = {name: (info.dtype, info.shape) for name, info in tensors.items()}
        self.specs |= {name: self.specs[there] for name, there in self._stand_in.items()}
        saved = {name: self._infos[change.key] for name, change in self._changes.items() if change.key}
        self.specs |= {name: (info.dtype, info.shape) for name, info in saved.items()}
        self.specs = dict(sorted(self.specs.items()))
        self._place({name: name for name in tensors}, {name for name in tensors if not self._differs(name)})

    @property
    def kept(self) -> frozenset[str]:
        return frozenset(name for name, change in self._changes.items() if change.key is not None)

    def delta(self, name: str) -> torch.Tensor:
        change = self._changes.get(name)
        if name in self.same or change is None:
            return torch.zeros(self.specs[name][1])
        if change.lora is None:
            return difference(self.value(name), self.base.checkpoint.read(name))
        return self._added(name, change.lora)

    def value(self, own_name: str) -> torch.Tensor:
        change = self._changes.get(own_name, _Change())
        if change.key is not None:
            return self._adapter.tensors.read(change.key)
        reference = self.base.checkpoint.read(self._stand_in.get(own_name, own_name))
        if change.lora is None:
            return reference
        wide = torch.float64 if reference.dtype == torch.float64 else torch.float32
        return (reference.to(wide) + self._added(own_name, change.lora).to(wide)).to(reference.dtype)

    def files(self) -> Mapping[str, bytes]:
        directory = self.base.checkpoint.directory
        files = {name: (directory / name).read_bytes() for name in self.base.checkpoint.side_files()[0]}
        if self._untied:
            files["config.json"] = _untie(files["config.json"])
        return files

    def skeleton(self, **facts: Any) -> tuple[Manifest, bytes]:
        checkpoint = self.base.checkpoint
        files, blob = against(self.files(), checkpoint.directory)
        own = Source(
            name=self.name,
            fingerprint=self.fingerprint,
            bytes=sum(size_of(*spec) for spec in self.specs.values()),
            metadata=checkpoint.metadata,
        )
        manifest = Manifest(
            created_by=created_by(),
            base=source_of(checkpoint, self.base.fingerprint),
            variant=own,
            reference_bytes=self.reference_bytes,
            units=[],
            equal=self.equal,
            absent=self.absent,
            files=files,
            **facts,
        )
        return manifest, blob

    def factors(self, name: str) -> Pair | None:
        change = self._changes.get(name)
        if change is None or change.lora is None or len(self.specs[name][1]) < 2:
            return None
        a, c = self._adapter.factors(change.lora)
        return (c, a) if change.transposed else (a, c)

    @cached_property
    def _skeleton(self) -> Skeleton | None:
        path = self.base.checkpoint.directory / "config.json"
        return skeleton(path.read_bytes()) if path.exists() else None

    @property
    def _infos(self):
        return self._adapter.tensors.tensors

    def _added(self, name: str, lora: Lora) -> torch.Tensor:
        shape = self.specs[name][1]
        pair = self.factors(name)
        return self._adapter.bias(lora) if pair is None else product(*pair, shape, torch.float32)

    def _find_prefix(self) -> tuple[str, str]:
        tensors = self.base.checkpoint.tensors
        shapes = {f"{lora.module}.weight": lora.shape for lora in self._adapter.loras.values()}
        shapes |= {name: self._infos[key].shape for name, key in self._adapter.saved.items()}
        return common_prefix(shapes, tensors, lambda own, other: sorted(shapes[own]) == sorted(tensors[other].shape))

    def _find_changes(self) -> dict[str, _Change]:
        """By the base's name, or the adapter's own where the base has no such tensor."""
        changes: dict[str, _Change] = {}
        for lora in self._adapter.loras.values():
            name = self._named(f"{lora.module}.weight")
            changes[name] = _Change(lora, transposed=self._fit(name, lora))
            if lora.bias is not None:
                changes[self._bias(lora)] = _Change(lora)
        for own, key in self._adapter.saved.items():
            name = self._named(own)
            if name in changes:
                raise AdapterError(f"`{self.path}` both adapts `{name}` and replaces it; one of them is meant")
            if self._find(name) is None and not self._is_kept(own):
                raise AdapterError(
                    f"`{self.path}` holds `{own}`, which neither the base `{self.base.checkpoint.directory}` has nor "
                    "`modules_to_save` names",
                    hint="give the base that this adapter was trained on",
                )
            changes[name] = _Change(key=key)
        return changes

    def _named(self, own: str) -> str:
        other = renamed(own, self._prefix)
        return own if other is None or self._find(other) is None else other

    def _find(self, name: str) -> str | None:
        """The base's tensor of this name, or the one it is tied to."""
        tensors = self.base.checkpoint.tensors
        if name in tensors or self._skeleton is None:
            return name if name in tensors else None
        group = self._skeleton.tied.get(self._skeleton.spell(name) or name, ())
        spelt = {self._skeleton.spell(there): there for there in tensors}
        return next((spelt[twin] for twin in group if twin in spelt), None)

    def _is_kept(self, own: str) -> bool:
        """Whether `modules_to_save` covers a tensor: by the whole path of its module, or its end or a part of it."""
        path = f".{own}"
        return any(f".{module}." in path for module in self._adapter.settings.modules_to_save)

    def _fit(self, name: str, lora: Lora) -> bool:
        """Whether the base stores the weight transposed, after a check that A C^T fits it."""
        there = self._find(name)
        where = f"the base `{self.base.checkpoint.directory}`"
        if there is None:
            raise AdapterError(
                f"`{self.path}` adapts `{lora.module}`, and {where} has no `{lora.module}.weight`",
                hint="give the base that this adapter was trained on",
            )
        info = self.base.checkpoint.tensors[there]
        if info.dtype not in FLOATS:
            raise AdapterError(
                f"`{there}` of {where} is {info.dtype}; a delta needs floating point",
                hint="give the base as it was before quantisation",
            )
        kind = None if self._skeleton is None else self._skeleton.kind(name)
        crossed = len(lora.shape) == 2 and not lora.embedding and info.shape == lora.shape[::-1]
        transposed = crossed and self._adapter.settings.transposed if kind is None else kind == "conv1d"
        if not (crossed if transposed else info.shape == lora.shape):
            raise AdapterError(
                f"lora_B lora_A of `{lora.module}` in `{self.path}` is {list(lora.shape)}, and `{there}` of {where} is "
                f"{list(info.shape)}",
                hint="give the base that this adapter was trained on",
            )
        return transposed

    def _bias(self, lora: Lora) -> str:
        name = self._named(f"{lora.module}.bias")
        there = self._find(name)
        out = lora.shape[0]
        if there is None or self.base.checkpoint.tensors[there].shape != (out,):
            raise AdapterError(
                f"`{self.path}` has a bias for `{lora.module}`, and the base none of {out} values to add it to",
                hint="train without `lora_bias`, or keep the module in `modules_to_save`",
            )
        return name

    def _differs(self, name: str) -> bool:
        change, info = self._changes.get(name), self.base.checkpoint.tensors[name]
        if change is None or change.key is None:
            return change is not None
        saved = self._infos[change.key]
        alike = (saved.dtype, saved.shape) == (info.dtype, info.shape)
        return not alike or self._digests[change.key] != self.base.digests[name]

    def _tie(self) -> None:
        """Settle what happens to tensors that the base ties: changed alike they stay one, else they part."""
        bones, tensors = self._skeleton, self.base.checkpoint.tensors
        if bones is None:
            return
        names = {bones.spell(name): name for name in [*tensors, *self._changes]}
        for group in dict.fromkeys(bones.tied.values()):
            known = [names.get(name, name) for name in group]
            touched = [name for name in known if name in self._changes]
            stored = next((name for name in known if name in tensors), None)
            if not touched or stored is None:
                continue
            if len(touched) == len(known) and all(self._alike(touched[0], name) for name in touched):
                for name in touched:
                    if name not in tensors:
                        self._move(name, stored)
                continue
            if len(group) > 2:
                raise AdapterError(
                    f"`{self.path}` changes `{touched[0]}`, which {bones.model} shares with "
                    f"{', '.join(f'`{name}`' for name in known if name != touched[0])}, and not all of them alike",
                    hint="train without adapting shared weights",
                )
            self._untied = True
            self._stand_in |= {name: stored for name in known if name not in tensors}

    def _move(self, name: str, stored: str) -> None:
        change = self._changes.pop(name)
        self._changes.setdefault(stored, change)

    def _alike(self, one: str, two: str) -> bool:
        a, b = self._changes[one], self._changes[two]
        if a.key is not None and b.key is not None:
            return self._digests[a.key] == self._digests[b.key]
        if a.lora is None or b.lora is None:
            return False
        if one.endswith(".bias"):
            return torch.equal(self._adapter.bias(a.lora), self._adapter.bias(b.lora))
        pairs = self._adapter.factors(a.lora), self._adapter.factors(b.lora)
        return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(*pairs, strict=True))

    def _check_copies(self) -> None:
        """PEFT may put a copy of an adapted embedding beside its factors; another base's copy betrays itself."""
        for own, key in self._adapter.copies.items():
            there = self._find(self._named(own))
            if there is None:  # the head of a class that the base is not
                continue
            copy, reference = self._adapter.tensors.read(key), self.base.checkpoint.read(there)
            if copy.shape != reference.shape or not torch.equal(reference.to(copy.dtype), copy):
                raise AdapterError(
                    f"`{self.path}` carries its base's `{own}`, and it is not that of "
                    f"`{self.base.checkpoint.directory}`",
                    hint="give the base that this adapter was trained on, with its embeddings resized alike",
                )


def _untie(config: bytes) -> bytes:
    settings = json.loads(config)
    settings["tie_word_embeddings"] = False
    if isinstance(settings.get("text_config"), dict):
        settings["text_config"]["tie_word_embeddings"] = False
    return json.dumps(settings, indent=2).encode()
