"""The members' matrices as low-rank pairs, one layer at a time, kept on disk between the passes of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kinfold.codec.factors import matrix_sides
from kinfold.codec.lowrank import as_matrix, leading
from kinfold.codec.sums import is_finite, squared_norm
from kinfold.codec.threads import ordered_map
from kinfold.errors import FamilyError
from kinfold.family.arms import Layer
from kinfold.family.gauge import balanced, squared_product_norm
from kinfold.pack.manifest import Piece
from kinfold.pack.member import Member
from kinfold.pack.units import is_matrix
from kinfold.report.progress import progress

MOST_RANK = 64  # components that are looked at of a dense delta
NOISY = ("fold", "dare")  # decode to delta plus many times its energy in noise: an SVD would find the noise


@dataclass(frozen=True)
class Layers:
    """What each layer is called, who changed it, and where its factors lie."""

    folder: Path
    members: Sequence[Member]
    pieces: dict[str, dict[int, Piece]]  # by the base's name, then by the member's number
    norms: dict[str, dict[int, float]]  # squared

    def __iter__(self) -> Iterator[Layer]:
        for name in self.pieces:
            yield self.layer(name)

    def layer(self, name: str) -> Layer:
        stored, numbers = load_file(self._file(name)), tuple(self.pieces[name])
        pairs = tuple((stored[f"{n}.a"].double(), stored[f"{n}.c"].double()) for n in numbers)
        norms = tuple(self.norms[name][n] for n in numbers)
        weights = tuple(1 / self.energy(n) for n in numbers)
        return Layer(name, matrix_sides(tuple(self.pieces[name][numbers[0]].shape)), numbers, pairs, norms, weights)

    def energy(self, number: int) -> float:
        """Squared norm of a member's delta over all layers."""
        return sum(norms.get(number, 0.0) for norms in self.norms.values()) or 1.0

    def _file(self, name: str) -> Path:
        return self.folder / f"{list(self.pieces).index(name)}.safetensors"


def read_layers(members: Sequence[Member], folder: Path, *, as_given: bool = False, rank: int = MOST_RANK) -> Layers:
    """Factors of every matrix that a member changed: its own where it has them, else the leading ones.

    Args:
        members: of one base.
        folder: for the factors; 2 (n + d) `rank` numbers a member and layer, float32.
        as_given: factors that a member has are not balanced.
        rank: components of a dense delta.

    Raises:
        FamilyError: a pack of noise, or a delta that is not finite.
    """
    for member in members:
        if member.codec in NOISY:
            raise FamilyError(
                f"`{member.name}` is a `{member.codec}` pack: it decodes to the delta and random noise, which has no "
                "low rank",
                hint="fold the model directories or adapters it came from, or pass --method packs",
            )
    pieces: dict[str, dict[int, Piece]] = {}
    for number, member in enumerate(members):
        for piece in member.pieces():
            if piece.base in member.own and piece.rows is None and is_matrix(piece):
                pieces.setdefault(piece.base, {})[number] = piece
    layers = Layers(folder, members, pieces, {})
    names = list(pieces)

    def factorised(item: tuple[str, int]) -> tuple[torch.Tensor, torch.Tensor, float]:
        name, number = item
        return _factors(members[number], name, rank, as_given)

    todo = [(name, number) for name in names for number in pieces[name]]
    found = ordered_map(factorised, todo, values=lambda item: pieces[item[0]][item[1]].numel)
    with progress("factors", sum(2 * pieces[name][number].numel for name, number in todo)) as advance:
        for place, name in enumerate(names):
            tensors: dict[str, torch.Tensor] = {}
            for number, piece in pieces[name].items():
                a, c, norm = next(found)
                tensors |= {f"{number}.a": a.float().contiguous(), f"{number}.c": c.float().contiguous()}
                layers.norms.setdefault(name, {})[number] = norm
                advance(2 * piece.numel)
            save_file(tensors, folder / f"{place}.safetensors")
    return layers


def _factors(member: Member, name: str, rank: int, as_given: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A, C and the squared norm of the whole delta."""
    own = member.factors(name)
    if own is not None:
        _require_finite(member, name, *own)
        fits = own[0].shape[1] <= min(rank, len(own[0]), len(own[1]))
        a, c = own if as_given and fits else balanced(*own)
        most = rank if as_given else max(rank, a.shape[1])  # of more, the first as given are not the leading ones
        return a[:, :most], c[:, :most], squared_product_norm(own)
    delta = as_matrix(member.delta(name))
    _require_finite(member, name, delta)
    factors = leading(delta, rank)
    a, c = factors.balanced(min(rank, factors.s.numel()))
    return a, c, squared_norm(delta)


def _require_finite(member: Member, name: str, *tensors: torch.Tensor) -> None:
    if not all(map(is_finite, tensors)):
        raise FamilyError(
            f"`{name}` of `{member.name}` holds NaN or infinity", hint="mend that member, or leave it out"
        )
