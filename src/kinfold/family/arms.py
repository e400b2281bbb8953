"""The ways to store one layer of all members, each with its bytes and its error as the reader will see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kinfold.codec.factors import decode_dense, encode_dense
from kinfold.codec.lowrank import Pair
from kinfold.family import jd, rmm, sections
from kinfold.family.gauge import aligned, squared_product_error, squared_product_norm

_NARROW = (8, 4)  # widths that a plan chooses from
_TRUNCATED = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # ranks of `truncsvd`
_JOINT = (4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96)  # ranks of `jd`
_ROUGHLY = 1e-3  # `jd` stops when a round captures less than this share more: enough to plan by


@dataclass(frozen=True)
class Layer:
    """One matrix in all members that changed it.

    Attributes:
        name: of the tensor, in the base.
        sides: (m, d) of the matrix.
        members: their numbers, rising.
        pairs: balanced factors of each, float64, leading components first.
        norms: squared Frobenius norm of each whole delta.
        weights: 1 / squared norm of each member's delta over all layers: what an error is relative to.
    """

    name: str
    sides: tuple[int, int]
    members: tuple[int, ...]
    pairs: tuple[Pair, ...]
    norms: tuple[float, ...]
    weights: tuple[float, ...]

    def errors(self, found: Sequence[Pair]) -> list[float]:
        """Squared error of each member's delta as a share of the member's whole, what the factors lack included."""
        shares = []
        for own, pair, norm, weight in zip(self.pairs, found, self.norms, self.weights, strict=True):
            tail = max(norm - squared_product_norm(own), 0.0)
            wide = (pair[0].double(), pair[1].double())
            shares.append((squared_product_error(own, wide) + tail) * weight)
        return shares


@dataclass(frozen=True)
class Arm:
    """One way.

    Attributes:
        codec: `rmm`, `jd` or `truncsvd`.
        params: of the shared section, or of each member's own for `truncsvd`.
        scales: what each member's factors were divided by.
        shared: bytes of the shared section.
        own: bytes of each member's own.
        errors: of each member, as `Layer.errors`.
        gauge: `given` or `aligned`.
    """

    codec: str
    params: dict[str, Any]
    shared: bytes
    own: tuple[bytes, ...]
    errors: tuple[float, ...]
    scales: tuple[float, ...] = ()
    gauge: str = ""
    ranks: tuple[int, ...] = ()  # of each member, for `truncsvd`

    @property
    def bytes(self) -> int:
        return len(self.shared) + sum(map(len, self.own))

    @property
    def error(self) -> float:
        return sum(self.errors)

    @property
    def spec(self) -> tuple[int, ...]:
        """What `rebuilt` needs to make it again."""
        if self.codec == "rmm":
            return self.params["r"], self.params["p"], self.params["w"]
        return self.params["k"] if self.codec == "jd" else max(self.ranks), self.params["w"]


def truncated(layer: Layer, ranks: Sequence[int] = _TRUNCATED, widths: Sequence[int] = _NARROW) -> Iterator[Arm]:
    """Each member's leading components alone: what keeping them apart costs. Rank 0 leaves the layer out."""
    most = max((a.shape[1] for a, _ in layer.pairs), default=0)
    for rank in sorted({min(rank, most) for rank in ranks}):
        for width in widths if rank else widths[:1]:
            own, found = [], []
            for a, c in layer.pairs:
                k = min(rank, a.shape[1])
                own.append(encode_dense(a[:, :k], c[:, :k], width))
                found.append(decode_dense(own[-1], *layer.sides, k, width))
            ks = [min(rank, a.shape[1]) for a, _ in layer.pairs]
            yield Arm("truncsvd", {"w": width}, b"", tuple(own), tuple(layer.errors(found)), ranks=tuple(ks))


def joint(layer: Layer, ranks: Sequence[int] = _JOINT, widths: Sequence[int] = _NARROW) -> Iterator[Arm]:
    """`jd`: bases for all, a core for each. Every member is fitted at norm 1: a large one does not take the bases."""
    scales = [_scale(norm) for norm in layer.norms]
    pairs = [(a / s, c / s) for (a, c), s in zip(layer.pairs, scales, strict=True)]
    most = min(sum(a.shape[1] for a, _ in layer.pairs), *layer.sides)
    for rank in sorted({min(rank, most) for rank in ranks} - {0}) or [0]:
        model = jd.fit(pairs, rank, _ROUGHLY)
        cores = tuple(core * s**2 for core, s in zip(model.cores, scales, strict=True))
        model = replace(model, cores=cores)
        for width in widths:
            params, shared, own = sections.encode_jd(model, width)
            found = [sections.decode("jd", params, layer.sides, shared, data) for data in own]
            yield Arm("jd", params, shared, tuple(own), tuple(layer.errors(found)))


def reversible(
    layer: Layer,
    ranks: Sequence[int],
    directions: Sequence[int] | None = None,
    widths: Sequence[int] = _NARROW,
    *,
    plain: bool = False,
) -> Iterator[Arm]:
    """`rmm`, centred; `plain` takes the factors as they are, as the paper does, and normalises nothing.

    Else every member is brought to norm 1 first, so that a large one does not take the shared directions,
    and the factors are rotated towards each other where that lowers the error.
    """
    for rank in ranks:
        pairs = [(a[:, :rank], c[:, :rank]) for a, c in layer.pairs]
        rank = max((a.shape[1] for a, _ in pairs), default=0)
        scales = [1.0 if plain else _scale(norm) for norm in layer.norms]
        stacked = rmm.stack([(a / s, c / s) for (a, c), s in zip(pairs, scales, strict=True)], rank)
        fits = {"given": rmm.fit(stacked)}
        if not plain:
            fits["aligned"] = rmm.fit(aligned(stacked))
        most = rmm.most_directions(len(pairs), rank)
        for p in range(most + 1) if directions is None else sorted({min(d, most) for d in directions}):
            gauge = min(fits, key=lambda name: _fit_error(layer, fits[name].cut(p), scales))
            for width in widths:
                yield _reversible(layer, fits[gauge].cut(p), scales, width, gauge)


def _scale(norm: float) -> float:
    """Of each factor; float32, as it is stored."""
    return float(torch.tensor(norm, dtype=torch.float64).pow(0.25).float()) or 1.0


def _fit_error(layer: Layer, model: rmm.Rmm, scales: Sequence[float]) -> float:
    return sum(layer.errors([_pair(model.stacked(i), layer, s) for i, s in enumerate(scales)]))


def _pair(z: torch.Tensor, layer: Layer, scale: float) -> Pair:
    a, c = rmm.split(z, layer.sides[0])
    return a * scale, c * scale


def _reversible(layer: Layer, model: rmm.Rmm, scales: Sequence[float], width: int, gauge: str) -> Arm:
    params, shared, own = sections.encode_rmm(model, width)
    found = []
    for data, scale in zip(own, scales, strict=True):
        a, c = sections.decode("rmm", params, layer.sides, shared, data)
        found.append((a * scale, c * scale))
    return Arm("rmm", params, shared, tuple(own), tuple(layer.errors(found)), tuple(scales), gauge)


def rebuilt(layer: Layer, spec: tuple[int, ...], codec: str, *, plain: bool = False) -> Arm:
    """The arm of that codec and `Arm.spec` once more: a plan keeps no payloads."""
    *ranks, width = spec
    if codec == "rmm":
        return next(reversible(layer, [ranks[0]], [ranks[1]], [width], plain=plain))
    return next((truncated if codec == "truncsvd" else joint)(layer, ranks, [width]))
