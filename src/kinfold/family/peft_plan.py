"""How each changed tensor of a variant travels in a LoRA adapter: as factors, as a bias, whole, or not at all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from kinfold.pack.adapter_member import AdapterMember
from kinfold.pack.member import Member
from kinfold.pack.skeleton import Kind, Skeleton

Engine = Literal["peft", "vllm"]
NOISY = ("fold", "dare")  # codecs that add unbiased noise
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM 0.32 takes as max_lora_rank
_VLLM_WHOLE = ("classifier", "score")  # the only modules_to_save that vLLM takes
_VLLM_EMBEDDINGS = ("LlamaForCausalLM", "Qwen3ForCausalLM")  # classes there that declare `embedding_modules`
_VLLM_VOCABULARY = 258_048
LOW_RANK: tuple[Kind, ...] = ("linear", "conv1d", "embedding", "convolution")


@dataclass(frozen=True)
class Spot:
    """A tensor's place in the model class: module and parameter; a tied tensor has several."""

    module: str
    parameter: str
    kind: Kind


@dataclass
class Plan:
    """What goes where.

    Attributes:
        low_rank: base's name of each tensor that becomes factors -> its spots.
        biases: base's name of each bias that travels as `lora_B.bias` -> its spots.
        whole: full names of the modules kept whole.
        left: own name of each tensor that cannot travel -> why.
        notes: what a reader should know.
    """

    low_rank: dict[str, list[Spot]] = field(default_factory=dict)
    biases: dict[str, list[Spot]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keep_whole(self, name: str) -> None:
        """Take a tensor out of the low-rank part and keep its modules."""
        self.whole |= {spot.module for spot in self.low_rank.pop(name)}

    def is_whole(self, module: str) -> bool:
        """Whether a module, or one that it lies in, is kept whole."""
        return any(module == kept or module.startswith(f"{kept}.") for kept in self.whole)

    def settle(self) -> None:
        """A module that is kept whole has no factors and no bias beside it."""
        for part in (self.low_rank, self.biases):
            for name, spots in list(part.items()):
                part[name] = [spot for spot in spots if not self.is_whole(spot.module)]
                if not part[name]:
                    del part[name]


def plan(member: Member, bones: Skeleton | None, engine: Engine) -> Plan:
    """Sort every changed tensor; `bones` is the variant's class, None where it is not known."""
    found = Plan()
    if bones is None:
        found.notes.append("the model's class could not be built: 2-D weights are taken for Linear layers")
    if member.codec in NOISY:
        found.notes.append(
            f"a `{member.codec}` pack decodes to the delta and unbiased noise, and factors take noise for content: "
            "export from the variant, or from a `truncsvd` or `exact` pack"
        )
    kept = member.kept if isinstance(member, AdapterMember) else frozenset()  # whole before, whole again
    deltas = {member.own[name]: name for name in member.changed}
    for own in [*deltas, *member.whole]:
        spots = _spots(own, member, bones)
        if engine == "vllm" and spots and all(_is_head(spot.module) for spot in spots):
            found.whole |= {spot.module for spot in spots}
        else:
            name = deltas.get(own)
            _route(found, own, None if name in kept else name, spots)
    if engine == "vllm":
        _for_vllm(found, member, bones)
    elif found.biases and any(_has_embedding(spots) for spots in found.low_rank.values()):
        for name in [name for name, spots in found.low_rank.items() if _has_embedding(spots)]:
            found.keep_whole(name)
        found.notes.append("embeddings travel whole: PEFT's `lora_bias`, which the biases need, excludes their factors")
    if bones is not None:
        close(found, bones)
    found.settle()
    return found


def _route(found: Plan, own: str, base_name: str | None, spots: list[Spot]) -> None:
    """Put one tensor into its part of the plan; without `base_name` its delta is not to be used."""
    weights = all(spot.kind in LOW_RANK and spot.parameter == "weight" for spot in spots)
    biased = [spot for spot in spots if spot.kind in LOW_RANK and spot.parameter == "bias"]
    if not spots:
        found.left[own] = "the model's class has no such tensor"
    elif base_name is not None and weights:
        found.low_rank[base_name] = spots
    elif base_name is not None and biased:
        found.biases[base_name] = biased
    elif all(spot.kind in ("parent", "shared") for spot in spots):
        found.left[own] = "it lies in no module of its own"
    else:
        found.whole |= {spot.module for spot in spots if spot.kind not in ("parent", "shared")}


def _spots(own: str, member: Member, bones: Skeleton | None) -> list[Spot]:
    if bones is None:
        module, _, parameter = own.rpartition(".")
        matrix = len(member.specs.get(f"{module}.weight", ("", ()))[1]) == 2
        return [Spot(module, parameter, "linear" if matrix else "other")] if module else []
    spelt = bones.spell(own)
    if spelt is None:
        return []
    places = [name.rpartition(".") for name in bones.tied.get(spelt, (spelt,))]
    return [Spot(module, parameter, bones.kinds[module]) for module, _, parameter in places]


def _is_head(module: str) -> bool:
    return module.rpartition(".")[2] in _VLLM_WHOLE


def _has_embedding(spots: list[Spot]) -> bool:
    return any(spot.kind == "embedding" for spot in spots)


def _for_vllm(found: Plan, member: Member, bones: Skeleton | None) -> None:
    """Leave out what vLLM refuses at load."""
    for name in found.biases:
        found.left[member.own[name]] = "vLLM takes no `lora_bias`"
    found.biases.clear()
    for name, spots in list(found.low_rank.items()):
        why = _vllm_refuses(spots, member.specs[member.own[name]][1], bones)
        if why:
            found.left[member.own[name]] = why
            del found.low_rank[name]
    kept = set(filter(_is_head, found.whole))
    for own in [*(member.own[name] for name in member.changed), *member.whole]:
        modules = {spot.module for spot in _spots(own, member, bones)}
        if modules & (found.whole - kept):
            found.left[own] = "vLLM takes whole modules only where they are called `classifier` or `score`"
    found.whole = kept


def _vllm_refuses(spots: list[Spot], shape: tuple[int, ...], bones: Skeleton | None) -> str:
    if any(spot.kind in ("convolution", "conv1d") for spot in spots):
        return "vLLM takes LoRA on Linear layers only"
    vocabulary = _has_embedding(spots) or spots[0].module.rpartition(".")[2] == "lm_head"
    if vocabulary and (len(spots) > 1 or bones is None or bones.model not in _VLLM_EMBEDDINGS):
        return "vLLM takes no LoRA on this class's embeddings and head"
    if vocabulary and shape[0] > _VLLM_VOCABULARY:
        return f"vLLM takes no LoRA on a vocabulary over {_VLLM_VOCABULARY}"
    return ""


def close(found: Plan, bones: Skeleton) -> None:
    """PEFT keeps every module whose name ends like one that is to be kept: those must be in the file too."""
    while True:
        caught = {m for m in bones.kinds if any(m.endswith(kept) for kept in found.whole) and m not in found.whole}
        if not caught:
            return
        found.whole |= caught


def caught(targets: Collection[str], chosen: Plan, bones: Skeleton | None) -> list[tuple[str, Kind]]:
    """Modules that PEFT would adapt because their name ends, at a dot, with a target's."""
    return [
        (module, kind)
        for module, kind in sorted(bones.kinds.items() if bones else ())
        if module not in targets
        and kind in LOW_RANK
        and not chosen.is_whole(module)
        and any(module.endswith(f".{target}") for target in targets)
    ]
