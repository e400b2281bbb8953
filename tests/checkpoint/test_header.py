"""The safetensors header: golden bytes, and every lie a file can tell."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.torch import save_file

from kinfold.checkpoint.header import DTYPES, build_header, read_header, size_of
from kinfold.errors import CheckpointError, PackError


def file_of(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_golden_bytes() -> None:
    built = build_header([("b", "F32", (2, 3)), ("a", "U8", (5,))], {"z": "1", "a": "é"})
    text = (
        '{"__metadata__":{"a":"é","z":"1"},'
        '"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
        '"a":{"dtype":"U8","shape":[5],"data_offsets":[24,29]}}'
    ).encode()
    padded = text + b" " * (-len(text) % 8)
    assert built == len(padded).to_bytes(8, "little") + padded
    assert len(built) % 8 == 0


def test_no_metadata_leaves_the_key_out() -> None:
    assert build_header([], {}) == (8).to_bytes(8, "little") + b"{}      "


dims = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(["F32", "BF16", "U8", "I64"]), dims)))
@settings(max_examples=50, deadline=None)
def test_the_library_reads_what_is_built(tmp_path_factory: pytest.TempPathFactory, tensors: dict) -> None:
    tensors.pop("__metadata__", None)
    specs = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    total = sum(size_of(dtype, shape) for _, dtype, shape in specs)
    data = bytes(index % 251 for index in range(total))
    whole = build_header(specs, {"format": "pt"}) + data
    seen = {name: (e["dtype"], tuple(e["shape"]), bytes(e["data"])) for name, e in deserialize(whole)}
    expected, position = {}, 0
    width = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8}
    for name, dtype, shape in specs:
        nbytes = width[dtype] * math.prod(shape)
        expected[name] = (dtype, shape, data[position : position + nbytes])
        position += nbytes
    assert seen == expected


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "x": torch.arange(6.0).reshape(2, 3),
        "s": torch.tensor(7),
        "e": torch.zeros(0, 4),
        "b": torch.ones(3).bool(),
    }
    save_file(tensors, tmp_path / "f.safetensors", {"format": "pt", "k": "v"})
    metadata, infos = read_header(tmp_path / "f.safetensors")
    assert metadata == {"format": "pt", "k": "v"}
    raw = (tmp_path / "f.safetensors").read_bytes()
    for name, tensor in tensors.items():
        info = infos[name]
        assert info.shape == tuple(tensor.shape)
        assert info.torch_dtype == tensor.dtype
        assert info.numel == tensor.numel()
        assert raw[info.start : info.start + info.nbytes] == tensor.numpy().tobytes()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_the_librarys(tmp_path: Path, name: str) -> None:
    tensor = torch.zeros(16, dtype=torch.uint8).view(DTYPES[name])
    save_file({"x": tensor}, tmp_path / "f.safetensors")
    _, infos = read_header(tmp_path / "f.safetensors")
    assert infos["x"].dtype == name
    assert infos["x"].nbytes == 16
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        assert file.get_tensor("x").dtype == DTYPES[name]


MANY = {f"t{index}": entry(offsets=(4 * index, 4 * index + 4)) for index in range(3)}
LIES = {
    "empty object as entry": ({"a": {}}, b"", "exactly dtype, shape and data_offsets"),
    "extra key": ({"a": {**entry(), "more": 1}}, b"1234", "exactly dtype"),
    "entry is a list": ({"a": [1]}, b"", "exactly dtype"),
    "unknown dtype": ({"a": entry("F9")}, b"1234", "dtype 'F9'"),
    "dtype is a list": ({"a": entry(["U8"])}, b"1234", "dtype"),
    "negative dimension": ({"a": entry(shape=[-4])}, b"1234", "no valid shape"),
    "shape of true": ({"a": entry(shape=[True, 4])}, b"1234", "no valid shape"),
    "shape of floats": ({"a": entry(shape=[4.0])}, b"1234", "no valid shape"),
    "shape of 65 dimensions": ({"a": entry(shape=[1] * 64 + [4])}, b"1234", "no valid shape"),
    "huge dimension": ({"a": entry(shape=[1 << 70])}, b"1234", "no valid shape"),
    "product overflows 64 bits": ({"a": entry(shape=[1 << 61] * 3)}, b"1234", "needs"),
    "empty but huge": ({"a": entry(shape=[0, 1 << 61, 1 << 61], offsets=[0, 0])}, b"", "no valid shape"),
    "one offset": ({"a": entry(offsets=[4])}, b"1234", "no valid data_offsets"),
    "negative offset": ({"a": entry(offsets=[-4, 0])}, b"1234", "no valid data_offsets"),
    "end before begin": ({"a": entry(offsets=[4, 0])}, b"1234", "lies at bytes 4-0"),
    "beyond the file": ({"a": entry(shape=[8], offsets=[0, 8])}, b"1234", "lies at bytes 0-8"),
    "size and shape disagree": ({"a": entry(shape=[3])}, b"1234", "takes 4 bytes"),
    "overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456", "overlaps"),
    "same bytes twice": ({"a": entry(), "b": entry()}, b"1234", "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=(5, 9))}, b"123456789", "leaves a gap"),
    "gap at the front": ({"a": entry(offsets=(1, 5))}, b"12345", "leaves a gap"),
    "bytes after the last tensor": ({"a": entry()}, b"12345", "its tensors end at"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "strings to strings"),
    "metadata is a list": ({"__metadata__": ["a"]}, b"", "strings to strings"),
    "no object": ([1, 2], b"", "no JSON object"),
    "leading space": (b' {"a":1}', b"", "no JSON object"),
    "no JSON": (b"{nonsense", b"", "no valid safetensors"),
    "not UTF-8": (b'{"\xff\xfe":1}', b"", "no valid safetensors"),
    "deeply nested": (b'{"a":' * 100_000, b"", "no valid safetensors"),
    "number of many digits": (b'{"a":' + b"9" * 5000 + b"}", b"", "no valid safetensors"),
    "duplicate tensor": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 1
        + b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b"",
        "`a` occurs twice",
    ),
    "duplicate key in an entry": (
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
        b"",
        "`dtype` occurs twice",
    ),
    "duplicate metadata": (b'{"__metadata__":{"a":"1","a":"2"}}', b"", "`a` occurs twice"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, what: str) -> None:
    header, data, words = LIES[what]
    path = file_of(tmp_path / "f.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 100_000_001, 12])
def test_a_header_longer_than_the_file_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}      ")
    with pytest.raises(PackError, match=f"a header of {length} bytes does not fit a file of 16"):
        read_header(path, PackError)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_too_short_for_a_length(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError, match="does not fit"):
        read_header(tmp_path / "f")


def test_a_sound_header_of_three_tensors_passes(tmp_path: Path) -> None:
    _, infos = read_header(file_of(tmp_path / "f", MANY, b"123456789abc"))
    assert [(info.start - infos["t0"].start, info.nbytes) for info in infos.values()] == [(0, 4), (4, 4), (8, 4)]
