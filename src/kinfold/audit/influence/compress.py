"""Compressors of a module's gradient: what is kept of the (d_out, d_in) matrix of each row.

All are linear maps, applied alike to training and probe rows. `rescale` makes the inner products of what is kept
estimate those of whole gradients without bias.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import numpy as np
import torch

from kinfold.audit.influence import mask
from kinfold.audit.influence.mask import Shape

Kind = Literal["entry", "neuron", "none", "gaussian", "pca"]
KINDS = get_args(Kind)
CHUNK = 1 << 22  # values of an intermediate product


class Compressor(ABC):
    """One module's map.

    Attributes:
        name: canonical name of the module's weight.
        shape: (d_out, d_in) of the weight.
        width: how many numbers are kept of a gradient.
        map_bytes: what must be stored, or drawn anew, for the map itself.
    """

    map_bytes = 0

    def __init__(self, name: str, shape: Shape, width: int) -> None:
        self.name, self.shape, self.width = name, shape, width

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def rescale(self) -> float:
        """Factor for the kept numbers, sqrt(d / k) for a mask."""
        return (self.size / self.width) ** 0.5

    @property
    def coordinates(self) -> list[np.ndarray]:
        """The kept indices, where there are some."""
        return []

    @abstractmethod
    def full(self, gradient: torch.Tensor) -> torch.Tensor:
        """What is kept of whole gradients (rows, d_out * d_in): (rows, width)."""

    def product(self, inputs: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """What is kept of the gradients sum_t delta_t x_t^T.

        Args:
            inputs: x (rows, T, d_in).
            delta: derivative of each row's loss by the module's output, (rows, T, d_out).

        Returns:
            (rows, width), float32, or float64 if the arguments are.
        """
        whole = torch.bmm(_wide(delta).transpose(1, 2), _wide(inputs))
        return self.full(whole.reshape(len(whole), -1))


class Entries(Compressor):
    """A seeded subset of the entries."""

    def __init__(self, name: str, shape: Shape, width: int, seed: int) -> None:
        super().__init__(name, shape, min(width, shape[0] * shape[1]))
        self.index = mask.indices(seed, name, shape, self.width)

    @property
    def coordinates(self) -> list[np.ndarray]:
        return [self.index]

    def full(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient[:, torch.from_numpy(self.index).to(gradient.device)]

    def product(self, inputs: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        if 4 * self.width > self.size:  # so many are kept that the whole matrix is the cheaper way
            return super().product(inputs, delta)
        index = torch.from_numpy(self.index).to(delta.device)
        rows, columns = index // self.shape[1], index % self.shape[1]
        step = max(1, CHUNK // (inputs.shape[0] * inputs.shape[1]))
        parts = [
            (_wide(delta[:, :, a]) * _wide(inputs[:, :, b])).sum(1)
            for a, b in zip(rows.split(step), columns.split(step), strict=True)
        ]
        return torch.cat(parts, 1)


class Neurons(Compressor):
    """The block of a seeded subset of outputs and one of inputs."""

    def __init__(self, name: str, shape: Shape, width: int, seed: int) -> None:
        self.outputs, self.inputs = mask.neuron_indices(seed, name, shape, width)
        super().__init__(name, shape, len(self.outputs) * len(self.inputs))

    @property
    def coordinates(self) -> list[np.ndarray]:
        return [self.outputs, self.inputs]

    def full(self, gradient: torch.Tensor) -> torch.Tensor:
        index = (self.outputs[:, None] * self.shape[1] + self.inputs).reshape(-1)
        return gradient[:, torch.from_numpy(index).to(gradient.device)]

    def product(self, inputs: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        outputs, columns = (torch.from_numpy(part).to(delta.device) for part in (self.outputs, self.inputs))
        block = torch.bmm(_wide(delta[:, :, outputs]).transpose(1, 2), _wide(inputs[:, :, columns]))
        return block.reshape(len(block), -1)


class Gaussian(Compressor):
    """Products with a seeded Gaussian matrix, kept in memory; the same on one machine and version of torch only."""

    def __init__(self, name: str, shape: Shape, width: int, seed: int) -> None:
        super().__init__(name, shape, width)
        generator = torch.Generator().manual_seed(mask.mask_seed(seed, name, shape) >> 1)
        self.matrix = torch.randn(self.size, width, generator=generator) / self.size**0.5
        self.map_bytes = self.matrix.nbytes

    def full(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self.matrix.to(gradient)


class Principal(Compressor):
    """Projections on the leading directions of some rows' gradients (PCA without a mean)."""

    def __init__(self, name: str, shape: Shape, width: int, sample: torch.Tensor) -> None:
        """`sample`: whole gradients, (rows, d_out * d_in); no more directions than rows can be had."""
        wide = sample.double()
        values, vectors = torch.linalg.eigh(wide @ wide.T)  # rows are far fewer than values
        kept = min(width, int((values > values[-1] * 1e-12).sum()))
        values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
        self.matrix = (wide.T @ vectors / values.sqrt()).float()
        super().__init__(name, shape, kept)
        self.map_bytes = self.matrix.nbytes

    @property
    def rescale(self) -> float:
        return 1.0

    def full(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self.matrix.to(gradient)


def make(kind: Kind, name: str, shape: Shape, width: int, seed: int) -> Compressor:
    """A compressor that needs no data; `none` keeps everything."""
    if kind == "neuron":
        return Neurons(name, shape, width, seed)
    if kind == "gaussian":
        return Gaussian(name, shape, width, seed)
    return Entries(name, shape, shape[0] * shape[1] if kind == "none" else width, seed)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
