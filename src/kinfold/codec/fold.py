"""`fold`: an unbiased code of the delta at any rate; the default.

Fine-tuning moves few directions far, and a model is most sensitive along them. A truncated delta is shrunk
along these very directions; an unbiased one keeps all of them and pays with noise, which spreads over all
directions and averages out over wide layers. So `fold` keeps the estimate unbiased and spends its bits on
making the noise small: below 0.6 bits a weight a shared codebook of random directions, above it uniform
steps with subtractive dither and entropy coding. See docs/concepts/fold.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field

from kinfold.codec import dither
from kinfold.codec.base import Codec, CodecConfig, Importance, Payload, Plan, Shape, check_finite, require_bits
from kinfold.codec.bits import pack_bits, packed_bytes, unpack_bits
from kinfold.codec.codebook import INDEX_BITS, LENGTH, choose, expand
from kinfold.codec.factors import matrix_sides
from kinfold.codec.positions import decode_positions, encode_positions, positions_bytes
from kinfold.codec.random import uniform_bits
from kinfold.codec.sums import is_finite, squared_norm
from kinfold.errors import PackError

DITHER_RATE = 0.6  # bits a weight above which dithered steps beat the codebook
_LONGEST = 16 * LENGTH  # weights that one codeword may stand for
_LARGEST = 2.0**120  # an amplitude whose products with a codeword stay finite in float32
_CAPTURE = 1.08  # a codeword's squared product with what it codes, per bit: the noise is 1 / (1.08 rate)


class FoldConfig(CodecConfig):
    """Options of `fold`.

    Attributes:
        shrink: below some rate the noise itself does harm, and a smaller amplitude is better: it is
            rate / (rate + shrink), rate in bits a weight. 0 is strictly unbiased.
    """

    shrink: float = Field(default=0.0015, ge=0, le=1)


class Fold(Codec):
    """Unbiased: E[decoded] = D / (1 + shrink / rate), over seeds."""

    name = "fold"
    Config = FoldConfig
    config: FoldConfig
    takes_vectors = True

    def minimum_bits(self, shape: Shape) -> int:
        return 8 * _codebook_bytes(-(-math.prod(shape) // _LONGEST)) if math.prod(shape) else 0

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        require_bits(self, shape, budget_bits)
        return Plan(budget_bits // 8)

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        matrix = delta.float().reshape(_sides(tuple(delta.shape)))
        rows, columns = matrix.shape
        live = np.flatnonzero((matrix != 0).any(1).numpy())
        if live.size == 0:
            return Payload(b"", {"r": 0}, seed)
        places = encode_positions(live, rows)
        if len(places) > budget_bits // 80:  # untouched rows are told apart where that is cheap
            live, places = np.arange(rows), b""
        params = {"r": live.size} if live.size < rows else {}
        room, entries = budget_bits // 8 - len(places), live.size * columns
        words = _words(seed, live, rows, columns)
        if 8 * (room - dither.TABLES) > DITHER_RATE * entries:
            u = dither.field(*words).reshape(-1)
            part = _laid(matrix, live, entries).numpy()
            return Payload(places + dither.encode(part, u, room), params | {"d": 1}, seed)
        count = _count(entries, columns, room)
        vectors = _grouped(matrix, live, words, count)
        index, product = choose(vectors)
        amplitude = self._amplitude(squared_norm(matrix), float(product.sum()), count, entries)
        return Payload(places + _codebook_data(amplitude, index), params | {"g": count}, seed)

    def _amplitude(self, energy: float, product: float, count: int, entries: int) -> float:
        """Such that the decoded delta's product with the delta is the delta's energy, then shrunk."""
        rate = INDEX_BITS * count / entries
        return energy / product * rate / (rate + self.config.shrink) if product > 0 else 0.0

    def steer(self, payload: Payload, delta: torch.Tensor, target: torch.Tensor) -> Payload:
        """Choose every codeword again, for `target`; the amplitude stays the one that suits `delta`."""
        if "g" not in payload.params:
            return payload
        matrix, wanted = (t.float().reshape(_sides(tuple(delta.shape))) for t in (delta, target))
        (rows, columns), count = matrix.shape, payload.params["g"]
        live, data = _split(payload, rows)
        words = _words(payload.seed, live, rows, columns)
        index, _ = choose(_grouped(wanted, live, words, count))
        vectors = _grouped(matrix, live, words, count)
        product = float((expand(index, len(vectors)) * vectors).sum(dtype=torch.float64))
        amplitude = self._amplitude(squared_norm(matrix), product, count, live.size * columns)
        places = payload.data[: len(payload.data) - len(data)]
        return Payload(places + _codebook_data(amplitude, index), payload.params, payload.seed)

    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        rows, columns = _sides(shape)
        live, data = _split(payload, rows)
        words = _words(payload.seed, live, rows, columns)
        dithered = payload.params.get("d", 0)
        if type(dithered) is not int or dithered not in (0, 1):
            raise PackError(f"fold: a mode of {dithered!r} is impossible")
        if live.size == 0 or columns == 0:
            part = torch.zeros(live.size, columns)
        elif dithered:
            part = torch.from_numpy(dither.decode(data, dither.field(*words).reshape(-1))).reshape(-1, columns)
            if not is_finite(part):
                raise PackError("fold: a stored step is not finite")
        else:
            amplitude, index = _read_codebook(data, payload.params.get("g"), live.size * columns)
            part = _flip(_ungrouped(index, live.size, columns), *words, scale=amplitude)
        if live.size == rows:
            return part.reshape(shape).to(dtype)
        delta = torch.zeros(rows, columns)
        delta[torch.from_numpy(live)] = part
        return delta.reshape(shape).to(dtype)

    def params_like(self, digits: int) -> dict[str, Any]:
        return {"g": 9 * digits}

    def survey(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None) -> np.ndarray:
        """[squared norm, entries in rows that are not all zero]."""
        check_finite(delta)
        matrix = delta.reshape(_sides(tuple(delta.shape)))
        return np.array([squared_norm(delta), int((matrix != 0).any(1).sum()) * matrix.shape[1]], np.float64)

    def settle(
        self, shapes: Sequence[Shape], surveys: Sequence[np.ndarray | None], total_bits: int
    ) -> tuple[Codec, list[int]]:
        """Bits for each tensor so that one more bit takes away as much noise anywhere in the model."""
        self.shares(shapes, total_bits)  # refuses a budget below every tensor's minimum
        energy, entries = np.array([s if s is not None else (1.0, 1.0) for s in surveys]).T
        least = np.array([-(-self.minimum_bits(shape) // 8) for shape in shapes], np.int64)
        variance = energy / np.maximum(entries, 1)

        def given(slope: float) -> np.ndarray:
            return np.maximum((_rates(variance, slope) * entries / 8).astype(np.int64), least)

        low, high = -400.0, 400.0  # log2 of the slope: noise taken away by a bit
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if given(2.0**middle).sum() * 8 > total_bits else (low, middle)
        return self, (given(2.0**high) * 8).tolist()


def _rates(variance: np.ndarray, slope: float) -> np.ndarray:
    """Bits a weight at which the noise variance / (exp(1.08 rate) - 1) falls by `slope` a bit.

    The noise law holds at low rates; at high ones, where it falls faster, it only splits the bits.
    """
    ratio = np.minimum(_CAPTURE * variance / slope, 1e12)
    y = 1 + ratio / 2 + np.sqrt(ratio + ratio**2 / 4)
    return np.log(y) / _CAPTURE


def _sides(shape: Shape) -> tuple[int, int]:
    return matrix_sides(shape) if len(shape) > 1 else (1, math.prod(shape))


def _words(seed: int, live: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Random words of the live rows and of the columns."""
    words = uniform_bits(seed, 0, rows + columns).numpy()
    return words[:rows][live], words[rows:]


def _flip(matrix: torch.Tensor, rows: np.ndarray, columns: np.ndarray, scale: float = 1.0) -> torch.Tensor:
    """Turn the sign of rows and columns by their words' lowest bit, in place: no pattern survives it."""
    matrix *= torch.from_numpy(np.float32(scale) * (1 - 2 * (rows & 1).astype(np.float32)))[:, None]
    matrix *= torch.from_numpy(1 - 2 * (columns & 1).astype(np.float32))[None]
    return matrix


def _codebook_bytes(count: int) -> int:
    return 4 + packed_bytes(count * INDEX_BITS, 1)  # a float32 amplitude, then indices


def _count(entries: int, columns: int, room: int) -> int:
    """How many codewords `room` bytes hold, coprime to the row length so that a group spans all columns."""
    count = min((room - 4) * 8 // INDEX_BITS, entries)
    while count > 1 and math.gcd(count, columns) > 1:
        count -= 1
    return count


def _codebook_data(amplitude: float, index: torch.Tensor) -> bytes:
    return np.float32(amplitude).tobytes() + pack_bits(index.numpy(), INDEX_BITS)


def _read_codebook(data: memoryview, count: object, entries: int) -> tuple[float, torch.Tensor]:
    if type(count) is not int or not 1 <= count <= entries or len(data) != _codebook_bytes(count):
        raise PackError(f"fold: {len(data)} bytes do not hold {count!r} codewords for {entries} entries")
    index = torch.from_numpy(unpack_bits(data[4:], INDEX_BITS, count).astype(np.int64))
    amplitude = float(np.frombuffer(data[:4], "<f4")[0])
    if not abs(amplitude) < _LARGEST:  # NaN too
        raise PackError(f"fold: an amplitude of {amplitude} is impossible")
    return amplitude, index


def _split(payload: Payload, rows: int) -> tuple[np.ndarray, memoryview]:
    """The rows that are coded, and what follows their places."""
    touched = payload.params.get("r", rows)
    if type(touched) is not int or not 0 <= touched <= rows:
        raise PackError(f"fold: {touched!r} rows are impossible among {rows}")
    end = positions_bytes(rows, touched)
    if len(payload.data) < end or (touched == 0 and payload.data):
        raise PackError(f"fold: {len(payload.data)} bytes do not hold the places of {touched} rows")
    return decode_positions(payload.data[:end], rows, touched), memoryview(payload.data)[end:]


def _laid(matrix: torch.Tensor, live: np.ndarray, room: int) -> torch.Tensor:
    """The live rows end to end in fresh memory for `room` entries, zeros after them."""
    rows, columns = live.size, matrix.shape[1]
    flat = torch.empty(room)
    flat[rows * columns :] = 0
    part = flat[: rows * columns].view(rows, columns)
    if rows == len(matrix):
        part.copy_(matrix)
    else:
        torch.index_select(matrix, 0, torch.from_numpy(live), out=part)
    return flat


def _grouped(matrix: torch.Tensor, live: np.ndarray, words: tuple[np.ndarray, np.ndarray], count: int) -> torch.Tensor:
    """(length, count): column g holds the live entries g, g + count, g + 2 count, ..., signs turned.

    Entries past the 1024th of a column are added onto the first ones: their codewords repeat. Only one copy of
    the matrix is made, as this may be the largest tensor of a model.
    """
    entries = live.size * matrix.shape[1]
    length = -(-entries // count)
    flat = _laid(matrix, live, (length if length <= LENGTH else -(-length // LENGTH) * LENGTH) * count)
    _flip(flat[:entries].view(live.size, -1), *words)
    vectors, *folded = flat.split(min(length, LENGTH) * count)
    for more in folded:
        vectors += more
    return vectors.view(-1, count)


def _ungrouped(index: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    entries, count = rows * columns, index.numel()
    length = -(-entries // count)
    part = expand(index, min(length, LENGTH))
    if length > LENGTH:
        part = part.repeat(-(-length // LENGTH), 1)
    return part.reshape(-1)[:entries].reshape(rows, columns)
