"""Orthonormal bases of keys and values: their file, Oja's rule, what a basis leaves out.

After "OjaKV: Context-Aware Online Low-Rank KV Cache Compression" (arXiv 2509.21623), with a form of the update that
cannot lose captured energy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file

from kinfold.checkpoint import atomic_file
from kinfold.checkpoint.header import read_header
from kinfold.errors import CacheError

Bases = Mapping[int, torch.Tensor]
Energies = Mapping[int, tuple[float, ...]]
Update = Literal["stable", "published"]

_KEY = "kinfold.kvbasis"
_ORTHONORMAL = 1e-3
_AGAIN = "kinfold kv calibrate BASE --texts t.jsonl -o F"


def oja(
    basis: torch.Tensor, tokens: torch.Tensor, eta: float, steps: int = 1, update: Update = "stable"
) -> torch.Tensor:
    """Turn a basis towards what `tokens` hold, by Oja's rule.

    C is the tokens' second moment, scaled to a trace of d, so that rates mean the same in every head. "stable" is
    U <- qr(U + eta C U): the captured energy tr(U^T C U) never falls. "published" is the paper's explicit step,
    U <- qr(U + eta (C U - U U^T C U)), which at eta times the largest eigenvalue above 2 can lose the best direction.

    Args:
        basis: float32 (..., d, r), orthonormal columns.
        tokens: (..., n, d); zero rows count for nothing.
        eta: rate of one step.
        steps: with the same tokens.

    Returns:
        float32 (..., d, r), orthonormal columns; their signs are arbitrary.
    """
    tokens = tokens.float()
    moment = tokens.mT @ tokens
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    moment = moment * (moment.shape[-1] / trace.clamp(min=1e-12))
    basis = basis.expand(*moment.shape[:-2], *basis.shape[-2:])
    for _ in range(steps):
        change = moment @ basis
        if update == "published":
            change = change - basis @ (basis.mT @ change)
        basis = torch.linalg.qr(basis + eta * change).Q
    return basis


def residual(tokens: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """What `basis` (..., d, r) leaves out of `tokens` (..., n, d): float32 of the shape of `tokens`."""
    tokens = tokens.float()
    return tokens - tokens @ basis @ basis.mT


def leading_directions(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (..., d) from the largest on, none negative, and eigenvectors (..., d, d) of a moment matrix."""
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def energy_rank(eigenvalues: torch.Tensor, energy: float) -> int:
    """Least rank that keeps a share `energy` of every row of `eigenvalues` (heads, d), descending; at least 1."""
    totals = eigenvalues.sum(-1, keepdim=True)
    kept = torch.where(totals > 0, eigenvalues.cumsum(-1) / totals.clamp(min=1e-300), 1.0)
    return 1 + int((kept < energy - 1e-12).sum(-1).max().clamp(max=eigenvalues.shape[-1] - 1))


def ratio_rank(ratio: float, width: int) -> int:
    """Rank of a share `ratio` of `width` dimensions, rounded up.

    Raises:
        CacheError: the ratio is not above 0 and at most 1.
    """
    if not 0 < ratio <= 1:
        raise CacheError(f"a ratio of {ratio:g} was given; it must be above 0 and at most 1")
    return math.ceil(ratio * width - 1e-9)  # .7 * 10 is a little above 7


def energy_left(moment: torch.Tensor, basis: torch.Tensor) -> tuple[float, ...]:
    """By head, the share of a second moment (heads, d, d) that lies outside `basis` (heads, d, r)."""
    basis = basis.double()
    total = moment.diagonal(dim1=-2, dim2=-1).sum(-1)
    kept = (basis * (moment @ basis)).sum((-2, -1))
    left = torch.where(total > 0, 1 - kept / total.clamp(min=1e-300), 0.0)
    return tuple(left.clamp(min=0).tolist())


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    base: str
    tokens: Annotated[int, Field(ge=0)]
    options: dict[str, Any]
    key_energy: dict[str, list[float]]
    value_energy: dict[str, list[float]]


@dataclass(frozen=True)
class KVBasis:
    """Bases of the keys and values of a model's full-attention layers, columns in order of falling energy.

    Attributes:
        key, value: layer number -> float32 (kv_heads, head_dim, rank), orthonormal columns.
        key_energy, value_energy: layer number -> by head, the share of the calibration's energy inside the basis.
        base: fingerprint of the model it was calibrated on; "" where the model came from no directory.
        tokens: it was calibrated on.
        options: of the calibration.
    """

    key: Bases
    value: Bases
    key_energy: Energies
    value_energy: Energies
    base: str = ""
    tokens: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    _moved: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def on(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value basis of a layer on a device; copied there once for all caches."""
        place = (layer, device)
        if place not in self._moved:
            self._moved[place] = (self.key[layer].to(device), self.value[layer].to(device))
        return self._moved[place]

    @property
    def nbytes(self) -> int:
        """Bytes of all bases, held once however many caches use them."""
        return sum(basis.numel() * basis.element_size() for half in (self.key, self.value) for basis in half.values())

    def cut(self, ratio: float | None, value_ratio: float | None = None) -> KVBasis:
        """Only the first columns: a share `ratio` of the head dimension, `value_ratio` for the values if given.

        None for both leaves all. The energies become unknown (empty) where the cut removes columns.

        Raises:
            CacheError: a ratio outside (0, 1], or above what the basis holds.
        """
        wanted = (ratio, ratio if value_ratio is None else value_ratio)
        key, value = (
            half if share is None else {number: _cut(basis, share) for number, basis in half.items()}
            for half, share in zip((self.key, self.value), wanted, strict=True)
        )
        energies = (
            told if all(before[number].shape == after[number].shape for number in before) else {}
            for told, before, after in (
                (self.key_energy, self.key, key),
                (self.value_energy, self.value, value),
            )
        )
        of_keys, of_values = energies
        return KVBasis(key, value, of_keys, of_values, self.base, self.tokens, {**self.options, "cut": list(wanted)})

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a safetensors file; it appears whole or not at all.

        Raises:
            OutputError: `path` exists, or the disk cannot take it.
        """
        header = _Header(
            base=self.base,
            tokens=self.tokens,
            options=dict(self.options),
            key_energy={str(number): list(shares) for number, shares in self.key_energy.items()},
            value_energy={str(number): list(shares) for number, shares in self.value_energy.items()},
        )
        tensors = {f"key.{number}": basis.contiguous() for number, basis in self.key.items()}
        tensors |= {f"value.{number}": basis.contiguous() for number, basis in self.value.items()}
        with atomic_file(Path(path), overwrite=overwrite) as temporary:
            save_file(tensors, temporary, {_KEY: json.dumps(header.model_dump(), sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> KVBasis:
        """Read a file that `save` wrote.

        Raises:
            CacheError: no such file, another kind of file, made by a newer version, or damaged.
        """
        path = Path(path)
        metadata, infos = read_header(path, CacheError)
        if _KEY not in metadata:
            raise CacheError(f"`{path}` holds no KV basis", hint=_AGAIN)
        try:
            header = _Header.model_validate_json(metadata[_KEY])
            halves = {kind: _layers(kind, {name: info.shape for name, info in infos.items()}) for kind in _HALVES}
            shapes = [info.shape for info in infos.values()]
            if halves["key"] != halves["value"] or len(infos) != 2 * len(halves["key"]):
                raise ValueError("its layers are not those of keys and values both")
            if any(info.dtype != "F32" or len(info.shape) != 3 for info in infos.values()):
                raise ValueError("a basis is no float32 of three dimensions")
            if any(not 1 <= rank <= width or heads < 1 for heads, width, rank in shapes):
                raise ValueError("a basis has an impossible shape")
            of_keys, of_values = (_energies(told, halves["key"]) for told in (header.key_energy, header.value_energy))
        except (ValidationError, ValueError) as cause:
            reason = "its header is not one this version writes" if isinstance(cause, ValidationError) else cause
            raise CacheError(f"`{path}` is no sound KV basis: {reason}", hint=_AGAIN) from cause
        tensors = load_file(path)
        for name, basis in tensors.items():
            gap = (basis.mT @ basis - torch.eye(basis.shape[-1])).abs().max()
            if not gap <= _ORTHONORMAL:  # NaN too
                raise CacheError(f"`{name}` in `{path}` is not orthonormal, so the file is damaged", hint=_AGAIN)
        key, value = ({number: tensors[f"{kind}.{number}"] for number in halves[kind]} for kind in _HALVES)
        return cls(key, value, of_keys, of_values, header.base, header.tokens, header.options)


_HALVES = ("key", "value")


def _layers(kind: str, names: Mapping[str, Any]) -> list[int]:
    return sorted(int(name.removeprefix(f"{kind}.")) for name in names if name.startswith(f"{kind}."))


def _energies(told: Mapping[str, list[float]], layers: list[int]) -> Energies:
    found = {int(number): tuple(shares) for number, shares in told.items()}
    if found and sorted(found) != layers:
        raise ValueError("its energies are of other layers")
    return found


def _cut(basis: torch.Tensor, ratio: float) -> torch.Tensor:
    rank = ratio_rank(ratio, basis.shape[1])
    if rank > basis.shape[2]:
        held = basis.shape[2] / basis.shape[1]
        raise CacheError(
            f"a ratio of {ratio:g} was asked of a basis that holds {held:.3g}",
            hint=f"kinfold kv calibrate BASE --texts t.jsonl --ratio {ratio:g} -o F",
        )
    return basis[..., :rank].contiguous()
