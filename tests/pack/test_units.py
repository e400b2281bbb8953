"""Which tensors are coded with loss, which are kept, which are laid together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kinfold.checkpoint import Checkpoint
from kinfold.pack.source import Sources
from kinfold.pack.units import Draft, drafts
from models import Tensors, perturbed, save


def drafted(folder: Path, base: Tensors, variant: Tensors, *, lossless: bool = False) -> list[Draft]:
    sources = Sources.open(*(Checkpoint.open(save(folder / n, t)) for n, t in (("base", base), ("variant", variant))))
    return drafts(sources.base, sources.variant, sources.match, lossless=lossless)


BASE = {
    "conv": torch.randn(16, 8, 5, 7),  # 4480 values: a 16 x 280 matrix
    "just": torch.randn(64, 64),  # 4096 values: the smallest matrix coded with loss
    "less": torch.randn(63, 65),
    "row": torch.randn(1, 5000),
    "column": torch.randn(5000, 1),
    "vector": torch.randn(5000),
    "ints": torch.arange(8192).reshape(64, 128),
    "bytes": torch.randn(64, 64).to(torch.float8_e4m3fn),
    "half": torch.randn(64, 80).half(),
    "wide": torch.randn(64, 80).double(),
}


def test_matrices_are_floats_with_a_base_and_4096_values(tmp_path: Path) -> None:
    variant = perturbed({n: t for n, t in BASE.items() if t.dtype not in (torch.int64, torch.float8_e4m3fn)})
    variant |= {"ints": BASE["ints"] + 1, "bytes": (-BASE["bytes"].float()).to(torch.float8_e4m3fn)}
    variant["new"] = torch.randn(80, 80)
    found = drafted(tmp_path, BASE, variant)
    assert [draft.name for draft in found if draft.matrix] == ["conv", "half", "just", "wide"]
    assert [draft.matrix for draft in found] == sorted((draft.matrix for draft in found), reverse=True)
    kept = sorted(tuple(piece.name for piece in draft.pieces) for draft in found if not draft.matrix)
    assert kept == [("bytes",), ("column", "less", "row", "vector"), ("ints",), ("new",)]
    assert not any(draft.matrix for draft in drafted(tmp_path, BASE, variant, lossless=True))


@pytest.mark.parametrize("rows", [80, 70])
def test_a_resized_matrix_is_its_common_rows_and_new_ones(tmp_path: Path, rows: int) -> None:
    base = {"e": torch.randn(75, 64), "f": torch.randn(300)}
    changed = perturbed(base)
    changed["e"] = torch.cat([changed["e"], torch.randn(5, 64)])[:rows]
    found = drafted(tmp_path, base, changed)
    common = min(rows, 75)
    assert found[0].matrix
    assert found[0].shape == (common, 64)
    assert found[0].pieces[0].rows == [0, common]
    news = [piece for draft in found for piece in draft.pieces if piece.base is None]
    assert [(piece.name, piece.rows) for piece in news] == ([("e", [75, 80])] if rows == 80 else [])


def test_groups_are_of_one_kind_and_bounded(tmp_path: Path) -> None:
    base = {f"b{n:02}": torch.randn(60_000) for n in range(20)} | {"large": torch.randn(65_536)}
    found = drafted(tmp_path, base, perturbed(base), lossless=True)
    sizes = [draft.numel for draft in found]
    assert sorted(sizes) == sorted([18 * 60_000, 65_536, 2 * 60_000])
    assert sum(draft.nbytes for draft in found) == 4 * (20 * 60_000 + 65_536)
    assert [len(draft.pieces) for draft in found if draft.numel == 65_536] == [1]
    assert all(draft.shape == (draft.numel,) for draft in found)
