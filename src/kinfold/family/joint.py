"""Several members in one file with low-rank layers: plan, then parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinfold.codec import create
from kinfold.codec.threads import ordered_map
from kinfold.errors import BudgetError
from kinfold.family.arms import Arm, Layer, joint, rebuilt, reversible, truncated
from kinfold.family.file import Part, family_bytes
from kinfold.family.layers import Layers
from kinfold.family.manifest import FamilyManifest, Shared
from kinfold.family.plan import Choice, choose
from kinfold.pack import coding
from kinfold.pack.manifest import Manifest, Unit
from kinfold.pack.member import Member
from kinfold.pack.plan import KEPT_SHARE, Job, keep
from kinfold.pack.units import Draft, groups
from kinfold.report.progress import progress

METHODS = ("rmm", "jd", "truncsvd")
_LEAST_RANK = 4
_ROUNDS = 8
_SPARE = 64  # bytes that the text of another budget may take in the manifest
Assembled = tuple[FamilyManifest, dict[str, bytes], list[Part]]
Built = tuple[FamilyManifest, Mapping[str, bytes], list[Part], int]


@dataclass(frozen=True)
class Kept:
    """What of a member is in no layer, coded: norms, biases, heads, embeddings that grew."""

    manifest: Manifest
    units: list[Unit]
    payloads: bytes
    files: bytes


@dataclass(frozen=True)
class Option:
    """An arm without its payloads."""

    codec: str
    spec: tuple[int, ...]
    choice: Choice
    errors: tuple[float, ...]


Options = Sequence[Sequence[Option]]  # of every layer


def keep_rest(members: Sequence[Member], layers: Layers, room: int) -> list[Kept]:
    """Code what is in no layer, most faithfully in about a twentieth of each member's part of `room` bytes."""
    found = []
    for number, member in enumerate(members):
        in_layers = {pieces[number].name for pieces in layers.pieces.values() if number in pieces}
        rest = [piece for piece in member.pieces() if piece.name not in in_layers]
        drafts = [Draft(group, False) for group in groups(rest)]
        ways = keep(member.deltas, drafts, create("truncsvd"), room // len(members) // KEPT_SHARE)
        jobs = next((jobs for jobs, _ in ways), [])
        manifest, files = member.skeleton(codec="truncsvd", seed=0)
        coded = [coding.encode(member.deltas, job, 0, lambda _: None) for job in jobs]
        units = [_kept_unit(job, one) for job, one in zip(jobs, coded, strict=True)]
        found.append(Kept(manifest, units, b"".join(one.data for one in coded), files))
    return found


def _kept_unit(job: Job, coded: coding.Coded) -> Unit:
    codec = job.codec.name if job.codec else "exact"
    pieces = list(job.draft.pieces)
    return Unit(
        codec=codec, bytes=len(coded.data), pieces=pieces, params=coded.params, error=coded.error, norm=coded.norm
    )


def options(
    layers: Layers, methods: Sequence[str], ranks: Sequence[int], directions: int | None, width: int | None, plain: bool
) -> list[list[Option]]:
    """Every arm of every layer, as its reader would see it.

    Args:
        layers: of all members.
        methods: which arms there are.
        ranks: of `rmm`.
        directions: of `rmm`; None tries all.
        width: bits of a stored value in `rmm`; None tries 8 and 4.
        plain: factors as they were given, nothing normalised or rotated.
    """
    only = None if directions is None else [directions]
    narrow = {} if width is None else {"widths": [width]}

    def arms(layer: Layer) -> Iterator[Arm]:
        if "rmm" in methods:
            yield from reversible(layer, ranks, only, plain=plain, **narrow)
        if "truncsvd" in methods:
            yield from truncated(layer)
        if "jd" in methods:
            yield from joint(layer)

    def listed(layer: Layer) -> list[Option]:
        return [Option(arm.codec, arm.spec, Choice(arm.bytes, arm.error), arm.errors) for arm in arms(layer)]

    with progress("arms", len(layers.pieces)) as advance:
        result = []
        for found in ordered_map(listed, layers, values=_held):
            result.append(found)
            advance(1)
    return result


def _held(layer: Layer) -> int:
    """Numbers of its factors, in float32s: few layers are in flight where they are large."""
    return sum(2 * (a.numel() + c.numel()) for a, c in layer.pairs)


def ranks_for(layers: Layers, rank: int | str) -> list[int]:
    """Ranks of `rmm` to try: the one asked for; else the members' own, at most 16, its half and its quarter."""
    widest = max((a.shape[1] for layer in layers for a, _ in layer.pairs), default=1)
    if isinstance(rank, int):
        return [min(rank, widest)]
    top = min(widest, 16)
    return sorted({max(top >> shift, min(_LEAST_RANK, top)) for shift in range(3)}, reverse=True)


def pick(options: Options, methods: Sequence[str], room: int) -> list[Option] | None:
    """The plan for `room` bytes with the arms of `methods` alone; None where nothing fits."""
    allowed = [[option for option in layer if option.codec in methods] for layer in options]
    places = choose([[option.choice for option in layer] for layer in allowed], room)
    return None if places is None else [layer[place] for layer, place in zip(allowed, places, strict=True)]


def smallest(options: Options, methods: Sequence[str]) -> int:
    """Bytes of the least that every layer can be with the arms of `methods`."""
    return sum(min(option.choice.bytes for option in layer if option.codec in methods) for layer in options)


def assemble(
    layers: Layers, chosen: Sequence[Option], kept: Sequence[Kept], skeleton: FamilyManifest, *, plain: bool
) -> Assembled:
    """The sections and parts of a plan, ready to be written."""
    shared: list[Shared] = []
    sections: dict[str, bytes] = {}
    units: list[list[Unit]] = [[] for _ in kept]
    payloads: list[list[bytes]] = [[] for _ in kept]
    made = ordered_map(
        lambda item: (item[0], rebuilt(item[0], item[1].spec, item[1].codec, plain=plain)),
        zip(layers, chosen, strict=True),
        values=lambda item: _held(item[0]),
    )
    for layer, arm in made:
        pieces = layers.pieces[layer.name]
        if arm.codec != "truncsvd":
            shape = pieces[layer.members[0]].shape
            shared.append(
                Shared(tensor=layer.name, codec=arm.codec, shape=shape, bytes=len(arm.shared), params=arm.params)
            )
            sections[layer.name] = arm.shared
        for place, number in enumerate(layer.members):
            units[number].append(_unit(layer, arm, place, pieces[number]))
            payloads[number].append(arm.own[place])
    parts = []
    for number, (name, own) in enumerate(zip(skeleton.members, kept, strict=True)):
        manifest = own.manifest.model_copy(update={"units": units[number] + own.units})
        parts.append(Part(name, manifest, b"".join(payloads[number]) + own.payloads + own.files))
    return skeleton.model_copy(update={"shared": shared}), sections, parts


def _unit(layer: Layer, arm: Arm, place: int, piece: Any) -> Unit:
    params: dict[str, Any] = {}
    if arm.codec == "truncsvd":
        params = {"k": arm.ranks[place], "w": arm.params["w"]}
    elif arm.scales and arm.scales[place] != 1.0:
        params = {"s": arm.scales[place]}
    norm = layer.norms[place]
    error = (arm.errors[place] / layer.weights[place] / norm) ** 0.5 if norm else 0.0
    return Unit(
        codec=arm.codec,
        bytes=len(arm.own[place]),
        pieces=[piece],
        params=params,
        error=float(f"{error:.3g}"),
        norm=float(f"{norm**0.5:.3g}"),
    )


def layer_bytes(sections: Mapping[str, bytes], parts: Sequence[Part]) -> int:
    """Bytes of all layers: shared sections and the members' own."""
    own = (unit.bytes for part in parts for unit in part.manifest.units if unit.codec in METHODS)
    return sum(map(len, sections.values())) + sum(own)


def fitted(build: Callable[[int], Assembled | None], smallest: int, total: int, text: str) -> Built:
    """Give the layers less and less room until the whole file takes at most `total` bytes.

    Args:
        build: the file for a room of so many bytes for the layers; None where they need more.
        smallest: what the layers need at least.
        total: most bytes of the file.
        text: the budget as it was given.

    Raises:
        BudgetError: even with the smallest layers the file is larger; their file's bytes are named.
    """
    bare = build(smallest)
    assert bare is not None  # the smallest of every layer fit what they take
    least = family_bytes(*bare)
    if least <= total:  # what is no layer takes about as much in any plan
        room = total - (least - layer_bytes(*bare[1:]))
        for _ in range(_ROUNDS):
            built = build(room)
            if built is None:
                break
            size = family_bytes(*built)
            if size <= total:
                return *built, size
            room = min(total - (size - layer_bytes(*built[1:])), room - 1)
        return *bare, least
    least += _SPARE
    raise BudgetError(
        f"a budget of `{text}` is {total} bytes; the smallest layers, with what is kept of names, norms, biases and "
        f"new tensors, take {least}",
        hint=f"--budget {least}",
        least_bytes=least,
    )
