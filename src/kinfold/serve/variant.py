"""A variant as it is served: its changes, tokenizer, head, and where its answers end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kinfold.family.file import FamilyFile, is_family
from kinfold.pack.adapter_member import AdapterMember
from kinfold.pack.member import Base, Member
from kinfold.pack.members import PackMember, open_member
from kinfold.pack.skeleton import skeleton
from kinfold.serve.delta import Change, Dense, LowRank
from kinfold.serve.heads import ClassHead, Head, LinearHead, labels_of
from kinfold.serve.live import LiveModel, config_of, read_json
from kinfold.serve.placing import BARE_HEAD, Placement, changes, is_head, place
from kinfold.serve.texts import Tokens, tokenizer_files


@dataclass(eq=False)
class Variant:
    """What serving one model takes beside the base; the base itself is one without changes.

    Attributes:
        name: as requests name it.
        digest: of what it was loaded from.
        changes: by module and parameter.
        tokens: its tokenizer, the base's very object where they are equal.
        eos: tokens that end an answer.
        abilities: of `generate`, `embed`, `classify`.
        head: of a classifier.
    """

    name: str
    digest: str
    tokens: Tokens
    eos: frozenset[int]
    abilities: tuple[str, ...]
    changes: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)
    head: Head | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; what tied places share counts once."""
        tensors = {t.data_ptr(): t.nbytes for change in self.all() for t in _tensors(change)}
        return sum(tensors.values()) + (self.head.nbytes if self.head is not None else 0)

    def all(self) -> Iterable[Change]:
        return (change for parts in self.changes.values() for change in parts.values())


def _tensors(change: Change) -> tuple[torch.Tensor, ...]:
    if isinstance(change, LowRank):
        return change.inner, change.outer
    return (change.delta if isinstance(change, Dense) else change.value,)


def open_variant(path: str | Path, base: Base, name: str, member: str | None = None) -> Member:
    """A member of the base at a path: a model directory, a pack, an adapter, or with `member` one of a family.

    Raises:
        KinfoldError: nothing readable is there, or it was made from another base.
    """
    if member is None:
        return open_member(path, base, name)
    return PackMember(name, Path(path), base, opened=FamilyFile.open(path).member(member))


def members_at(path: str | Path) -> list[str]:
    """Names of the members of a family; empty for anything else."""
    return list(FamilyFile.open(path).manifest.members) if is_family(Path(path)) else []


def base_variant(live: LiveModel, name: str) -> Variant:
    """The base as a variant without changes."""
    checkpoint = live.base.checkpoint
    files = {path: (checkpoint.directory / path).read_bytes() for path in checkpoint.side_files()[0]}
    head = _head(live, files, checkpoint.tensors.keys(), checkpoint.read)
    return Variant(
        name, live.base.fingerprint, _tokens(name, files), _eos(files), _abilities(live, files, head), {}, head
    )


def load_variant(live: LiveModel, member: Member, digest: str, base: Variant) -> tuple[Variant, Placement]:
    """Decode a member into the form it is served in.

    Raises:
        ServeError: it cannot be mixed with the base; says why.
    """
    files = dict(member.files())
    if isinstance(member, AdapterMember):  # `files` are the base's; an adapter may bring its own tokenizer
        files |= tokenizer_files({p.name: p.read_bytes() for p in member.path.iterdir() if p.is_file()})
    placement = place(member, live, files.get("config.json", b""))
    head = _head(live, files, member.specs.keys(), member.value)
    tokens = _tokens(member.name, files)
    if tokens.files == base.tokens.files or not tokens.there:
        tokens = base.tokens
    found = changes(member, live, placement)
    abilities = _abilities(live, files, head)
    return Variant(member.name, digest, tokens, _eos(files), abilities, found, head), placement


def _tokens(name: str, files: Mapping[str, bytes]) -> Tokens:
    config = {"config.json": files["config.json"]} if "config.json" in files else {}
    return Tokens(name, tokenizer_files(files), config)


def _eos(files: Mapping[str, bytes]) -> frozenset[int]:
    generation, config = (read_json(files.get(name)) for name in ("generation_config.json", "config.json"))
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _abilities(live: LiveModel, files: Mapping[str, bytes], head: Head | None) -> tuple[str, ...]:
    return abilities_of(live, read_json(files.get("config.json")), head is not None)


def abilities_of(live: LiveModel, config: Mapping[str, Any], head: bool) -> tuple[str, ...]:
    """What a model of this config can be asked for; `head`: it has one that classifies."""
    classifies = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    generates = live.generates and not classifies
    return (*(("generate",) if generates else ()), "embed", *(("classify",) if head or classifies else ()))


def _head(live: LiveModel, files: Mapping[str, bytes], names: Iterable[str], read: Any) -> Head | None:
    """The head that the directory of a base or variant holds, if any; `read` gives its tensors by name."""
    names, config = set(names), read_json(files.get("config.json"))
    if set(BARE_HEAD) <= names and live.spell(BARE_HEAD[0]) is None:
        weight, bias = (read(name).float().to(live.device) for name in BARE_HEAD)
        return LinearHead(weight, bias, labels_of(config, len(bias)))
    bones = skeleton(files["config.json"]) if "config.json" in files else None
    own = [name for name in names if bones is not None and is_head(name, bones)]
    if not own:
        return None
    settings = config_of(files["config.json"])
    tensors = {name: read(name).to(live.device, live.dtype) for name in own}
    return ClassHead(settings, tensors, labels_of(config, settings.num_labels))
