"""Which parameter of the running model each changed tensor of a variant belongs to, and what cannot be mixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kinfold.codec.lowrank import Pair
from kinfold.codec.threads import ordered_map
from kinfold.errors import ServeError
from kinfold.pack.adapter_member import AdapterMember
from kinfold.pack.member import Member
from kinfold.pack.skeleton import Skeleton, skeleton
from kinfold.serve.delta import Change, Kind, LowRank, is_zero, product, whole_or_dense
from kinfold.serve.live import LiveModel, config_of

RESTORE = "kinfold restore writes it as a model directory, which a server of its own can serve"
BARE_HEAD = ("head.weight", "head.bias")  # beside an encoder, see kinfold.tasks
HARMLESS = {  # nothing that a forward pass without training reads, or told otherwise: heads, ties, tokens
    *("architectures", "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "tie_word_embeddings"),
    *("initializer_range", "initializer_factor", "gradient_checkpointing", "output_attentions", "return_dict"),
    *("output_hidden_states", "tokenizer_class", "_attn_implementation", "chunk_size_feed_forward"),
}


@dataclass
class Placement:
    """Where a variant's tensors go.

    Attributes:
        sources: the variant's name of what each changed place gets; tied places may share one.
        keys: the base's name of it, where it has a delta.
        aside: the variant's names that belong to a head and not to the core.
    """

    sources: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    aside: list[str] = field(default_factory=list)


def place(member: Member, live: LiveModel, raw_config: bytes) -> Placement:
    """Find a place for every tensor of a member that differs from the base.

    Args:
        member: of the live model's base.
        live: the running base.
        raw_config: `config.json` of the variant; empty where it has none.

    Raises:
        ServeError: a tensor has no place, another shape than its place, or is missing, or the config differs.
    """
    check_config(member, live, raw_config)
    bones = skeleton(raw_config) if raw_config else None
    found = Placement()
    told: dict[str, tuple[str, str | None]] = {}  # by place: the variant's name, and the base's where it has a delta
    for base_name, own in member.own.items():
        spot = live.spell(base_name)
        if spot is not None:
            told[spot] = (own, base_name)
        elif base_name not in member.same:
            found.aside.append(own)
    for own in member.whole:
        spot = live.spell(own)
        if spot is None or (bones is not None and is_head(own, bones)):
            found.aside.append(own)
        elif tuple(live.places[spot].shape) != member.specs[own][1]:
            shapes = f"is {list(member.specs[own][1])}, the base's {list(live.places[spot].shape)}"
            raise _cannot(member, f"its `{own}` {shapes}")
        else:
            told[spot] = (own, None)
    _refuse_twice(member, live)
    _refuse_leftovers(member, live, found.aside, bones)
    for spot in live.places:
        source = told.get(spot) or _twin(spot, told, live, bones)
        if source is None:
            _check_absent(member, live, spot, bones)
        elif source[1] is None or source[1] not in member.same or not _is_at(live, source[1], spot):
            found.sources[spot] = source[0]
            if source[1] is not None:
                found.keys[spot] = source[1]
    return found


def _is_at(live: LiveModel, base_name: str | None, spot: str) -> bool:
    """Whether the base's tensor of this name is the parameter at a place, which may be tied to its own."""
    own = None if base_name is None else live.spell(base_name)
    return own is not None and live.places[own] is live.places[spot]


def _twin(
    spot: str, told: Mapping[str, tuple[str, str | None]], live: LiveModel, bones: Skeleton | None
) -> tuple[str, str | None] | None:
    """What a place gets that the variant does not store, because it is tied to one that it does."""
    there = None if bones is None else bones.tied.get(bones.spell(spot) or "")
    names = (live.spell(name) for name in (*live.tied[spot], *(there or ())))
    return next((told[name] for name in names if name is not None and name in told), None)


def _check_absent(member: Member, live: LiveModel, spot: str, bones: Skeleton | None) -> None:
    """A parameter of the base that the variant lacks must be one that the variant's class lacks too."""
    stored = next((name for name in member.absent if live.spell(name) == spot), None)
    if stored is not None and (bones is None or bones.spell(spot) is not None):
        raise _cannot(member, f"it lacks the base's `{stored}`")


def is_head(name: str, bones: Skeleton) -> bool:
    """Whether a tensor belongs to the head of a sequence classifier."""
    inside = bones.prefix and name.startswith(bones.prefix)
    return bones.model.endswith("ForSequenceClassification") and name in bones.tensors and not inside


def _refuse_twice(member: Member, live: LiveModel) -> None:
    """Two tensors for one parameter: a checkpoint that stores both with and without the prefix of its base model."""
    spots: dict[str, str] = {}
    for name in (*member.own, *(name for name in member.whole)):
        spot = live.spell(name)
        if spot is not None and spots.setdefault(spot, name) != name:
            raise _cannot(member, f"both `{spots[spot]}` and `{name}` belong to the base's `{spot}`")


def _refuse_leftovers(member: Member, live: LiveModel, aside: list[str], bones: Skeleton | None) -> None:
    strangers = [
        name
        for name in aside
        if name not in (*BARE_HEAD, *live.unused) and not (bones is not None and is_head(name, bones))
    ]
    if strangers:
        named = ", ".join(f"`{name}`" for name in strangers[:5]) + (" and more" if len(strangers) > 5 else "")
        raise _cannot(member, f"the base has no place for its {named}: neither a parameter nor a head that is known")


def check_config(member: Member, live: LiveModel, raw_config: bytes) -> None:
    """Refuse a variant whose config asks for another computation than the base's.

    Raises:
        ServeError: naming the settings.
    """
    path = live.base.checkpoint.directory / "config.json"
    if not raw_config or raw_config == path.read_bytes():
        return
    try:
        own = config_of(raw_config).to_dict()
    except (OSError, ValueError) as cause:
        raise _cannot(member, f"transformers cannot read its config: {cause}") from cause
    base = config_of(path.read_bytes()).to_dict()
    unlike = sorted(set(_differing(base, own)))
    if unlike:
        raise _cannot(member, f"its config differs from the base's in {', '.join(unlike)}")


def _differing(base: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    for key in base.keys() | own.keys():
        one, other = base.get(key), own.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and key not in HARMLESS:
            yield from (f"{key}.{inner}" for inner in _differing(one, other))
        elif one != other and key not in HARMLESS and not any(part in key for part in ("dropout", "_pdrop")):
            yield key


def changes(member: Member, live: LiveModel, placement: Placement) -> dict[str, dict[str, Change]]:
    """Every change in the form it is served in, by module and parameter; what tied places share is made once.

    Raises:
        ServeError: a module owns both a changed parameter and other modules.
    """
    result: dict[str, dict[str, Change]] = {}
    jobs: dict[tuple[str, int], tuple[str, Kind]] = {}  # what has no factors: a place for each tensor and parameter
    waiting: list[tuple[str, str, tuple[str, int]]] = []
    for spot, own in placement.sources.items():
        module, parameter, kind = live.module_of(spot)
        if kind == "parent":
            raise _cannot(member, f"`{spot}` changed, and its module holds other modules")
        change = _product(member, live, placement, spot, kind)
        if change is None:
            key = (own, id(live.places[spot]) if kind != "leaf" else 0)
            jobs.setdefault(key, (spot, kind))
            waiting.append((module, parameter, key))
        elif not is_zero(change):
            result.setdefault(module, {})[parameter] = change

    def made(key: tuple[str, int]) -> Change | None:
        spot, kind = jobs[key]
        with torch.inference_mode():
            return whole_or_dense(member.value(key[0]), kind, live.places[spot])

    found = dict(zip(jobs, ordered_map(made, jobs, values=lambda key: live.places[jobs[key][0]].numel()), strict=True))
    for module, parameter, key in waiting:
        change = found[key]
        if change is not None:
            result.setdefault(module, {})[parameter] = change
    return result


def _product(member: Member, live: LiveModel, placement: Placement, spot: str, kind: Kind) -> LowRank | None:
    pair = _pair(member, live, placement, spot)
    return None if pair is None else product(pair, kind, live.places[spot])


def _pair(member: Member, live: LiveModel, placement: Placement, spot: str) -> Pair | None:
    """The delta of a place as a product, where the member keeps it as one against the very parameter of this place."""
    base_name = placement.keys.get(spot)
    if base_name is None:  # an adapter may part a tied weight; its factors then go on the one it was tied to
        return member.factors(placement.sources[spot]) if isinstance(member, AdapterMember) else None
    return member.factors(base_name) if _is_at(live, base_name, spot) else None


def values(member: Member, live: LiveModel, placement: Placement) -> dict[str, torch.Tensor]:
    """The variant's weights at every changed place, in the model's dtype, by a way that serving does not take.

    What a member keeps as a product is added here densely, and rounded once to the model's dtype: a restored
    directory in bfloat16 has lost more of a small delta than the server does.
    """
    found = {}
    for spot, own in placement.sources.items():
        like = live.places[spot]
        if _pair(member, live, placement, spot) is not None:
            delta = member.delta(placement.keys.get(spot, own)).to(like.device)
            found[spot] = (like.float() + delta).to(live.dtype)
        else:
            found[spot] = member.value(own).to(live.device, live.dtype)
    return found


def _cannot(member: Member, why: str) -> ServeError:
    return ServeError(f"`{member.name}` cannot be mixed with its base: {why}", hint=RESTORE)
