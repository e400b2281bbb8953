"""Neighbours, Mahalanobis distance and length: scikit-learn is the other route."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from kinfold.audit.outliers import peers
from kinfold.audit.outliers.peers import Knn, Mahalanobis, ZNorm, ledoit_wolf


def table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, columns)) @ generator.normal(size=(columns, columns)) + 5


SHAPES = [(30, 4), (12, 12), (8, 40), (200, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shrinkage_and_distance_are_scikit_learns(shape: tuple[int, int]) -> None:
    rows, fresh = table(*shape), table(50, shape[1], seed=1)
    scaler = StandardScaler().fit(rows)
    theirs = LedoitWolf(assume_centered=True).fit(scaler.transform(rows))
    shrinkage, _ = ledoit_wolf(scaler.transform(rows))
    assert shrinkage == pytest.approx(theirs.shrinkage_, rel=1e-8)
    ours, z = Mahalanobis.fit(rows), scaler.transform(fresh)
    np.testing.assert_allclose(ours.scores(fresh) ** 2, theirs.mahalanobis(z), rtol=1e-8)
    precision = np.linalg.inv(theirs.covariance_)
    wanted = z @ precision / np.sqrt(np.diag(precision))
    np.testing.assert_allclose(ours.attributions(fresh, signed=True), wanted, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(ours.attributions(fresh), np.abs(wanted), rtol=1e-7, atol=1e-8)


def test_nothing_to_shrink_or_to_measure() -> None:
    assert ledoit_wolf(np.array([[1.0], [-1.0]])) == (0.0, 1.0)  # a covariance of one number is a multiple of I
    flat = np.full((6, 3), 2.0)
    np.testing.assert_allclose(Mahalanobis.fit(flat).scores(flat + np.array([3, 0, 4])), 5.0)
    equal = np.repeat([[1.0, 2.0], [3.0, 5.0]], 4, axis=0)  # two columns that are one
    assert np.isfinite(Mahalanobis.fit(equal).scores(np.array([[1.0, 5.0]]))).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_the_fifth_neighbour_is_scikit_learns(
    shape: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_AT_ONCE", at_once)
    rows, fresh = table(*shape), table(20, shape[1], seed=1)
    scaler = StandardScaler().fit(rows)
    found = NearestNeighbors(n_neighbors=5).fit(scaler.transform(rows)).kneighbors(scaler.transform(fresh))
    ours = Knn.fit(rows)
    np.testing.assert_allclose(ours.scores(fresh), found[0][:, 4])
    wanted = scaler.transform(fresh) - scaler.transform(rows)[found[1][:, 4]]
    np.testing.assert_allclose(ours.attributions(fresh, signed=True), wanted, atol=1e-12)
    np.testing.assert_allclose(np.square(ours.attributions(fresh)).sum(1), ours.scores(fresh) ** 2)


def test_few_rows_have_fewer_neighbours() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0]])  # k = 3
    np.testing.assert_allclose(Knn.fit(rows).scores(np.array([[0.0]])), 2 / rows.std())


def test_the_length_of_the_standardised_row() -> None:
    rows, fresh = table(30, 4), table(9, 4, seed=1)
    z = StandardScaler().fit(rows).transform(fresh)
    np.testing.assert_allclose(ZNorm.fit(rows).scores(fresh), np.linalg.norm(z, axis=1))
    np.testing.assert_allclose(ZNorm.fit(rows).attributions(fresh), np.abs(z))
    np.testing.assert_allclose(ZNorm.fit(rows).attributions(fresh, signed=True), z)


@pytest.mark.parametrize("kind", [ZNorm, Knn, Mahalanobis])
def test_the_floor_reaches_every_peer(kind: type[ZNorm] | type[Knn] | type[Mahalanobis]) -> None:
    rows = table(30, 4) * [1, 1, 1, 1e-6]
    assert kind.fit(rows, 0.05).scale[3] == 0.05
