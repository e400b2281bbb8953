"""Keys and values in host memory, and the few that a step reads on the device. Experimental.

A step fetches what it reads and the step before it did not. A step that reads everything fetches all that is not on
the device and keeps none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kinfold.serve.cache import choose

Pair = tuple[Tensor, Tensor]


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory, pinned where it comes from a GPU."""
    host = tensor.to("cpu")
    return host.pin_memory() if tensor.is_cuda else host


class Residence:
    """Which entries of one layer the device holds beside the host: B rows, H KV heads, m entries, t of them resident.

    Attributes:
        place: (B, H, m) int64, where on the device an entry lies; -1 for one that is on the host alone.
        pair: keys and values (B, H, t, d) on the device; None if the model runs on the CPU, where nothing moves.
        fetched: bytes brought to the device so far.
        written: bytes brought to the host so far.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, moves: bool) -> None:
        """Of the stored entries of a prompt, (B, H, m, d) on the device: none of them stays there."""
        self.entry_bytes = (keys.shape[-1] + values.shape[-1]) * keys.element_size()
        self.device = keys.device
        self.place = torch.full(keys.shape[:3], -1, device=keys.device)
        self.pair: Pair | None = (keys[:, :, :0], values[:, :, :0]) if moves else None
        self.resident = self.fetched = 0
        self.written = self.place.numel() * self.entry_bytes

    def append(self, keys: Tensor, values: Tensor) -> None:
        """New tokens (B, H, n, d): written to the host, and resident at first."""
        new = torch.arange(self.resident, self.resident + keys.shape[2], device=self.device)
        self.place = torch.cat([self.place, new.expand(*keys.shape[:3])], -1)
        self.resident += keys.shape[2]
        self.written += keys[..., 0].numel() * self.entry_bytes
        if self.pair is not None:
            self.pair = torch.cat([self.pair[0], keys], 2), torch.cat([self.pair[1], values], 2)

    def fetch(self, host: Pair, index: Tensor | None) -> Pair:
        """Keys and values that a step reads: those of `index` (B, H, t), or all; on the device."""
        wanted = torch.arange(host[0].shape[2], device=self.device).expand_as(self.place) if index is None else index
        place = self.place.gather(-1, wanted)
        missing = place < 0
        self.fetched += int(missing.sum()) * self.entry_bytes
        pair = self._gather(host, wanted, place, missing)
        if index is not None:
            slots = torch.arange(index.shape[-1], device=self.device).expand_as(index)
            self.place = torch.full_like(self.place, -1).scatter(-1, index, slots)
            self.resident = index.shape[-1]
            self.pair = None if self.pair is None else pair
        return pair

    def _gather(self, host: Pair, wanted: Tensor, place: Tensor, missing: Tensor) -> Pair:
        if self.pair is None:
            return choose.take(host[0], wanted), choose.take(host[1], wanted)
        rows, heads, _ = missing.nonzero(as_tuple=True)
        source = tuple(t.cpu() for t in (rows, heads, wanted[missing]))
        found = []
        for here, there in zip(self.pair, host, strict=True):
            # nothing is resident at first: there is no entry 0 to stand in for the missing
            out = (
                choose.take(here, place.clamp(min=0)) if here.shape[2] else here.new_empty(*wanted.shape, here.shape[3])
            )
            out[missing] = there[source].to(self.device)
            found.append(out)
        return found[0], found[1]

    def held(self) -> Iterator[tuple[str, Tensor]]:
        yield "residence", self.place
        for tensor in self.pair or ():
            yield "resident entries", tensor

    def transform(self, change: Callable[[Tensor], Tensor]) -> None:
        self.place = change(self.place)
        if self.pair is not None:
            self.pair = change(self.pair[0]), change(self.pair[1])
