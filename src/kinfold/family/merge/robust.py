"""The robust rules of `family.robust` as merge methods. They bound what a minority of members can do, at a price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from kinfold.errors import MergeError
from kinfold.family import robust
from kinfold.family.merge.gram import gram_matrix
from kinfold.family.merge.registry import HERE, Options, Site, Weights, gram_method, merge_method
from kinfold.family.robust import Joined, join_copies

Passes = Callable[[], Iterable[Sequence[torch.Tensor]]]


def _joined(gram: np.ndarray, shares: np.ndarray | None, join: bool) -> Joined:
    """Copies as one member, so that publishing a copy changes nothing; else each member by itself."""
    return join_copies(gram, shares, robust.COPY_COSINE if join else 2.0)


@gram_method("clip_mean")
def clip_mean(gram: np.ndarray, shares: np.ndarray, *, scale: float = 1.0, join: bool = True) -> np.ndarray:
    """The mean of deltas shortened to the median norm."""
    members = _joined(gram, shares, join)
    return scale * members.split(robust.clip_mean(members.gram, members.shares))


@gram_method("geomedian")
def geomedian(gram: np.ndarray, shares: np.ndarray, *, scale: float = 1.0, join: bool = True) -> np.ndarray:
    """The geometric median."""
    members = _joined(gram, shares, join)
    return scale * members.split(robust.geomedian(members.gram, members.shares))


@gram_method("centered_clip")
def centered_clip(gram: np.ndarray, shares: np.ndarray, *, scale: float = 1.0, join: bool = True) -> np.ndarray:
    """A centre moved by clipped differences (arXiv 2012.10333)."""
    members = _joined(gram, shares, join)
    return scale * members.split(robust.centered_clip(members.gram, members.shares))


def _equal(weights: Weights, options: Options) -> None:
    if len(set(weights)) > 1:
        raise MergeError("this method has no place for weights", hint="leave --weights out, or --method clip_mean")


@gram_method("multikrum", check=_equal)
def multikrum(gram: np.ndarray, shares: np.ndarray, *, f: int = 1, scale: float = 1.0, join: bool = True) -> np.ndarray:
    """The mean of the members with the nearest neighbours; `f` may be bad."""
    members = _joined(gram, None, join)
    return scale * members.split(robust.multikrum(members.gram, f))


def _groups(passes: Passes, members: int, *, join: bool, **_: Any) -> Joined:
    return _joined(gram_matrix(passes() if join else (), members), None, join)


@merge_method("median", check=_equal, survey=_groups)
def median(
    deltas: Sequence[torch.Tensor], weights: Weights, *, site: Site = HERE, scale: float = 1.0, join: bool = True
) -> torch.Tensor:
    """The median of each weight on its own."""
    return robust.median(_stacked(deltas, site)) * scale


@merge_method("trimmed_mean", check=_equal, survey=_groups)
def trimmed_mean(
    deltas: Sequence[torch.Tensor],
    weights: Weights,
    *,
    site: Site = HERE,
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2,
    scale: float = 1.0,
    join: bool = True,
) -> torch.Tensor:
    """The mean of each weight without its smallest and largest values, a share `beta` on each side."""
    return robust.trimmed_mean(_stacked(deltas, site), beta) * scale


def _stacked(deltas: Sequence[torch.Tensor], site: Site) -> torch.Tensor:
    stack = torch.stack(list(deltas))
    return stack if site.survey is None else site.survey.means(stack)
