"""`exact`: bit-exact, any dtype.

Floats become integers of the same order, so that near values have near integers; the difference to the
base is sorted by the base's exponent, which tells how large a difference to expect and is known to the
decoder; each run of like exponents is coded by pcodec. Whatever does not gain falls back to zstd.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone  # pyright: ignore[reportAttributeAccessIssue]

from kinfold.errors import PackError

BLOCK = 1 << 20  # values coded at once: enough for good statistics, little enough for bounded memory
_RUN = 1 << 12  # exponents with fewer values share a run with their neighbour
_RAW, _DELTA = 0, 1
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_CONFIG = ChunkConfig(compression_level=8, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op())


@dataclass(frozen=True)
class Layout:
    """How the bits of a dtype read: `exponent` is (shift, width), None for integers and tiny floats."""

    width: int
    exponent: tuple[int, int] | None

    @property
    def unsigned(self) -> type[np.unsignedinteger]:
        return _UNSIGNED[self.width]


LAYOUTS: dict[torch.dtype, Layout] = {
    torch.float64: Layout(8, (52, 11)),
    torch.float32: Layout(4, (23, 8)),
    torch.float16: Layout(2, (10, 5)),
    torch.bfloat16: Layout(2, (7, 8)),
}


def _layout(dtype: torch.dtype) -> Layout:
    return LAYOUTS.get(dtype, Layout(8 if dtype == torch.complex64 else dtype.itemsize, None))


def _bits(tensor: torch.Tensor) -> np.ndarray:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.view(_layout(tensor.dtype).unsigned)


def encode(tensor: torch.Tensor, base: torch.Tensor | None = None) -> bytes:
    """Code `tensor` losslessly, against `base` (same shape; another float dtype is cast first) if given.

    The result is a sequence of blocks: kind (1 byte), length (4 bytes, little-endian), bytes.
    """
    values = _bits(tensor)
    other = None if base is None else _bits(base.to(tensor.dtype))
    layout = _layout(tensor.dtype)
    parts = []
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        reference = None if other is None else other[start : start + BLOCK]
        parts.append(_encode_block(block, reference, layout))
    return b"".join(parts)


def decode(data: bytes, shape: tuple[int, ...], dtype: torch.dtype, base: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor that was coded, bit for bit; `base` as in `encode`.

    Raises:
        PackError: the blocks do not decode to exactly this many values.
    """
    layout = _layout(dtype)
    result = torch.empty(shape, dtype=dtype)
    count = result.numel() * dtype.itemsize // layout.width
    values = result.reshape(-1).view(torch.uint8).numpy().view(layout.unsigned)
    other = None if base is None else _bits(base.to(dtype))
    position, view = 0, memoryview(data)
    for start in range(0, count, BLOCK):
        head = view[position : position + 5]
        length = int.from_bytes(head[1:], "little")
        body = view[position + 5 : position + 5 + length]
        if len(head) < 5 or len(body) < length or head[0] not in (_RAW, _DELTA):
            raise PackError("exact: a block is cut short or of unknown kind")
        reference = None if other is None else other[start : start + BLOCK]
        some = min(BLOCK, count - start)
        values[start : start + some] = _decode_block(head[0], bytes(body), some, reference, layout)
        position += 5 + length
    if position != len(data):
        raise PackError(f"exact: {len(data) - position} bytes follow the last block")
    return result


def _encode_block(values: np.ndarray, reference: np.ndarray | None, layout: Layout) -> bytes:
    xor = values if reference is None else values ^ reference
    planes = np.ascontiguousarray(xor.view(np.uint8).reshape(-1, layout.width).T)
    best, kind = b"", _RAW
    if layout.width > 1:
        best, kind = _encode_delta(values, reference, layout), _DELTA
    # pcodec beats byte planes on floats that all differ; few changed values or constant bytes favour zstd
    sample = planes[:, :: max(1, planes.shape[1] >> 14)]
    if len(best) << 16 < values.nbytes:  # constants: pcodec shrinks them beyond what a pack's reader believes
        best, kind = b"", _RAW
    if kind == _RAW or np.count_nonzero(sample) * 8 < sample.size or layout.exponent is None:
        raw = zstandard.ZstdCompressor(level=9).compress(planes.tobytes())
        if kind == _RAW or len(raw) < len(best):
            best, kind = raw, _RAW
    return bytes([kind]) + len(best).to_bytes(4, "little") + best


def _decode_block(kind: int, body: bytes, count: int, reference: np.ndarray | None, layout: Layout) -> np.ndarray:
    if kind == _DELTA and layout.width > 1:
        return _decode_delta(body, count, reference, layout)
    size = count * layout.width
    try:
        if zstandard.frame_content_size(body) != size:  # before zstd allocates what the frame claims
            raise PackError(f"exact: a block does not hold the {size} bytes that were expected")
        raw = zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    except zstandard.ZstdError as cause:
        raise PackError(f"exact: a block does not decompress: {cause}") from cause
    if len(raw) != size:
        raise PackError(f"exact: a block holds {len(raw)} bytes, {size} were expected")
    planes = np.frombuffer(raw, np.uint8).reshape(layout.width, count)
    values = np.ascontiguousarray(planes.T).view(layout.unsigned).reshape(-1)
    return values if reference is None else values ^ reference


def _ordered(bits: np.ndarray, layout: Layout) -> np.ndarray:
    """Bits of floats as unsigned integers in the order of the floats; every pattern has its own."""
    if layout.exponent is None:
        return bits
    top = layout.unsigned(1 << (8 * layout.width - 1))
    return np.where(bits & top, ~bits, bits | top)


def _unordered(ordered: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.exponent is None:
        return ordered
    top = layout.unsigned(1 << (8 * layout.width - 1))
    return np.where(ordered & top, ordered ^ top, ~ordered)


def _runs(reference: np.ndarray, layout: Layout) -> tuple[np.ndarray, list[int]]:
    """The order by the base's exponent (stable), and where each run of like exponents ends."""
    assert layout.exponent is not None
    shift, width = layout.exponent
    exponent = (reference >> layout.unsigned(shift)).astype(np.uint16) & np.uint16((1 << width) - 1)
    order = np.argsort(exponent, kind="stable")
    ends, begin = [], 0
    for end in np.cumsum(np.bincount(exponent)):
        if end - begin >= _RUN:
            ends.append(int(end))
            begin = int(end)
    if not ends:
        return order, [reference.size]
    ends[-1] = reference.size  # what is left over joins the last run
    return order, ends


def _encode_delta(values: np.ndarray, reference: np.ndarray | None, layout: Layout) -> bytes:
    ordered = _ordered(values, layout)
    if reference is None:
        return _compress(ordered)
    signed = np.dtype(f"i{layout.width}")
    difference = (ordered - _ordered(reference, layout)).view(signed)
    if layout.exponent is None:
        return _compress(difference)
    order, ends = _runs(reference, layout)
    difference = difference[order]
    parts, begin = [], 0
    for end in ends:
        part = _compress(difference[begin:end])
        parts.append(len(part).to_bytes(4, "little") + part)
        begin = end
    return b"".join(parts)


def _decode_delta(body: bytes, count: int, reference: np.ndarray | None, layout: Layout) -> np.ndarray:
    if reference is None:
        return _unordered(_decompress(body, count, layout, signed=False), layout)
    if layout.exponent is None:
        difference = _decompress(body, count, layout, signed=True)
    else:
        order, ends = _runs(reference, layout)
        difference = np.empty(count, layout.unsigned)
        position, begin = 0, 0
        for end in ends:
            length = int.from_bytes(body[position : position + 4], "little")
            part = body[position + 4 : position + 4 + length]
            difference[order[begin:end]] = _decompress(part, end - begin, layout, signed=True)
            position, begin = position + 4 + length, end
        if position != len(body):
            raise PackError("exact: the runs of a block do not fill it")
    return _unordered(_ordered(reference, layout) + difference, layout)


def _compress(values: np.ndarray) -> bytes:
    return bytes(standalone.simple_compress(np.ascontiguousarray(values), _CONFIG))


def _decompress(body: bytes, count: int, layout: Layout, *, signed: bool) -> np.ndarray:
    values = np.empty(count, np.dtype(f"{'i' if signed else 'u'}{layout.width}"))
    try:
        progress = standalone.simple_decompress_into(body, values)
    except Exception as cause:  # pcodec raises its own and Python's errors alike on damaged bytes
        raise PackError(f"exact: a block does not decode: {cause}") from cause
    if progress.n_processed != count or not progress.finished:
        raise PackError(f"exact: a block holds another number of values than {count}")
    return values.view(layout.unsigned)
