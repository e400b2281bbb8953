"""The second stage: a head that tells the reference from the log's outliers, and never scores a row it has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kinfold.audit.outliers.filters import Views
from kinfold.errors import AuditError

INVERSE_PENALTY = 10.0  # C in scikit-learn's convention
Rows = np.ndarray  # int64 indices
Score = Callable[[Rows, Rows], tuple[np.ndarray, np.ndarray]]  # rows of the reference and of the log -> their scores
Train = Callable[[Rows, Rows], Score]  # rows of the reference (0) and of the log (1) -> a trained head


@dataclass(frozen=True)
class Linear:
    """A hyperplane: features @ weight + bias, larger is more outlying."""

    weight: np.ndarray
    bias: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight + self.bias

    def of(self, views: Views) -> np.ndarray:
        return self.scores(views.features)


@dataclass(frozen=True)
class Unkept:
    """Stands for a head that was trained together with a copy of the model."""

    def of(self, views: Views) -> np.ndarray:
        raise AuditError(
            f"{len(views.features)} rows were given, but a head that was trained with the model is not kept",
            hint="choose head linear, which later requests can be put to",
        )


def fit_linear(ordinary: np.ndarray, outlying: np.ndarray) -> Linear:
    """L2 logistic regression with balanced classes and C = 10, float64, by L-BFGS.

    Args:
        ordinary: float64 (n, d), class 0.
        outlying: float64 (m, d), class 1.
    """
    import torch

    rows = torch.from_numpy(np.concatenate([ordinary, outlying]))
    sign = torch.ones(len(rows), dtype=torch.float64)
    sign[: len(ordinary)] = -1
    balance = torch.where(sign < 0, 0.5 / len(ordinary), 0.5 / len(outlying))
    weight = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    penalty = 0.5 / (INVERSE_PENALTY * len(rows))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimizer.zero_grad()
        miss = torch.nn.functional.softplus(-sign * (rows @ weight + bias))
        found = (balance * miss).sum() + penalty * weight.square().sum()
        found.backward()
        return found  # type: ignore[return-value]  # torch's own closures return the tensor

    with torch.enable_grad():
        optimizer.step(loss)
    return Linear(weight.detach().numpy().copy(), bias.item())


def linear_trainer(reference: np.ndarray, wild: np.ndarray) -> Train:
    """Trains `Linear` on features (n, d) and (m, d)."""

    def train(known: Rows, outliers: Rows) -> Score:
        head = fit_linear(reference[known], wild[outliers])
        return lambda some, others: (head.scores(reference[some]), head.scores(wild[others]))

    return train


def seeded_folds(count: int, folds: int, generator: np.random.Generator) -> np.ndarray:
    """A fold of each row, sizes within one of another, int64 (n,)."""
    return generator.permutation(np.arange(count) % folds)


def cross_fitted(
    train: Train, reference_folds: np.ndarray, wild_folds: np.ndarray, outliers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all rows, each by a head that has seen none of its fold, of either set.

    Without this a head pushes up ordinary rows that got among the outliers, and p-values no longer hold.

    Args:
        train: makes a head.
        reference_folds: int64 (n,).
        wild_folds: int64 (m,).
        outliers: bool (m,), rows of the log that stand for class 1.

    Returns:
        float64 (n,) and (m,).
    """
    scores = np.empty(len(reference_folds)), np.empty(len(wild_folds))
    for fold in np.unique(reference_folds):
        known = np.flatnonzero(reference_folds != fold)
        head = train(known, np.flatnonzero(outliers & (wild_folds != fold)))
        here = np.flatnonzero(reference_folds == fold), np.flatnonzero(wild_folds == fold)
        for into, rows, found in zip(scores, here, head(*here), strict=True):
            into[rows] = found
    return scores
