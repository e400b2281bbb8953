"""`exact`: every bit of every dtype comes back, and damage is refused."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from deltas import gauss
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec import exact
from kinfold.errors import PackError

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SMALL_FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
DTYPES = [*FLOATS, *SMALL_FLOATS, *INTEGERS, torch.bool, torch.complex64]
EXPANSION = 1 << 16  # decoded bytes a payload byte may stand for; a pack's reader refuses more


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def of_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(dtype)


def assert_same(tensor: torch.Tensor, base: torch.Tensor | None = None) -> bytes:
    data = exact.encode(tensor, base)
    restored = exact.decode(data, tuple(tensor.shape), tensor.dtype, base)
    assert restored.dtype == tensor.dtype
    assert restored.shape == tensor.shape
    assert raw(restored) == raw(tensor)
    return data


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_pattern_of_16_bits(dtype: torch.dtype) -> None:
    """NaN payloads, infinities, subnormals and both zeros, against random bases of the same kind."""
    rng = np.random.default_rng(0)
    patterns = of_bytes(np.arange(1 << 16, dtype="<u2").tobytes(), dtype)
    assert_same(patterns)
    assert_same(patterns, patterns)
    for _ in range(3):
        assert_same(patterns, of_bytes(rng.integers(0, 1 << 16, 1 << 16).astype("<u2").tobytes(), dtype))


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_any_bits_of_any_dtype(dtype: torch.dtype, based: bool, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = count * dtype.itemsize
    top = 2 if dtype == torch.bool else 256
    tensor, base = (of_bytes(rng.integers(0, top, size, dtype=np.uint8).tobytes(), dtype) for _ in range(2))
    assert_same(tensor, base if based else None)


@pytest.mark.parametrize(
    ("dtype", "patterns"),
    [
        (torch.float32, [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC00001, 0xFFFFFFFF, 0x7F800001, 0x80000000, 0, 1]),
        (torch.float64, [0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0x7FF0000000000001, 0xFFF8000000ABCDEF, 1 << 63, 1]),
    ],
)
def test_nan_payloads_and_infinities(dtype: torch.dtype, patterns: list[int]) -> None:
    word = "<u4" if dtype == torch.float32 else "<u8"
    special = of_bytes(np.array(patterns * 50, word).tobytes(), dtype)
    ordinary = gauss(special.numel(), scale=1.0).to(dtype)
    for tensor, base in ((special, None), (special, ordinary), (ordinary, special), (special, special.flip(0))):
        assert_same(tensor, base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_scalar_and_strided(dtype: torch.dtype) -> None:
    assert assert_same(torch.zeros(0, 3).to(dtype)) == b""
    assert_same(torch.tensor(1.0).to(dtype))
    assert_same(torch.tensor(1.0).to(dtype), torch.tensor(0.0).to(dtype))
    assert_same(gauss(6, 8, scale=2.0).abs().to(dtype).T)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("base_dtype", FLOATS)
def test_base_of_another_float_dtype(dtype: torch.dtype, base_dtype: torch.dtype) -> None:
    base = gauss(60, 50)
    tensor = (base + gauss(60, 50, seed=1, scale=1e-4)).to(dtype)
    assert len(assert_same(tensor, base.to(base_dtype))) <= len(exact.encode(tensor))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.float64, torch.uint8])
def test_several_blocks(dtype: torch.dtype) -> None:
    """Past 2^20 values, exponents by the thousand in each block."""
    count = exact.BLOCK + 12_345
    base = (gauss(count, scale=20.0) ** 3).to(dtype)
    tensor = (base.double() + gauss(count, seed=1, scale=2.0).double()).clamp(0, 200).to(dtype)
    assert_same(tensor, base)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8], ids=str)
def test_constants_stay_within_what_a_reader_believes(dtype: torch.dtype, value: int) -> None:
    for count in (1 << 19, (1 << 20) + 77, 3 << 20):
        tensor = torch.full((count,), value).to(dtype)
        for base in (None, tensor):
            data = exact.encode(tensor, base)
            assert 1000 * len(data) < tensor.nbytes <= EXPANSION * len(data)
    assert_same(tensor)


def rival(tensor: torch.Tensor, base: torch.Tensor) -> int:
    """XOR, bytes of like significance together, zstd at level 3: what is done today."""
    changed = np.frombuffer(raw(tensor), np.uint8) ^ np.frombuffer(raw(base), np.uint8)
    return len(zstandard.ZstdCompressor(level=3).compress(changed.reshape(-1, tensor.itemsize).T.tobytes()))


@pytest.mark.parametrize(
    ("dtype", "step", "gain"),
    [
        (torch.bfloat16, 3e-4, 0.25),
        (torch.bfloat16, 1e-5, 0.6),  # few words changed
        (torch.float16, 3e-4, 0.2),
        (torch.float32, 3e-4, 0.07),
    ],
)
def test_smaller_than_xor_and_zstd(dtype: torch.dtype, step: float, gain: float) -> None:
    """Normal weights of standard deviation 0.02, fine-tuned by `step`."""
    base = gauss(600, 500, scale=0.02).to(dtype)
    tensor = (base.float() + gauss(600, 500, seed=1, scale=step)).to(dtype)
    assert len(assert_same(tensor, base)) <= (1 - gain) * rival(tensor, base)


def block(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.uint8], ids=str)
def test_damage_is_refused_or_harmless(dtype: torch.dtype, based: bool) -> None:
    rng = np.random.default_rng(1)
    base = gauss(5000, scale=50.0).to(dtype)
    data = exact.encode((base.float() + gauss(5000, seed=1, scale=3.0)).to(dtype), base if based else None)
    refused = 0
    for trial in range(300):
        damaged = bytearray(data)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(len(data))]
        elif trial % 3 == 1:
            # heads of blocks and frames are hit as often as what they hold
            damaged[rng.integers(rng.choice([8, 60, len(data)]))] ^= 1 << rng.integers(8)
        else:
            damaged = bytearray(block(int(rng.integers(2)), rng.bytes(int(rng.integers(1, 300)))))
        try:
            restored = exact.decode(bytes(damaged), (5000,), dtype, base if based else None)
            assert restored.shape == (5000,)
        except PackError:
            refused += 1
    assert refused >= 200


def test_lengths_must_add_up() -> None:
    data = exact.encode(gauss(100))
    for damaged in (b"", data[:4], data[:-1], data + b"\0", b"\2" + data[1:]):
        with pytest.raises(PackError, match="exact: "):
            exact.decode(damaged, (100,), torch.float32)
    with pytest.raises(PackError):
        exact.decode(data, (101,), torch.float32)
    with pytest.raises(PackError):
        exact.decode(data, (99,), torch.float32)


@pytest.mark.parametrize("claimed", [1 << 30, 1 << 45, (1 << 64) - 3])
def test_a_frame_may_not_claim_what_it_likes(claimed: int) -> None:
    """zstd would allocate the size in the frame's header, whatever limit it is given."""
    single_segment = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claimed) + b"\x01\x00\x00"
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    tracemalloc.start()
    try:
        for body in (single_segment, bomb):
            with pytest.raises(PackError, match="40 bytes that were expected"):
                exact.decode(block(0, body), (10,), torch.float32)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
