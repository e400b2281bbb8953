"""How files are cut, against a cut by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from stores import digest, parts

from kinfold.errors import StoreError
from kinfold.store import segments
from kinfold.store.segments import LARGEST, SMALL, cut, read, scan

KIB = 1024


def test_the_bounds_are_those_of_the_layout() -> None:
    assert (SMALL, LARGEST) == (64 * KIB, 256 * KIB * KIB)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 2, 3], [6]),
        ([SMALL - 1, SMALL, 1], [SMALL - 1, SMALL, 1]),
        ([SMALL, SMALL], [SMALL, SMALL]),
        ([5, 0, SMALL, 0, 7, 8], [5, SMALL, 15]),
        ([LARGEST], [LARGEST]),
        ([LARGEST + 1], [LARGEST, 1]),
        ([2 * LARGEST, 3], [LARGEST, LARGEST, 3]),
        ([SMALL // 2] * 8193, [LARGEST, SMALL // 2]),
    ],
)
def test_cut(sizes: list[int], lengths: list[int]) -> None:
    assert cut(sizes) == lengths


@given(st.lists(st.integers(0, 3 * SMALL)))
def test_cut_loses_nothing(sizes: list[int]) -> None:
    lengths = cut(sizes)
    assert sum(lengths) == sum(sizes)
    assert all(0 < length <= LARGEST for length in lengths)


def test_a_safetensors_file_is_cut_at_its_tensors(tmp_path: Path) -> None:
    tensors = {"z": torch.randn(200, 100), "a": torch.ones(3), "b": torch.ones(0, 4), "c": torch.randn(64, 256)}
    save_file(tensors | {"d": torch.ones(5, dtype=torch.int8)}, tmp_path / "m.safetensors", {"format": "pt"})
    found = scan(tmp_path / "m.safetensors")
    expected = parts(tmp_path / "m.safetensors")
    assert [(s.hash, s.size) for s in found.segments] == [(digest(p), len(p)) for p in expected]
    assert found.hash == digest((tmp_path / "m.safetensors").read_bytes())
    assert found.size == (tmp_path / "m.safetensors").stat().st_size
    assert found.tensors == {name: digest(tensors[name].numpy().tobytes()) for name in ("z", "c")}


def test_other_files_are_cut_by_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LARGEST", 1000)
    data = bytes(range(256)) * 10
    (tmp_path / "notes.bin").write_bytes(data)
    (tmp_path / "broken.safetensors").write_bytes(data)
    (tmp_path / "empty").touch()
    for name in ("notes.bin", "broken.safetensors"):
        found = scan(tmp_path / name)
        assert [s.hash for s in found.segments] == [digest(data[i : i + 1000]) for i in (0, 1000, 2000)]
    assert scan(tmp_path / "empty").segments == []
    assert scan(tmp_path / "empty").hash == digest(b"")


def test_a_large_tensor_is_several_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LARGEST", 100_000)
    save_file({"w": torch.randn(60_000)}, tmp_path / "m.safetensors")
    found = scan(tmp_path / "m.safetensors")
    assert [s.size for s in found.segments[1:]] == [100_000, 100_000, 40_000]
    assert found.tensors == {}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        scan(tmp_path / "nothing")
    with pytest.raises(StoreError, match="cannot read"):
        list(read(tmp_path, 0, 5))
    (tmp_path / "short").write_bytes(b"123")
    with pytest.raises(StoreError, match="became shorter while it was read"):
        list(read(tmp_path / "short", 1, 5))
