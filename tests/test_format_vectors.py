"""The test vectors of docs/FORMAT.md, recomputed without Kinfold's coders where a line of numpy can."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from safetensors.torch import save_file

from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.codec import create
from kinfold.codec.positions import encode_positions
from kinfold.codec.random import tensor_seed, uniform_bits
from kinfold.codec.values import encode_values
from kinfold.family.sections import decode

TEXT = (Path(__file__).parents[1] / "docs" / "FORMAT.md").read_text("utf-8")
VECTORS = dict(
    re.findall(r"^\| ([^|`]+(?:`[^`]*`[^|`]*)*) \| `([0-9a-f ]+)` \|$", TEXT.split("## 7.")[1], re.MULTILINE)
)


def vector(start: str) -> str:
    return next(value for key, value in VECTORS.items() if key.startswith(start))


def test_fingerprint(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([7])}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    by_hand = b"".join(
        json.dumps([name, dtype, shape, blake3(raw).hexdigest()], separators=(",", ":")).encode() + b"\n"
        for name, dtype, shape, raw in (
            ("b", "I64", [1], np.array([7], "<i8").tobytes()),
            ("w", "F32", [2], np.array([1, 2], "<f4").tobytes()),
        )
    )
    assert fingerprint(specs_of(checkpoint), digests(checkpoint)) == blake3(by_hand).hexdigest()
    assert vector("fingerprint") == blake3(by_hand).hexdigest()


def test_seed_and_stream() -> None:
    seed = int.from_bytes(blake3(b"0:w").digest()[:8], "little")
    assert tensor_seed(0, "w") == seed == int(vector("seed"), 16)
    assert " ".join(f"{int(word):08x}" for word in uniform_bits(seed, 0, 4)) == vector("first four words")


def test_positions() -> None:
    # 64 // 3 = 21 has 5 bits, so l = 4; low halves 3, 1, 2; upper halves 0, 1, 1 set bits 0, 2 and 3
    lows = (3 | 1 << 4 | 2 << 8).to_bytes(2, "little")
    assert encode_positions(np.array([3, 17, 18]), 64) == lows + bytes([0b1101])
    assert vector("positions") == (lows + bytes([0b1101])).hex()


def test_values() -> None:
    one = np.zeros(3, np.int64)
    by_hand = b"\x01" + np.array([0.5, -0.25, 0.125], "<f2").tobytes()  # 1.0 is 0.5 times 2^1
    assert encode_values(np.array([1.0, -0.5, 0.25]), one, 1, 16) == by_hand == bytes.fromhex(vector("values 1.0"))
    # two bits: levels 0.5 and 1.5 of the step; a step of 1.5 (0.375 times 2^2) has the least error
    by_hand = b"\x02" + np.array([0.375], "<f2").tobytes() + bytes([0b11_00_10_01])
    given = np.array([3.0, -1.0, 1.0, -3.0])
    assert encode_values(given, np.zeros(4, np.int64), 1, 2) == by_hand == bytes.fromhex(vector("values 3"))


def test_fold() -> None:
    """The encoder gives them; `tests/codec/test_fold.py` rebuilds what such bytes mean in numpy."""
    delta, codec = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]]), create("fold", {"shrink": 0})
    for nbytes, start in ((6, "delta 1"), (70, "the same delta")):
        payload = codec.encode(delta, budget_bits=8 * nbytes, seed=tensor_seed(0, "w"))
        assert payload.data.hex() == vector(start)


def _halves(power: int, *scaled: float) -> bytes:
    """One column of values at 16 bits: they are `scaled` times 2^power."""
    return bytes([power]) + np.array(scaled, "<f2").tobytes()


def test_a_layer_of_a_family() -> None:
    shared = _halves(2, 0.25, 0.5, -0.125) + _halves(1, 0, 0.5, 0.125)  # mean 1, 2, -0.5; basis 0, 1, 0.25
    own = _halves(3, 0.25, -0.125, 0.5)
    assert (vector("layer of 2 x 1"), vector("its member")) == (shared.hex(), own.hex())
    a, c = decode("rmm", {"r": 1, "p": 1, "w": 16, "c": 1}, (2, 1), shared, own)
    assert a.tolist() == [[1 + 0 * 2], [2 + 1 * -1]]
    assert c.tolist() == [[-0.5 + 0.25 * 4]]
