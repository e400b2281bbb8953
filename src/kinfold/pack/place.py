"""Where the tensors of a unit lie in a loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kinfold.pack.source import Sources
from kinfold.pack.units import Draft
from kinfold.tasks import Task


@dataclass(frozen=True)
class Place:
    """A unit with a base, and the model's parameter for each of its pieces."""

    draft: Draft
    parameters: tuple[torch.nn.Parameter, ...]

    @classmethod
    def find(cls, task: Task, draft: Draft) -> Place:
        """The place of a unit.

        Raises:
            CheckpointError: the model has no parameter of that name.
        """
        own = task.parameters([piece.name for piece in draft.pieces])
        return cls(draft, tuple(own[piece.name] for piece in draft.pieces))

    @torch.no_grad()
    def put(self, sources: Sources, delta: torch.Tensor | None) -> None:
        """Set the parameters to base + `delta`, in the unit's shape; to the base alone without one."""
        reference = sources.reference(self.draft.pieces)
        assert reference is not None  # only tensors with a base are coded as deltas
        values = reference.reshape(-1).float()
        if delta is not None:
            values = values + delta.reshape(-1)
        sizes = [piece.numel for piece in self.draft.pieces]
        for (_, view), part in zip(self._views(), values.split(sizes), strict=True):
            view.copy_(part.reshape(view.shape))

    def gradient(self) -> torch.Tensor:
        """Of the last loss by the unit's delta, float32 in its shape."""
        parts = [torch.zeros_like(view) if grad is None else grad for grad, view in self._views()]
        return torch.cat([part.reshape(-1) for part in parts]).reshape(self.draft.shape)

    def _views(self) -> Iterator[tuple[torch.Tensor | None, torch.Tensor]]:
        """Gradient and values of each piece."""
        for piece, parameter in zip(self.draft.pieces, self.parameters, strict=True):
            rows = slice(*piece.rows) if piece.rows else ...
            yield None if parameter.grad is None else parameter.grad[rows], parameter.data[rows]
