"""Scores of all stored rows, shard by shard; only the ends of each probe's list are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kinfold.audit.influence.baselines import gradient_cosine
from kinfold.audit.influence.estimate import Estimate, Weighted
from kinfold.audit.influence.settings import Layout
from kinfold.audit.influence.store import GradientStore


@dataclass
class Ends:
    """The first rows of each column by some key.

    Attributes:
        keys, rows: (at most count, m), the best first; rows are places among the distinct rows seen.
        extra: another figure of the same pairs.
    """

    keys: np.ndarray
    rows: np.ndarray
    extra: np.ndarray

    @classmethod
    def empty(cls, columns: int) -> Ends:
        return cls(np.empty((0, columns)), np.empty((0, columns), np.int64), np.empty((0, columns)))

    def merge(self, keys: np.ndarray, extra: np.ndarray, first: int, count: int) -> None:
        """Add rows `first`, `first` + 1, ...; larger keys are better, of equals the earlier row."""
        places = np.broadcast_to(np.arange(first, first + len(keys))[:, None], keys.shape)
        keys, rows, extra = (
            np.concatenate(pair) for pair in ((self.keys, keys), (self.rows, places), (self.extra, extra))
        )
        order = np.argsort(-keys, axis=0, kind="stable")[:count]
        self.keys, self.rows, self.extra = (np.take_along_axis(part, order, 0) for part in (keys, rows, extra))


@dataclass(frozen=True)
class Ranking:
    """What one pass over the store gives; m columns, a probe each.

    Attributes:
        hashes: of the distinct training rows, in the order of the store.
        own, losses, norms: (n distinct,).
        mean: mean score over all probes (n distinct,); zeros without probes.
        top, bottom: by score, of the m probes and, where there are several, their mean as the last column; with
            cosines as extra.
        cosine: by gradient cosine.
        scores: (n distinct, m) float32, if all were asked for.
    """

    hashes: list[bytes]
    own: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    mean: np.ndarray
    top: Ends
    bottom: Ends
    cosine: Ends
    scores: np.ndarray | None


def weighted(store: GradientStore, layout: Layout, weights: Mapping[bytes, int]) -> Iterator[Weighted]:
    """Rescaled gradients of the stored rows that are wanted, a shard at a time, and how often each occurs."""
    for gradients, _, hashes in _wanted(store, layout, weights):
        yield gradients, np.array([weights[one] for one in hashes], np.float64)


def _wanted(
    store: GradientStore, layout: Layout, weights: Mapping[bytes, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[bytes]]]:
    for shard in store.shards():
        mine = [number for number, one in enumerate(shard.hashes) if one in weights]
        if mine:
            hashes = [shard.hashes[number] for number in mine]
            yield shard.gradients[mine] * layout.rescale, shard.losses[mine], hashes


def own_scores(
    store: GradientStore, estimate: Estimate, weights: Mapping[bytes, int]
) -> tuple[np.ndarray, list[bytes]]:
    """Self-influence of the distinct training rows, and their hashes."""
    found, hashes = [np.empty(0)], []
    for gradients, _, names in _wanted(store, estimate.layout, weights):
        found.append(estimate.own(gradients))
        hashes += names
    return np.concatenate(found), hashes


def rank(
    store: GradientStore,
    estimate: Estimate,
    weights: Mapping[bytes, int],
    probe: np.ndarray | None,
    count: int,
    full: bool,
) -> Ranking:
    """One pass over the store.

    Args:
        estimate: damped.
        weights: how often each wanted row occurs, by hash.
        probe: rescaled gradients (m, width); None for self-influence only.
        count: rows to keep at each end.
        full: keep all scores.
    """
    asked = np.empty((0, estimate.layout.width), np.float32) if probe is None else probe
    directions = estimate.directions(asked)
    columns = len(asked) + (len(asked) > 1)
    top, bottom, near = Ends.empty(columns), Ends.empty(columns), Ends.empty(columns)
    parts: list[list[np.ndarray]] = [[] for _ in range(5)]
    hashes: list[bytes] = []
    for gradients, losses, names in _wanted(store, estimate.layout, weights):
        scores, cosine = gradients @ directions, gradient_cosine(gradients, asked)
        mean = scores.mean(1) if len(asked) else np.zeros(len(scores))
        norms = np.linalg.norm(gradients.astype(np.float64), axis=1)
        own = estimate.own(gradients)
        for part, found in zip(parts, (own, losses, norms, mean, scores.astype(np.float32)), strict=True):
            if full or found.ndim == 1:
                part.append(found)
        if len(asked) > 1:
            scores, cosine = np.c_[scores, mean], np.c_[cosine, cosine.mean(1)]
        top.merge(scores, cosine, len(hashes), count)
        bottom.merge(-scores, cosine, len(hashes), count)
        near.merge(cosine, cosine, len(hashes), count)
        hashes += names
    own, losses, norms, mean = (np.concatenate(part).astype(np.float64) for part in parts[:4])
    whole = np.concatenate(parts[4]) if full else None
    return Ranking(hashes, own, losses, norms, mean, top, bottom, near, whole)
