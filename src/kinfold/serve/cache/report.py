"""What a compressed cache holds and has lost, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinfold.serve.cache.base import KVCache


@dataclass(frozen=True)
class KVReport:
    """Bytes, entries and losses of one cache.

    Attributes:
        tokens: seen by each row, stored or not.
        kinds: bytes held by the compressed layers, by kind; measured from the tensors.
        full_bytes: what an uncompressed cache would hold in those layers, in its own dtype.
        ratio_16bit: what `ratio` would be were the model's dtype 16 bits wide, as served models' are.
        shared_bytes: held once for all caches of a model, such as calibrated bases; not in `kinds`.
        others: layers that were not taken over: number -> class.
        residual: by layer, the share of the energy of keys and values that what is stored cannot give back.
        reads: by decoding step, the most entries any layer read for a KV head; empty where all are read always.
        reads_by_layer: the same by layer: number -> entries by step.
        counts: other numbers of a method, by name.
        notes: sentences for the reader.
    """

    tokens: int
    kinds: Mapping[str, int]
    full_bytes: int
    ratio_16bit: float = 1.0
    shared_bytes: int = 0
    others: Mapping[int, str] = field(default_factory=dict)
    residual: Mapping[int, float] = field(default_factory=dict)
    reads: tuple[int, ...] = ()
    reads_by_layer: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the compressed layers, shared bases apart."""
        return sum(self.kinds.values())

    @property
    def ratio(self) -> float:
        """`bytes` over `full_bytes`; 1 for an empty cache."""
        return self.bytes / self.full_bytes if self.full_bytes else 1.0

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        steps = self.reads
        reads = steps and {"mean": sum(steps) / len(steps), "median": median(steps), "max": max(steps)}
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "full_bytes": self.full_bytes,
            "ratio": self.ratio,
            "ratio_16bit": self.ratio_16bit,
            "shared_bytes": self.shared_bytes,
            "bytes_by_kind": dict(self.kinds),
            "other_layers": {str(number): name for number, name in self.others.items()},
            "residual_energy": {str(number): share for number, share in self.residual.items()},
            "entries_read": reads or None,
            "entries_read_by_layer": {str(number): list(steps) for number, steps in self.reads_by_layer.items()},
            **self.counts,
            "notes": list(self.notes),
        }


def count(cache: KVCache, **more: Any) -> KVReport:
    """The part of a report that is counted the same way for every method; `more` are further fields."""
    kinds: Counter[str] = Counter()
    full = full_values = small = tokens = 0
    for _, layer in cache.compressed_layers():
        tokens, full = layer.seen, full + layer.full_bytes
        if layer.seen:
            full_values += layer.full_bytes // layer.dtype.itemsize
        for kind, tensor in layer.held():
            kinds[kind] += tensor.numel() * tensor.element_size()
            shrinks = tensor.dtype == layer.dtype and kind not in layer.float32_kinds
            small += tensor.numel() * (2 if shrinks else tensor.element_size())
    others = {n: type(layer).__name__ for n, layer in enumerate(cache.layers) if n not in cache.compressed}
    ratio = small / (2 * full_values) if full_values else 1.0
    return KVReport(tokens, dict(kinds), full, ratio, others=others, **more)
