"""What an adapter file holds, gathered from a variant by a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from kinfold.checkpoint.adapter import ROOT, peft_tensors
from kinfold.codec.sums import squared_norm
from kinfold.errors import AdapterError
from kinfold.family.peft_factors import Found, factors_of
from kinfold.family.peft_plan import LOW_RANK, Plan, Spot, caught, close
from kinfold.pack.member import Member
from kinfold.pack.skeleton import Kind, Skeleton
from kinfold.report.progress import progress


@dataclass
class Content:
    """The tensors of an adapter file.

    Attributes:
        tensors: factors and biases by key, float32; small by their nature.
        ranks: of each adapted module.
        whole: own name of the variant's tensor under each key that is kept whole; read when written.
        found: the factors of each low-rank tensor, by the variant's name.
        energies: ||delta||^2 of each tensor that has a delta, by the variant's name.
        lost: the part of it that the adapter lacks.
        transposed: some module stores its weight as (in, out).
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
    energies: dict[str, float] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    transposed: bool = False

    def put(self, spot: Spot, pair: tuple[torch.Tensor, torch.Tensor], shape: tuple[int, ...]) -> None:
        """Adapt the module at `spot`, whose weight has `shape`."""
        a, c = pair[::-1] if spot.kind == "conv1d" else pair
        self.tensors |= peft_tensors(spot.module, a, c, kernel=shape[2:], embedding=spot.kind == "embedding")
        self.ranks[spot.module] = a.shape[1]
        self.transposed |= spot.kind == "conv1d"


def gather(variant: Member, bones: Skeleton | None, chosen: Plan, rank: int | None, *, or_whole: bool) -> Content:
    """Compute the factors, and settle what `chosen` left open: a tensor no larger than its factors is kept whole.

    Raises:
        AdapterError: no module is left that PEFT could adapt, and it takes no adapter without one.
    """
    content = Content()
    _factorise(content, variant, chosen, rank, or_whole)
    if bones is not None:
        close(chosen, bones)
    chosen.settle()
    places = _places(variant, bones)
    for name, spots in chosen.low_rank.items():
        own = variant.own[name]
        pair = content.found[own].pair
        if pair is None:  # the delta is zero
            continue
        for spot in spots:
            content.put(spot, pair, variant.specs[own][1])
    _fill(content, variant, bones, chosen, places)
    _bias(content, variant, chosen)
    for module in sorted(chosen.whole):
        content.whole |= {f"{ROOT}{place}": own for place, own in places.items() if place.startswith(f"{module}.")}
    _measure_rest(content, variant, chosen)
    return content


def _factorise(content: Content, variant: Member, chosen: Plan, rank: int | None, or_whole: bool) -> None:
    sizes = {name: math.prod(variant.specs[variant.own[name]][1]) for name in chosen.low_rank}
    with progress("export", 4 * sum(sizes.values())) as advance:
        for found in factors_of(variant, [*sizes], rank, or_whole=or_whole):
            own = variant.own[found.name]
            content.found[own], content.energies[own] = found, found.energy
            if found.pair is None and found.energy:
                chosen.keep_whole(found.name)
            else:
                content.lost[own] = found.lost
            advance(4 * sizes[found.name])


def _places(variant: Member, bones: Skeleton | None) -> dict[str, str]:
    """The variant's tensor for each name that the model's class has, tied names included."""
    if bones is None:
        return {own: own for own in variant.specs}
    spelt = {place: own for own in variant.specs if (place := bones.spell(own)) is not None}
    twins = {twin: own for place, own in spelt.items() for twin in bones.tied.get(place, ())}
    return twins | spelt


def _fill(content: Content, variant: Member, bones: Skeleton | None, chosen: Plan, places: Mapping[str, str]) -> None:
    """Factors of rank 1 that add nothing, for modules that PEFT must adapt or will adapt by their name."""

    def zero(module: str, kind: Kind) -> None:
        shape = variant.specs[places[f"{module}.weight"]][1]
        content.put(
            Spot(module, "weight", kind), (torch.zeros(shape[0], 1), torch.zeros(math.prod(shape[1:]), 1)), shape
        )

    for spots in chosen.biases.values():
        for spot in spots:
            if spot.module not in content.ranks:
                zero(spot.module, spot.kind)
    if not content.ranks and chosen.whole:
        zero(*_any_module(variant, bones, chosen, places))
    for module, kind in caught(content.ranks, chosen, bones):
        zero(module, kind)


def _any_module(variant: Member, bones: Skeleton | None, chosen: Plan, places: Mapping[str, str]) -> tuple[str, Kind]:
    kinds = bones.kinds if bones else {}
    for place, own in sorted(places.items()):
        module, _, parameter = place.rpartition(".")
        kind = kinds.get(module, "other") if bones else "linear"
        if (
            parameter == "weight"
            and len(variant.specs[own][1]) == 2
            and kind in LOW_RANK
            and not chosen.is_whole(module)
        ):
            return module, kind
    raise AdapterError(
        f"`{variant.name}` has no module beside those kept whole that a LoRA could adapt",
        hint="a smaller --rank leaves fewer modules whole",
    )


def _bias(content: Content, variant: Member, chosen: Plan) -> None:
    """`lora_bias` is for all adapted modules or for none: those whose bias did not change get zeros."""
    if not chosen.biases:
        return
    deltas = {spot.module: variant.delta(name) for name, spots in chosen.biases.items() for spot in spots}
    for module in content.ranks:
        out = content.tensors[f"{ROOT}{module}.lora_B.weight"].shape[0]
        content.tensors[f"{ROOT}{module}.lora_B.bias"] = deltas.get(module, torch.zeros(out)).contiguous()


def _measure_rest(content: Content, variant: Member, chosen: Plan) -> None:
    """The energy of what travels whole, as a bias, or not at all."""
    for name in variant.changed:
        own = variant.own[name]
        if own not in content.energies:
            content.energies[own] = squared_norm(variant.delta(name))
        if own in chosen.left:
            content.lost[own] = content.energies[own]
