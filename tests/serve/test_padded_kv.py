"""Keys and values of rows that join, grow and leave, against a plain list a row."""

import torch

from kinfold.serve.kv import GrowingLayer, KeyValues, new_cache


def fresh(lengths: list[int], layers: int = 2, seed: int = 0):
    """A cache filled with padding on the right, and each row's true keys by layer."""
    generator = torch.Generator().manual_seed(seed)
    cache, width = new_cache(), max(lengths)
    truth = [[] for _ in lengths]
    for layer in range(layers):
        keys = torch.randn(len(lengths), 3, width, 4, generator=generator)
        cache.update(keys, -keys, layer)
        for row, length in enumerate(lengths):
            truth[row].append(keys[row, :, :length])
    return cache, truth


def assert_holds(kv: KeyValues, truth: list[list[torch.Tensor]]) -> None:
    assert kv.lengths == [rows[0].shape[1] for rows in truth]
    assert kv.width == max(kv.lengths)
    for number, layer in enumerate(kv.cache.layers):
        assert isinstance(layer, GrowingLayer)
        for row, length in enumerate(kv.lengths):
            assert torch.equal(layer.keys[row, :, kv.width - length :], truth[row][number])
            assert torch.equal(layer.values[row, :, kv.width - length :], -truth[row][number])
            assert not layer.keys[row, :, : kv.width - length].any()
    mask = kv.mask(torch.device("cpu"))
    assert mask.sum(1).tolist() == [length + 1 for length in kv.lengths]
    assert mask[:, -1].all()
    assert kv.positions(torch.device("cpu"))[:, 0].tolist() == kv.lengths


def test_rows_join_grow_and_leave() -> None:
    kv = KeyValues()
    assert kv.width == 0
    cache, first = fresh([5, 2, 9])
    kv.join(cache, {0: 5, 1: 2, 2: 9})
    truth = first
    assert_holds(kv, truth)
    cache, more = fresh([20, 14], seed=1)
    kv.join(cache, {1: 14})  # the other one ended with its first token
    truth = [*truth, more[1]]
    assert_holds(kv, truth)
    generator = torch.Generator().manual_seed(2)
    for _ in range(150):  # past several buffers
        for layer in range(2):
            keys = torch.randn(4, 3, 1, 4, generator=generator)
            kv.cache.update(keys, -keys, layer)
            for row in range(4):
                truth[row][layer] = torch.cat([truth[row][layer], keys[row]], 1)
        kv.grew()
    assert_holds(kv, truth)
    kv.select([1, 0])
    truth = [truth[1], truth[0]]
    assert kv.width == 155
    assert_holds(kv, truth)
    cache, short = fresh([1], seed=3)
    kv.join(cache, {0: 1})
    assert_holds(kv, [*truth, short[0]])
    kv.select([0, 1, 2])
    kv.select([])
    assert (kv.width, kv.lengths) == (0, [])
    kv.join(*_again())
    assert_holds(kv, fresh([3])[1])


def _again():
    return fresh([3])[0], {0: 3}
