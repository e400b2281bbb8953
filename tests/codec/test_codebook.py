"""The shared codebook: the table from Philox in plain numpy, the best codeword by brute force."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kinfold.codec.codebook import _CHUNK as CHUNK
from kinfold.codec.codebook import INDEX_BITS, LENGTH, choose, codewords, expand

LOW = np.uint64(0xFFFFFFFF)


def philox_words(count: int) -> np.ndarray:
    """The first `count` words of Philox4x32-10 with key 0, counters 0, 1, 2, ...; uint64."""
    c = [np.arange(-(-count // 4), dtype=np.uint64), *(np.zeros(-(-count // 4), np.uint64) for _ in range(3))]
    keys = [0, 0]
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        k = [np.uint64(key) for key in keys]
        c = [(q >> np.uint64(32)) ^ c[1] ^ k[0], q & LOW, (p >> np.uint64(32)) ^ c[3] ^ k[1], p & LOW]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return np.stack(c, 1).reshape(-1)[:count]


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """float64 (2048, 1024)."""
    words = philox_words(2048 * 1024)
    total = sum(((words >> np.uint64(8 * k)) & np.uint64(0xFF)).astype(np.int64) for k in range(4))
    return np.floor((total - 509) / 4).reshape(2048, 1024)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def best(table: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and product by a search in float64, one vector at a time; every sum is a whole number."""
    index, product = [], []
    for vector in vectors.T:
        step = np.abs(vector).max() / np.float32(127)
        whole = np.rint(vector / step).astype(np.float64) if step else np.zeros(vector.size)
        products = table[:, : vector.size] @ whole
        row = int(np.argmax(np.abs(products)))  # the first of equals
        index.append(2 * row + int(products[row] < 0))
        product.append(abs(products[row]) * float(step))
    return np.array(index), np.array(product)


def test_the_table_is_drawn_from_seed_0(table: np.ndarray) -> None:
    assert codewords().dtype == torch.int8
    assert np.array_equal(codewords().numpy(), table)
    assert INDEX_BITS == 12
    assert LENGTH == 1024


def test_the_table_is_nearly_gaussian(table: np.ndarray) -> None:
    """A sum of four even bytes has variance 4 (256^2 - 1) / 12; a quarter of it, floored, a twelfth more."""
    variance = (4 * (256**2 - 1) / 12) / 16 + (1 - 1 / 16) / 12
    assert table.mean() == pytest.approx(0, abs=5 * (variance / table.size) ** 0.5)
    assert table.var() == pytest.approx(variance, rel=0.01)
    assert np.abs(table).max() * 127 * 1024 < 2**24  # so float32 sums are exact


@pytest.mark.parametrize(("length", "count"), [(1, 5), (2, 40), (37, 60), (1024, 30), (16, 2 * CHUNK + 7)])
def test_the_choice_is_the_best_of_all(table: np.ndarray, length: int, count: int) -> None:
    vectors = np.random.default_rng(length).standard_normal((length, count)).astype(np.float32)
    index, product = choose(torch.from_numpy(vectors))
    expected = best(table, vectors)
    assert np.array_equal(index.numpy(), expected[0])
    assert np.array_equal(product.numpy(), expected[1])


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6, 1e30])
def test_the_choice_does_not_depend_on_scale(table: np.ndarray, scale: float) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32) * np.float32(scale)
    index, product = choose(torch.from_numpy(vectors))
    expected = best(table, vectors)
    assert np.array_equal(index.numpy(), expected[0])
    assert np.array_equal(product.numpy(), expected[1])


def test_equal_products_take_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal size, whatever their sign."""
    few = torch.tensor([[1.0, 0.0], [0.0, -2.0], [2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]])
    monkeypatch.setattr("kinfold.codec.codebook._as_float", lambda: few)
    index, product = choose(torch.tensor([[127.0, -127.0, 0.0, 127.0], [0.0, 0.0, 127.0, 127.0]]))
    assert index.tolist() == [2 * 2, 2 * 2 + 1, 2 * 1 + 1, 2 * 1 + 1]
    assert product.tolist() == [254.0] * 4


def test_a_vector_of_zeros_has_no_product() -> None:
    vectors = torch.zeros(8, 3)
    vectors[2, 1] = 1.0
    index, product = choose(vectors)
    assert index[[0, 2]].tolist() == [0, 0]
    assert product[[0, 2]].tolist() == [0.0, 0.0]
    assert float(product[1]) > 0


def test_threads_do_not_change_the_choice() -> None:
    vectors = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 8):
        torch.set_num_threads(threads)
        found.append(choose(vectors))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("length", [1, 5, 1024])
def test_expand_is_the_signed_codeword(table: np.ndarray, length: int) -> None:
    index = np.array([0, 1, 4095, 2 * 77, 2 * 77 + 1])
    expected = table.astype(np.float32)[index // 2, :length].T * np.where(index % 2, -1, 1)
    found = expand(torch.from_numpy(index), length)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), expected.astype(np.float32))
