"""Pairs of factors as bytes: golden bytes of the paper's layout and of the compact one."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from deltas import gauss
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec.factors import (
    decode_dense,
    decode_sparse,
    dense_bytes,
    encode_dense,
    encode_sparse,
    index_width,
    matrix_sides,
    product,
    sparse_bytes,
)
from kinfold.errors import PackError

A = torch.tensor([[1.0, 0.0], [0.0, -2.0], [0.5, 0.0]])


def test_sides_of_a_matrix() -> None:
    assert matrix_sides((5, 7)) == (5, 7)
    assert matrix_sides((8, 4, 3, 3)) == (8, 36)


def test_index_width() -> None:
    assert [index_width(cells) for cells in (1, 2, 3, 4, 5, 1024, 1025)] == [0, 1, 2, 2, 3, 10, 11]


def test_golden_paper_layout() -> None:
    # of six cells 0, 3 and 4 are kept: 3 bits each, 000 011 100 = 0x118; then float32 1, -2, 0.5
    data = encode_sparse(A, np.array([0, 3, 4]), 32)
    assert data.hex() == "1801" + "0000803f" + "000000c0" + "0000003f"
    assert torch.equal(decode_sparse(data, 3, 2, 3, 32), A)


def test_golden_compact_layout() -> None:
    # mask 011001; exponent 2 (2 is 1/2 of 4); halves of 1/4, -1/2, 1/8
    data = encode_sparse(A, np.array([0, 3, 4]), 16)
    assert data.hex() == "19" + "02" + "0034" + "00b8" + "0030"
    assert torch.equal(decode_sparse(data, 3, 2, 3, 16), A)


def test_golden_dense() -> None:
    c = torch.tensor([[3.0], [-1.0]])
    assert encode_dense(torch.tensor([[1.0], [2.0]]), c, 32) == struct.pack("<4f", 1, 2, 3, -1)
    # exponents 2 and 2: 1/4, 1/2 and 3/4, -1/4
    assert encode_dense(torch.tensor([[1.0], [2.0]]), c, 16).hex() == "0200340038" + "02003a00b4"


@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([32, 16, 8, 4, 3, 2]), st.data())
@settings(deadline=None, max_examples=150)
def test_sparse(rows: int, columns: int, width: int, data: st.DataObject) -> None:
    factor = gauss(rows, columns, seed=rows, scale=1.0)
    cells = rows * columns
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, cells - 1)))), np.int64)
    coded = encode_sparse(factor, kept, width)
    assert len(coded) == sparse_bytes(cells, kept.size, columns, width)
    restored = decode_sparse(coded, rows, columns, kept.size, width).reshape(-1).numpy()
    expected = factor.reshape(-1).numpy()
    others = np.setdiff1d(np.arange(cells), kept)
    assert not restored[others].any()
    tolerance = {32: 0, 16: 2.0**-11, 8: 2.0**-6}.get(width)
    if tolerance is not None:
        peak = np.abs(expected[kept]).max(initial=0)
        assert np.all(np.abs(restored[kept] - expected[kept]) <= tolerance * peak)
    assert np.array_equal(np.sign(restored[kept]), np.sign(expected[kept]))


@given(
    st.integers(1, 600), st.integers(1, 600), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99)
)
@settings(deadline=None, max_examples=60)
def test_paper_layout_takes_what_the_paper_counts(
    n: int, d: int, k: int, share_u: float, share_v: float, seed: int
) -> None:
    """mu = 32 (s_u + s_v) + ceil(log2(n k)) s_u + ceil(log2(d k)) s_v, each section padded to a byte."""
    rng = np.random.default_rng(seed)
    mu = length = 0
    for rows, share in ((n, share_u), (d, share_v)):
        kept = np.sort(rng.choice(rows * k, round(share * rows * k), replace=False))
        mu += 32 * kept.size + math.ceil(math.log2(rows * k)) * kept.size
        length += 8 * len(encode_sparse(gauss(rows, k), kept, 32))
    assert 0 <= length - mu < 32


@pytest.mark.parametrize("width", [32, 16, 8, 4])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_dense(rank: int, width: int) -> None:
    a, c = gauss(7, rank, seed=1), gauss(4, rank, seed=2)
    data = encode_dense(a, c, width)
    shared = {32: 0, 16: 16}.get(width, 16 + 32 * rank)  # exponents, and 16-bit steps
    bits = shared + width * rank * 11 if rank else 0
    assert len(data) == dense_bytes(7, 4, rank, width)
    assert 0 <= 8 * len(data) - bits < 16
    left, right = decode_dense(data, 7, 4, rank, width)
    assert left.shape == a.shape
    assert right.shape == c.shape
    tolerance = {32: 0, 16: 2.0**-11, 8: 2.0**-7, 4: 2.0**-2}[width]
    for restored, factor in ((left, a), (right, c)):
        assert torch.all((restored - factor).abs() <= tolerance * factor.abs().amax(0))


def test_product_is_cast_once() -> None:
    a, c = gauss(6, 2, seed=1, scale=1.0), gauss(8, 2, seed=2, scale=1.0)
    expected = (a.double().numpy() @ c.double().numpy().T).reshape(6, 2, 4)
    assert np.allclose(product(a, c, (6, 2, 4), torch.float32).numpy(), expected, atol=1e-6)
    half = product(a, c, (6, 2, 4), torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert np.all(np.abs(half.double().numpy() - expected) <= 2.0**-8 * np.abs(expected) + 1e-6)


def test_product_runs_on_one_thread() -> None:
    class Spy:
        threads = 0

        def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
            self.threads = torch.get_num_threads()
            return torch.zeros(2, 3)

    spy, before = Spy(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        product(spy, gauss(3, 1), (2, 3), torch.float32)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert spy.threads == 1


def test_wrong_lengths_are_refused() -> None:
    coded = encode_sparse(A, np.array([0, 3, 4]), 16)
    for damaged in (b"", coded[:-1], coded + b"\0"):
        with pytest.raises(PackError, match="were expected"):
            decode_sparse(damaged, 3, 2, 3, 16)
    with pytest.raises(PackError, match="0 bytes, 40000000000 were expected"):
        decode_dense(b"", 10**5, 10**5, 50_000, 32)
    with pytest.raises(PackError, match="1 bytes, 0 were expected"):
        decode_dense(b"\0", 3, 3, 0, 16)


@pytest.mark.parametrize("places", [0b000_011_011, 0b011_000_100, 0b111_011_000], ids=["twice", "falling", "range"])
def test_impossible_indices_are_refused(places: int) -> None:
    with pytest.raises(PackError, match="out of order or out of range"):
        decode_sparse(places.to_bytes(2, "little") + struct.pack("<3f", 1, 2, 3), 3, 2, 3, 32)
