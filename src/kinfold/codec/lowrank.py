"""Leading singular triplets of a matrix, in float64, with canonical signs.

Halko, Martinsson, Tropp: Finding structure with randomness (2011), Algorithms 4.4 and 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Pair = tuple[torch.Tensor, torch.Tensor]  # A (n, k) and C (d, k), for the matrix A C^T
_BLOCK = 1 << 22  # entries in float64 at once: 32 MiB
EXACT_SIDE = 1024  # up to this shorter side the whole spectrum is computed
_OVERSAMPLING = 16
_PASSES = 4


@dataclass(frozen=True)
class Factors:
    """D ~ U diag(S) V^T: `u` (n, k), `s` (k) descending, `v` (d, k); float64."""

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor

    def balanced(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A = U sqrt(S) (n, rank) and C = V sqrt(S) (d, rank), so that D ~ A C^T."""
        root = self.s[:rank].sqrt()
        return self.u[:, :rank] * root, self.v[:, :rank] * root


def as_matrix(delta: torch.Tensor) -> torch.Tensor:
    """A tensor of more than two dimensions as (first, rest), as convolution kernels are."""
    return delta.reshape(delta.shape[0], -1)


def multiply(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`matrix @ right` in float64 without a float64 copy of the whole matrix."""
    rows = _rows(matrix)
    # written in place: results kept between the blocks' temporaries would scatter the heap
    result = torch.empty(matrix.shape[0], right.shape[1], dtype=torch.float64, device=matrix.device)
    for block, part in zip(matrix.split(rows), result.split(rows), strict=True):
        torch.matmul(block.double(), right, out=part)
    return result


def multiply_transposed(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`matrix.T @ right` in float64 without a float64 copy of the whole matrix."""
    rows = _rows(matrix)
    result = torch.zeros(matrix.shape[1], right.shape[1], dtype=torch.float64, device=matrix.device)
    for block, part in zip(matrix.split(rows), right.split(rows), strict=True):
        result.addmm_(block.double().T, part)
    return result


def _rows(matrix: torch.Tensor) -> int:
    return max(1, _BLOCK // max(matrix.shape[1], 1))


def leading(delta: torch.Tensor, rank: int, seed: int = 0) -> Factors:
    """The `rank` leading singular triplets of `delta` (n, d), float32 or float64.

    Exact through the eigenvectors of the smaller Gram matrix when min(n, d) <= 1024, which is several
    times faster than an SVD and as good for leading triplets; else randomised with 4 passes, a QR at
    each, and 16 columns of oversampling. The largest entry of each column of U is positive.
    """
    n, d = delta.shape
    rank = min(rank, n, d)
    if min(n, d) <= EXACT_SIDE:
        u, s, v = _by_gram(delta)
    else:
        u, s, v = _randomised(delta, min(rank + _OVERSAMPLING, n, d), seed)
    return _canonical(u[:, :rank], s[:rank], v[:, :rank])


def of_product(a: torch.Tensor, c: torch.Tensor) -> Factors:
    """The singular triplets of A C^T, A (n, k) and C (d, k) float64, without forming it; min(n, d, k) of them."""
    q_a, r_a = torch.linalg.qr(a)
    q_c, r_c = torch.linalg.qr(c)
    u, s, v = torch.linalg.svd(r_a @ r_c.T, full_matrices=False)
    return _canonical(q_a @ u, s, q_c @ v.T)


def spectrum(delta: torch.Tensor) -> torch.Tensor:
    """All singular values of `delta` (n, d), float64, descending; by the Gram matrix, so values below
    1e-8 of the largest are rounding noise."""
    if delta.shape[0] > delta.shape[1]:
        delta = delta.T
    gram = multiply(delta, delta.double().T)
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()


def _by_gram(delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = delta.shape[0] <= delta.shape[1]
    tall = delta.T if wide else delta
    near = torch.linalg.eigh(_gram(tall))[1].flip(1)
    far = multiply(tall, near)
    # dividing by the length of the far side, not by s, keeps U S V^T exact for small s too
    s = far.norm(dim=0)
    vanished = s <= 1e-300
    far.div_(s.masked_fill_(vanished, 1.0))
    far[:, vanished] = 0.0
    s[vanished] = 0.0
    return (near, s, far) if wide else (far, s, near)


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    exact = matrix.double()
    return exact.T @ exact


def _randomised(delta: torch.Tensor, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    start = torch.randn(delta.shape[1], width, dtype=torch.float64, generator=generator).to(delta.device)
    q = torch.linalg.qr(multiply(delta, start))[0]
    for _ in range(_PASSES):  # one name for both sides, so that only one of them is alive
        q = torch.linalg.qr(multiply_transposed(delta, q))[0]
        q = torch.linalg.qr(multiply(delta, q))[0]
    small = multiply_transposed(delta, q).T
    u, s, v = torch.linalg.svd(small, full_matrices=False)
    return q @ u, s, v.T


def peak_signs(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The sign of the largest entry along a side that is not empty, which keeps length 1; 1 for zeros."""
    peak = tensor.gather(dim, tensor.abs().argmax(dim, keepdim=True))  # argmax gives the lowest place among equals
    return torch.where(peak < 0, -1.0, 1.0).to(tensor.dtype)


def _canonical(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> Factors:
    if u.shape[1] == 0:
        return Factors(u, s, v)
    sign = peak_signs(u, 0)[0]
    return Factors(u.contiguous().mul_(sign), s.contiguous(), v.contiguous().mul_(sign))
