"""Keys and values of a running batch: rows of unlike length, padded on the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

_HEADROOM = 64  # tokens beside a quarter of the length, so that most steps copy nothing


class GrowingLayer(DynamicLayer):
    """A layer's cache that writes new tokens behind the old ones in one buffer, which grows by a quarter."""

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def hold(self, keys: torch.Tensor, values: torch.Tensor, width: int) -> None:
        """Take over buffers (rows, heads, capacity, size) of which the first `width` tokens are filled."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._buffers = keys, values
        self.keys, self.values = keys[:, :, :width], values[:, :, :width]

    @property
    def sides(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (rows, heads, tokens, size)."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = 0 if self.keys is None else self.keys.shape[-2]
        stop = width + key_states.shape[-2]
        if self._buffers is None or stop > self._buffers[0].shape[-2]:
            grown = [_buffer(new, new.shape[0], stop) for new in (key_states, value_states)]
            if width and self.keys is not None and self.values is not None:
                grown[0][:, :, :width], grown[1][:, :, :width] = self.keys, self.values
            self._buffers = grown[0], grown[1]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, width:stop] = new
        self.hold(*self._buffers, stop)
        return self._buffers[0][:, :, :stop], self._buffers[1][:, :, :stop]


def _buffer(like: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    return like.new_zeros((rows, like.shape[1], width + width // 4 + _HEADROOM, like.shape[3]))


def _layers(cache: Cache) -> list[GrowingLayer]:
    return cast("list[GrowingLayer]", cache.layers)


def new_cache() -> Cache:
    return Cache(layer_class_to_replicate=GrowingLayer)


class KeyValues:
    """The cache of a batch.

    Attributes:
        cache: as the model takes it; every row ends at the last column.
        lengths: tokens of each row; what lies before is padding, zeros.
    """

    def __init__(self, cache: Cache | None = None, lengths: Sequence[int] = ()) -> None:
        self.cache, self.lengths = cache or new_cache(), list(lengths)

    @property
    def width(self) -> int:
        return self.cache.get_seq_length() if self.lengths else 0

    def mask(self, device: torch.device) -> torch.Tensor:
        """(rows, width + 1), int64: 1 for what a row has and for the token to come, 0 for padding."""
        starts = torch.tensor([self.width - length for length in self.lengths], device=device)
        return (torch.arange(self.width + 1, device=device) >= starts[:, None]).long()

    def positions(self, device: torch.device) -> torch.Tensor:
        """(rows, 1), int64: of the token to come."""
        return torch.tensor(self.lengths, device=device)[:, None]

    def grew(self) -> None:
        """Every row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, and drop the padding that they have in common."""
        if list(rows) == list(range(len(self.lengths))):
            return
        old = self.width
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.cache = new_cache()
            return
        start = old - max(self.lengths)
        for layer in _layers(self.cache):
            sides = []
            for side in layer.sides:
                picked = torch.tensor(rows, device=side.device)
                buffer = _buffer(side, len(rows), old - start)
                buffer[:, :, : old - start] = side[picked, :, start:]
                sides.append(buffer)
            layer.hold(sides[0], sides[1], old - start)

    def join(self, fresh: Cache, picked: Mapping[int, int]) -> None:
        """Add rows that were read with padding on the right: of `fresh`, row by row the tokens that count."""
        width = max([*self.lengths, *picked.values()])
        before, rows = self.width, len(self.lengths)
        cache = new_cache()
        for number, new in enumerate(_layers(fresh)):
            old = _layers(self.cache)[number].sides if rows else None
            sides = []
            for side, source in enumerate(new.sides):
                buffer = _buffer(source, rows + len(picked), width)
                if old is not None:
                    kept = min(before, width)
                    buffer[:rows, :, width - kept : width] = old[side][:, :, before - kept :]
                for place, (row, length) in enumerate(picked.items(), rows):
                    buffer[place, :, width - length : width] = source[row, :, :length]
                sides.append(buffer)
            layer = GrowingLayer()
            layer.hold(sides[0], sides[1], width)
            cache.layers.append(layer)
        self.cache, self.lengths = cache, [*self.lengths, *picked.values()]
