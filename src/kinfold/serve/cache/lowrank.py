"""OjaKV: keys and values as coordinates in bases that follow the text.

After OjaKV v2-PF ("OjaKV: Context-Aware Online Low-Rank KV Cache Compression", arXiv 2509.21623), with choices of our
own: a stable update, many steps on long prompts only, and coordinates that keep the basis they were written with.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from kinfold.errors import CacheError
from kinfold.serve.cache.base import KVCache
from kinfold.serve.cache.basis import KVBasis
from kinfold.serve.cache.calibrate import base_of, refuse_basis
from kinfold.serve.cache.lowrank_config import OjaKVConfig
from kinfold.serve.cache.lowrank_layer import OjaKVLayer
from kinfold.serve.cache.report import KVReport, count
from kinfold.serve.cache.spec import Make, Options, config_from, number_from, register


class OjaKVCache(KVCache):
    """A cache of transformers that keeps keys and values as coordinates in bases that follow the text.

    Used as `with OjaKVCache(model, basis).attached(model) as cache: model.generate(..., past_key_values=cache)`.
    """

    def __init__(self, model: Any, basis: KVBasis, config: OjaKVConfig | None = None) -> None:
        """Make an empty cache.

        Args:
            model: a decoder of transformers.
            basis: of this model, or of the base that it is a fine-tune of.
            config: the defaults of `OjaKVConfig` where None.

        Raises:
            CacheError: the basis is of another shape than the model.
        """
        refuse_basis(model, basis)
        self.basis, self.config = basis, config or OjaKVConfig()
        super().__init__(model, lambda number: OjaKVLayer(number, basis, self.config))
        if basis.base and base_of(model) not in ("", basis.base):
            warnings.warn(
                "the basis was calibrated on another model of this shape; `kinfold kv drift` says how well it fits",
                stacklevel=2,
            )

    def report(self) -> KVReport:
        """Bytes by kind, and by layer the share of the energy that the stored tokens have lost."""
        layers: list[tuple[int, Any]] = list(self.compressed_layers())
        found = count(
            self,
            shared_bytes=self.basis.nbytes,
            residual={number: _share(layer.energy) for number, layer in layers},
            counts={
                "bases_of_its_own": sum(key.dim() == 4 for _, layer in layers for key, _ in layer.bases),
                "largest_key_residual": max((layer.largest for _, layer in layers), default=0.0),
            },
        )
        if not any(block.low[0].shape[2] for _, layer in layers for block in layer.blocks):
            return replace(found, notes=("nothing is compressed: the text is no longer than what stays whole",))
        if found.ratio_16bit > 1 and found.kinds.get("bases"):
            return replace(found, notes=("its own bases take more bytes than they save: set eta_decode=0",))
        return found


def _share(energy: list[list[float]]) -> float:
    """Mean of keys and values."""
    shares = [lost / given if given else 0.0 for lost, given in energy]
    return sum(shares) / len(shares)


def _read(options: Options) -> Make:
    """`basis=FILE`, and optionally `preset`, `ratio` and `value_ratio` (only the first columns), and every field."""
    rest = dict(options)
    if "basis" not in rest:
        raise CacheError("`ojakv` needs a basis", hint="ojakv:basis=F, where F comes from `kinfold kv calibrate`")
    basis = KVBasis.load(rest.pop("basis"))
    preset = OjaKVConfig.preset(rest.pop("preset", "default"))
    basis = basis.cut(*(number_from(rest.pop(name, None), name) for name in ("ratio", "value_ratio")))
    also = ("basis", "preset", "ratio", "value_ratio")
    config = config_from(OjaKVConfig, "ojakv", {**preset.model_dump(), **rest}, also)
    return lambda model, tokenizer: OjaKVCache(model, basis, config)


register("ojakv", _read)
