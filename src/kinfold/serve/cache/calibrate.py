"""Bases out of a model's own keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch

from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.errors import CacheError, CheckpointError
from kinfold.serve.cache.base import CompressedLayer, KVCache, Pair, Seen, full_attention_layers
from kinfold.serve.cache.basis import Bases, Energies, KVBasis, energy_left, energy_rank, leading_directions, ratio_rank

StackQueries = Literal["none", "balanced", "paper"]
Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _Moments(CompressedLayer):
    """A layer that keeps second moments of what passes through it and nothing else."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None
        self.query: torch.Tensor | None = None

    def read(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> Seen:
        batch, heads, tokens, width = query.shape
        grouped = query.reshape(batch, key.shape[1], heads // key.shape[1] * tokens, width)
        self.key, self.value, self.query = (
            _add(total, _moment(rows)) for total, rows in ((self.key, key), (self.value, value), (self.query, grouped))
        )
        if not (self.key.isfinite().all() and self.value.isfinite().all()):
            raise CacheError(f"layer {self.number} gave keys or values that are not finite, so the model is broken")
        self.pending = None
        return key, value, mask

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        raise CacheError("calibration reads each text in one pass")

    def held(self) -> Iterable[tuple[str, torch.Tensor]]:
        return ()

    def transform(self, change: Any) -> None:
        """Nothing has the batch as a dimension."""

    def clear(self) -> None:
        """Moments outlive the texts they come from."""


def _moment(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.double()
    return (rows.mT @ rows).sum(0).cpu()


def _add(total: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    return more if total is None else total + more


def mean_share(shares: Energies) -> float:
    """Mean over layers and heads; NaN where there are none."""
    flat = [share for row in shares.values() for share in row]
    return sum(flat) / len(flat) if flat else float("nan")


def calibrate(
    model: Any,
    input_ids: Iterable[torch.Tensor],
    *,
    ratio: float | None = 0.8,
    energy: float | None = None,
    value_ratio: float | None = None,
    stack_queries: StackQueries = "none",
    max_tokens: int = 16_384,
    seed: int = 0,
) -> KVBasis:
    """Bases that hold most of the keys and values of some texts.

    One pass per text; per layer and KV head only d x d moments are kept, so memory does not grow with the tokens.

    Args:
        model: a decoder of transformers with sdpa or eager attention.
        input_ids: int64 (1, n) for each text; cut at the model's context length.
        ratio: rank as a share of the head dimension, rounded up; None where `energy` sets it.
        energy: least share of the energy that every head must keep; layers may differ in rank.
        value_ratio: another ratio for the values, which are hardly of low rank in small models.
        stack_queries: count the queries into the key basis: "paper" as they are, "balanced" at equal traces.
        max_tokens: at most this many, from texts in a random order.
        seed: of that order.

    Raises:
        CacheError: both or neither of ratio and energy, a share outside (0, 1], no tokens, or keys that are not finite.
    """
    if (ratio is None) == (energy is None):
        which = "neither" if ratio is None else "both"
        raise CacheError(
            f"{which} of ratio and energy given; exactly one sets the rank", hint="ratio=None, energy=0.99"
        )
    if energy is not None and not 0 < energy <= 1:
        raise CacheError(f"an energy of {energy:g} was given; it must be above 0 and at most 1")
    for given in (ratio, value_ratio):
        if given is not None:
            ratio_rank(given, 1)
    moments, tokens = measure_moments(model, chosen_texts(model, input_ids, max_tokens, seed))
    key: dict[int, torch.Tensor] = {}
    value: dict[int, torch.Tensor] = {}
    for number, (of_keys, of_values, of_queries) in moments.items():
        key[number] = _directions(_stacked(of_keys, of_queries, stack_queries), ratio, energy)
        value[number] = _directions(of_values, ratio if value_ratio is None else value_ratio, energy)
    options = {
        "ratio": ratio,
        "energy": energy,
        "value_ratio": value_ratio,
        "stack_queries": stack_queries,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    kept = [rest_of(energies_left(moments, half, bases)) for half, bases in ((0, key), (1, value))]
    return KVBasis(key, value, kept[0], kept[1], base_of(model), tokens, options)


def energies_left(moments: Mapping[int, Moments], half: int, bases: Bases) -> Energies:
    """By layer and head, the share of the energy of keys (half 0) or values (1) outside `bases`."""
    return {number: energy_left(moment[half], bases[number]) for number, moment in moments.items()}


def rest_of(shares: Energies) -> Energies:
    """1 minus each share."""
    return {number: tuple(1 - share for share in row) for number, row in shares.items()}


@dataclass(frozen=True)
class Summary:
    """A basis in a few numbers: ranks are the largest over layers, energies means over layers and heads."""

    tokens: int
    width: int
    key_rank: int
    value_rank: int
    key_energy: float
    value_energy: float
    bytes: int


def summary(basis: KVBasis) -> Summary:
    """Ranks and energies of `basis`."""
    ranks = [max(half.shape[2] for half in bases.values()) for bases in (basis.key, basis.value)]
    energies = [mean_share(told) for told in (basis.key_energy, basis.value_energy)]
    width = next(iter(basis.key.values())).shape[1]
    return Summary(basis.tokens, width, ranks[0], ranks[1], energies[0], energies[1], basis.nbytes)


def chosen_texts(model: Any, input_ids: Iterable[torch.Tensor], max_tokens: int, seed: int) -> list[torch.Tensor]:
    """At most `max_tokens` tokens of texts drawn in a random order; the last one is cut.

    Raises:
        CacheError: there are no tokens, or one that the model does not know.
    """
    context = getattr(model.config, "max_position_embeddings", None) or max_tokens
    texts = [ids[:, :context] for ids in input_ids if ids.numel()]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    known = model.get_input_embeddings().num_embeddings
    found, left = [], max_tokens
    for number in order:
        found.append(texts[number][:, :left])
        left -= found[-1].shape[1]
        if int(found[-1].max()) >= known:
            raise CacheError(f"a text has token {int(found[-1].max())}, the model knows those below {known}")
        if left <= 0:
            break
    if not found:
        raise CacheError("there are no tokens to measure", hint='one JSON object a line, such as {"text": "..."}')
    return found


def measure_moments(model: Any, texts: list[torch.Tensor]) -> tuple[Mapping[int, Moments], int]:
    """float64 second moments (kv_heads, d, d) of keys, values and each group's queries, by layer; tokens read."""
    cache = KVCache(model, _Moments)
    with torch.inference_mode(), cache.attached(model):
        for ids in texts:
            model.base_model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True)
            cache.reset()
    return dict(_moments(cache)), sum(ids.shape[1] for ids in texts)


def _moments(cache: KVCache) -> Iterator[tuple[int, Moments]]:
    for number, layer in cache.compressed_layers():
        if not isinstance(layer, _Moments) or layer.key is None or layer.value is None or layer.query is None:
            raise CacheError(f"layer {number} was not run, so it has no keys to measure")
        yield number, (layer.key, layer.value, layer.query)


def _stacked(of_keys: torch.Tensor, of_queries: torch.Tensor, how: StackQueries) -> torch.Tensor:
    if how == "none":
        return of_keys
    if how == "paper":
        return of_keys + of_queries
    traces = [moment.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] for moment in (of_keys, of_queries)]
    return of_keys / traces[0].clamp(min=1e-300) + of_queries / traces[1].clamp(min=1e-300)


def _directions(moment: torch.Tensor, ratio: float | None, energy: float | None) -> torch.Tensor:
    values, vectors = leading_directions(moment)
    rank = energy_rank(values, energy or 1.0) if ratio is None else ratio_rank(ratio, moment.shape[-1])
    return vectors[..., :rank].float().contiguous()


def refuse_basis(model: Any, basis: KVBasis) -> None:
    """Raise CacheError unless layers, KV heads and head size are the model's.

    Raises:
        CacheError: with both shapes and the command that makes a basis that fits.
    """
    shapes = {number: tuple(half.shape[:2]) for number, half in basis.key.items()}
    wanted = dict.fromkeys(full_attention_layers(model), _heads(model.config))
    if shapes != wanted:
        raise CacheError(
            f"the basis is for {_told(shapes)}, the model has {_told(wanted)}",
            hint="kinfold kv calibrate BASE --texts t.jsonl -o F",
        )


def _heads(config: Any) -> tuple[int, int]:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, width


def _told(shapes: Mapping[int, tuple[int, ...]]) -> str:
    heads, width = next(iter(shapes.values()), (0, 0))
    numbers = f" ({min(shapes)} to {max(shapes)})" if shapes else ""
    return f"{len(shapes)} layers{numbers} of {heads} KV heads of {width}"


_FINGERPRINTS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def base_of(model: Any) -> str:
    """Fingerprint of the directory that `model` was loaded from, worked out once; "" where it came from none."""
    if model not in _FINGERPRINTS:
        _FINGERPRINTS[model] = _fingerprint(getattr(model, "name_or_path", ""))
    return _FINGERPRINTS[model]


def _fingerprint(directory: str) -> str:
    if not directory or not Path(directory).is_dir():
        return ""
    try:
        checkpoint = Checkpoint.open(directory)
        return fingerprint(specs_of(checkpoint), digests(checkpoint))
    except CheckpointError:  # such as a directory of another format, or one that has gone
        return ""
