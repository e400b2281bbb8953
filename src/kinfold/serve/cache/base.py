"""What every compressed KV cache shares: which layers it takes over, batch operations, bytes, refusals."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from kinfold.errors import CacheError
from kinfold.serve.cache.attach import Inputs, activate, active, switched

Pair = tuple[torch.Tensor, torch.Tensor]
Seen = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class CompressedLayer(DynamicLayer):
    """A layer that stores less than it was given; subclasses say how.

    One forward pass calls `update`, then `read` with the query, then, when the attention is done, `after`. The first
    pass since the start or a `reset` is the prompt: `update` puts its keys and values into `pending` and returns them
    whole, and `read` or `after` must store them and set `pending` to None.

    Attributes:
        seen: tokens given so far, stored or not.
        pending: keys and values (batch, kv_heads, n, head_dim) of the prompt until they are stored.
        keys, values: what is held whole, (batch, kv_heads, tokens, head_dim) each once `pending` is stored.
        inputs: token ids and padding of the pass that is running.
    """

    is_croppable = False
    is_compileable = False
    float32_kinds: tuple[str, ...] = ()
    """Kinds of `held` that stay float32 in a model of 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.pending: Pair | None = None
        self.inputs: Inputs | None = None
        self.updated = False

    # What a subclass writes

    @abstractmethod
    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """Take later tokens, (batch, kv_heads, n, head_dim); return the keys and values to attend to.

        Nothing may write into what an earlier call returned.
        """

    @abstractmethod
    def read(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> Seen:
        """Keys, values and mask that this pass attends to.

        Args:
            query: (batch, heads, n, head_dim), positions already in it.
            key, value: what `update` returned.
            mask: (batch, 1, n, tokens), bool for sdpa, additive for eager; None where causality alone holds.
            scaling: factor of the scores.
        """

    @abstractmethod
    def held(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Every tensor that this layer owns with the kind of thing it is: for counting bytes."""

    @abstractmethod
    def transform(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace every tensor that has the batch as its first dimension by `change(tensor)`."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all tokens, beyond what `reset` does to the attributes named above."""

    def after(self) -> None:
        """The attention of this pass is done."""

    # What is the same for all

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Pair:
        """Take the keys and values of new tokens; return those to attend to.

        Raises:
            CacheError: the model that calls is not the one the cache is attached to.
        """
        if self.inputs is None or self.updated:
            raise CacheError("the model that runs is not the one this cache is attached to", hint=WITH_LINE)
        first = self.seen == 0
        self.seen += key_states.shape[-2]
        self.updated = True
        if not first:
            return self.append(key_states, value_states)
        self.lazy_initialization(key_states, value_states)
        self.pending = (key_states, value_states)
        return key_states, value_states

    def done(self) -> None:
        """End of this layer's part in a pass."""
        self.inputs, self.updated = None, False

    def get_seq_length(self) -> int:
        """Tokens seen: position ids come from it."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask: all tokens seen, from the first."""
        return self.seen + query_length, 0

    @property
    def tail(self) -> Pair:
        """`keys` and `values` of a layer that has been given tokens."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    @property
    def full_bytes(self) -> int:
        """What a `DynamicLayer` would hold for the tokens seen, in bytes."""
        pair = self.pending or (self.keys, self.values)
        if not self.seen:
            return 0
        return sum(t.shape[0] * t.shape[1] * self.seen * t.shape[3] * t.element_size() for t in pair if t is not None)

    def reset(self) -> None:
        """Forget all tokens."""
        self.clear()
        self.done()
        self.keys = self.values = self.pending = None
        self.seen = 0
        self.is_initialized = False

    def _rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.seen:
            self.transform(change)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes what row `beam_idx[i]` was, for beam search."""
        self._rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only the rows `indices`, an index or a bool for each row."""
        self._rows(lambda tensor: tensor[indices.to(tensor.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to take tokens back, but for none.

        Raises:
            CacheError: `tokens_to_remove` is not 0.
        """
        if tokens_to_remove:
            raise CacheError(
                "a compressed cache cannot give tokens back, as assisted decoding needs",
                hint="generate without an assistant, or with the full cache",
            )

    def offload(self) -> None:
        """Refuse.

        Raises:
            CacheError: always.
        """
        raise CacheError("a compressed cache does not move between devices", hint="use it without offloading")

    prefetch = offload


WITH_LINE = "with cache.attached(model): model.generate(**inputs, past_key_values=cache)"


class KVCache(Cache):
    """A cache of a transformers model whose full-attention layers are compressed.

    Sliding-window and linear layers of a hybrid keep their own class. One cache serves one `generate` call or one
    conversation; `reset` makes it new.

    Attributes:
        compressed: numbers of the layers that were taken over, ascending.
    """

    def __init__(self, model: Any, make: Callable[[int], CompressedLayer]) -> None:
        """Build the layers.

        Args:
            model: a decoder of transformers; only a weak reference is kept.
            make: gives the layer for a layer number.

        Raises:
            CacheError: the model has no layer of full attention.
        """
        layers: list[Any] = list(DynamicCache(config=model.config).layers)
        self.compressed = full_attention_layers(model)
        for number in self.compressed:
            layers[number] = make(number)
        super().__init__(layers=layers)
        self._base_model = weakref.ref(model.base_model)

    @contextmanager
    def attached(self, model: Any) -> Iterator[Self]:
        """Switch `model` to this cache inside the block, in this thread or task; its former state comes back after it.

        Raises:
            CacheError: another model than the cache was made for, or attention other than sdpa and eager.
        """
        self.refuse_other(model.base_model)
        with switched(model), activate(self):
            yield self

    def refuse_other(self, base_model: Any) -> None:
        """Raise CacheError unless `base_model` is that of the model the cache was made for."""
        if base_model is not self._base_model():
            raise CacheError("the cache was made for another model", hint="make one cache for each model")

    def compressed_layers(self) -> Iterator[tuple[int, CompressedLayer]]:
        """Number and layer of those that were taken over."""
        for number in self.compressed:
            yield number, self.layers[number]  # type: ignore[misc]

    def hand(self, inputs: Inputs) -> None:
        """Give the running pass's inputs to the layers."""
        for _, layer in self.compressed_layers():
            layer.done()  # a pass that broke off leaves no trace of its inputs
            layer.inputs = inputs

    def updated_layer(self, number: int | None) -> CompressedLayer | None:
        """The compressed layer of that number, if this pass has updated it and not yet read it."""
        layer = self.layers[number] if number is not None and number < len(self.layers) else None
        return layer if isinstance(layer, CompressedLayer) and layer.updated else None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """As `Cache.update`.

        Raises:
            CacheError: the cache is not attached.
        """
        if active() is not self:
            raise CacheError("the cache is not attached to the model", hint=WITH_LINE)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def full_attention_layers(model: Any) -> tuple[int, ...]:
    """Numbers of the layers that a compressed cache takes over.

    Raises:
        CacheError: there are none.
    """
    layers = DynamicCache(config=model.config).layers
    found = tuple(number for number, layer in enumerate(layers) if type(layer) is DynamicLayer)
    if not found:
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise CacheError(f"the model has no layer of full attention to compress: its layers are {kinds}")
    return found
