"""`knots`: merge in the directions that all deltas share. KnOTS, arXiv 2410.19735."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kinfold.codec.lowrank import as_matrix, multiply_transposed
from kinfold.family.merge.registry import Site, space_method
from kinfold.pack.member import Pair

_SMALLEST = 1e-5  # of the largest singular value: what is below is no direction
_LARGEST_SIDE = 8192  # of a Gram matrix: 512 MiB in float64, minutes for its eigenvectors
_BLOCK = 1 << 22
Found = tuple[list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


@space_method("knots", inners={"ties": {}, "task_arithmetic": {}})
def knots(deltas: list[torch.Tensor], *, site: Site) -> Found | None:
    """Coordinates S V_i^T of [D_1 .. D_n] = U S [V_1^T .. V_n^T]; the way back is U times what is merged. Section 4.

    Exact from factors where every member has some (float64), else by the eigenvectors of the smaller Gram matrix
    (float32; singular values under 1e-5 of the largest are left out either way). Vectors, and matrices whose
    smaller Gram matrix has a side over 8192, are merged as they are. Kernels count as (out, rest).
    """
    if deltas[0].dim() < 2 or deltas[0].numel() == 0:
        return None
    shape, pairs = deltas[0].shape, site.factors()
    known = [pair for pair in pairs if pair is not None]
    if known and len(known) == len(pairs):
        coordinates, u = from_factors(known)
        return coordinates, lambda merged: (u @ merged.double()).reshape(shape).to(merged.dtype)
    rows, columns = as_matrix(deltas[0]).shape
    if min(rows, len(deltas) * columns) > _LARGEST_SIDE:
        return None
    return _wide(deltas, shape) if rows <= len(deltas) * columns else _tall(deltas, shape)


def from_factors(pairs: Sequence[Pair]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """S V_i^T (k, d) and U (n, k), float64, of D_i = A_i C_i^T, without any D_i.

    [A_1 .. A_n] = Q T and C_i = Q_i T_i give D_i = Q (T'_i T_i^T) Q_i^T, where T'_i are the columns of T that belong
    to A_i; the SVD of [T'_1 T_1^T .. T'_n T_n^T] is all that is left.
    """
    q, t = torch.linalg.qr(torch.cat([a for a, _ in pairs], 1))
    right = [torch.linalg.qr(c) for _, c in pairs]
    blocks = t.split([a.shape[1] for a, _ in pairs], 1)
    middle = [block @ r.T for block, (_, r) in zip(blocks, right, strict=True)]
    u, s, vt = torch.linalg.svd(torch.cat(middle, 1), full_matrices=False)
    kept = _kept(s)
    parts = (s[:kept, None] * vt[:kept]).split([part.shape[1] for part in middle], 1)
    return [part @ side.T for part, (side, _) in zip(parts, right, strict=True)], q @ u[:, :kept]


def _kept(s: torch.Tensor) -> int:
    return int((s > _SMALLEST * s[0]).sum()) if len(s) else 0


def _wide(deltas: list[torch.Tensor], shape: torch.Size) -> Found:
    """By the eigenvectors U of sum D_i D_i^T: the coordinates are U^T D_i. Each takes the place of its delta."""
    rows = shape[0]
    gram = torch.zeros(rows, rows, dtype=torch.float64)
    for delta in deltas:
        for block in as_matrix(delta).split(max(1, _BLOCK // rows), 1):
            exact = block.double()
            gram.addmm_(exact, exact.T)
    s, u = _eigen(gram)
    del gram
    u = u[:, : _kept(s)]
    for number, delta in enumerate(deltas):
        deltas[number] = multiply_transposed(as_matrix(delta), u).T.float().contiguous()
    return deltas, lambda merged: (u @ merged.double()).float().reshape(shape)


def _tall(deltas: list[torch.Tensor], shape: torch.Size) -> Found:
    """By the eigenvectors V of the Gram matrix of all columns: the coordinates are S V_i^T, U is sum D_i V_i / S."""
    matrices = [as_matrix(delta) for delta in deltas]
    side, width = len(matrices) * matrices[0].shape[1], matrices[0].shape[1]
    gram = torch.zeros(side, side, dtype=torch.float64)
    for blocks in zip(*(matrix.split(max(1, _BLOCK // side)) for matrix in matrices), strict=True):
        exact = torch.cat(blocks, 1).double()
        gram.addmm_(exact.T, exact)
    s, v = _eigen(gram)
    del gram
    kept = _kept(s)
    s, sides = s[:kept], v[:, :kept].split(width)

    def back(merged: torch.Tensor) -> torch.Tensor:
        solved = merged.double() / s[:, None]
        total = torch.zeros(matrices[0].shape[0], width, dtype=torch.float64)
        for matrix, one in zip(matrices, sides, strict=True):
            right = one @ solved
            for out, block in zip(total.split(_rows(width)), matrix.split(_rows(width)), strict=True):
                out.addmm_(block.double(), right)
        return total.float().reshape(shape)

    return [(s[:, None] * one.T).float() for one in sides], back


def _rows(width: int) -> int:
    return max(1, _BLOCK // max(width, 1))


def _eigen(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values, descending, and their vectors."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
