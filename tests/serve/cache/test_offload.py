from __future__ import annotations

import pytest
import torch

from kinfold.serve.cache import choose
from kinfold.serve.cache.offload import Residence, to_host

ROWS, HEADS, SIZE = 2, 3, 4
ENTRY = 2 * SIZE * 4  # bytes of a key and a value


def tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, HEADS, count, SIZE)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("moves", [False, True])
def test_what_is_fetched_is_what_was_stored_and_only_new_entries_are_counted(moves: bool) -> None:
    generator = torch.Generator().manual_seed(9)
    host = tokens(20, 0)
    residence = Residence(*host, moves=moves)
    assert residence.written == ROWS * HEADS * 20 * ENTRY
    resident: list[set[int]] = [set() for _ in range(ROWS * HEADS)]
    fetched = 0
    for step in range(12):
        new = tokens(1, step + 1)
        host = torch.cat([host[0], new[0]], 2), torch.cat([host[1], new[1]], 2)
        total = host[0].shape[2]
        residence.append(*new)
        for one in resident:
            one.add(total - 1)
        index = torch.stack([torch.randperm(total, generator=generator)[:7] for _ in resident])
        index = None if step % 4 == 3 else index.sort(-1).values.view(ROWS, HEADS, 7)
        keys, values = residence.fetch(host, index)
        wanted = host if index is None else (choose.take(host[0], index), choose.take(host[1], index))
        assert torch.equal(keys, wanted[0])
        assert torch.equal(values, wanted[1])
        reads = [set(range(total))] * len(resident) if index is None else [set(r) for r in index.flatten(0, 1).tolist()]
        fetched += sum(len(read - one) for read, one in zip(reads, resident, strict=True)) * ENTRY
        if index is not None:
            resident = reads
        assert residence.fetched == fetched
    assert residence.written == ROWS * HEADS * 32 * ENTRY


def test_rows_move_with_what_is_resident() -> None:
    host = tokens(10, 0)
    residence = Residence(*host, moves=True)
    residence.fetch(host, torch.arange(4).expand(ROWS, HEADS, 4))
    before, order = residence.fetched, torch.tensor([1, 1])
    residence.transform(lambda tensor: tensor[order])
    swapped = host[0][order], host[1][order]
    keys, _ = residence.fetch(swapped, torch.arange(4).expand(ROWS, HEADS, 4))
    assert torch.equal(keys, swapped[0][:, :, :4])
    assert residence.fetched == before
    kinds = [kind for kind, _ in residence.held()]
    assert kinds == ["residence", "resident entries", "resident entries"]


def test_on_the_cpu_nothing_is_copied() -> None:
    tensor = torch.randn(3)
    assert to_host(tensor) is tensor
