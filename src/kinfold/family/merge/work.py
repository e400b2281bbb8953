"""Base, members and method together: what is read of them, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kinfold.codec.random import tensor_seed
from kinfold.codec.sums import is_finite
from kinfold.errors import MergeError
from kinfold.family.merge.choice import Choice
from kinfold.family.merge.registry import Site
from kinfold.pack.member import Base, Member, Pair
from kinfold.report.progress import progress


@dataclass(frozen=True)
class Work:
    """Base, members and method, and how to read one tensor of them all."""

    base: Base
    members: list[Member]
    weights: list[float]
    choice: Choice
    seed: int
    survey: Any = None

    def deltas(self, name: str) -> list[torch.Tensor]:
        """Every member's delta of a tensor of the base, float32.

        Raises:
            MergeError: a member holds NaN or infinity.
        """
        found = []
        for member in self.members:
            delta = member.delta(name)
            if not is_finite(delta):
                raise MergeError(
                    f"`{member.own[name]}` of `{member.name}` holds NaN or infinity, which no method can merge",
                    hint=f"leave {member.name} out, or mend it",
                )
            found.append(delta)
        return found

    def site(self, name: str) -> Site:
        def factors() -> list[Pair | None]:
            return [_nothing(delta_shape) if name in m.same else m.factors(name) for m in self.members]

        delta_shape = self.base.checkpoint.tensors[name].shape
        seeds = tuple(tensor_seed(self.seed, f"{name}:{member.name}") for member in self.members)
        return Site(name, seeds, lambda: self.base.checkpoint.read(name).float(), factors, self.survey)

    def coordinates(self, names: Sequence[str], label: str) -> Iterator[list[torch.Tensor]]:
        """One pass over what the method's rule sees, tensor by tensor."""
        tensors = self.base.checkpoint.tensors
        with progress(label, sum(tensors[name].nbytes for name in names)) as advance:
            for name in names:
                found = self.choice.coordinates(self.deltas(name), self.site(name))[0]
                yield found
                found.clear()  # whoever asked holds the list until the next is there
                advance(tensors[name].nbytes)

    def unchanged(self, name: str) -> bool:
        return all(name in member.same for member in self.members)


def _nothing(shape: tuple[int, ...]) -> Pair:
    """Factors of a delta that is zero."""
    rows, columns = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    return torch.zeros(rows, 0, dtype=torch.float64), torch.zeros(columns, 0, dtype=torch.float64)
