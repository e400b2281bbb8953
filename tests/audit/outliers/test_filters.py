"""Energies, neighbours, projections: scipy, scikit-learn and numpy's own formulas are the other route."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from sklearn.neighbors import NearestNeighbors

from kinfold.audit.outliers import filters
from kinfold.audit.outliers.filters import Views, fit_terms, lower_median, total
from kinfold.errors import AuditError

GENERATOR = np.random.default_rng(0)
FOLDS = np.arange(60) % 5
CENTRE = GENERATOR.normal(size=4)


def some(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 6)), generator.normal(size=(count, 3)) * 4, generator.normal(size=(count, 4))


REF, WILD = some(60, 1), some(30, 2)


def both() -> tuple[Views, Views]:
    return Views.of(*REF), Views.of(*WILD)


def test_views_are_scipys() -> None:
    ref, _ = both()
    np.testing.assert_allclose(ref.features, REF[0] / np.linalg.norm(REF[0], axis=1)[:, None])
    np.testing.assert_allclose(ref.energy, -logsumexp(REF[1], axis=1))
    np.testing.assert_allclose(ref.doubt, 1 - softmax(REF[1], axis=1).max(axis=1), rtol=1e-9)


def test_confident_rows_still_differ() -> None:
    views = Views.of(np.ones((2, 2)), np.array([[800.0, 0.0], [90.0, 0.0]]))
    assert views.doubt is not None
    assert views.doubt[0] < views.doubt[1] == pytest.approx(np.exp(-90), rel=1e-9)
    assert views.energy is not None
    assert views.energy.tolist() == [-800.0, -90.0]


def test_a_row_of_zeros_stays_one() -> None:
    assert Views.of(np.zeros((1, 3)), None).features.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_neighbours_are_of_other_folds(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_AT_ONCE", at_once)
    ref, wild = both()
    [term] = fit_terms("knn", ref, wild, FOLDS)
    own, found = np.empty(60), np.zeros(30)
    for fold in range(5):
        near = NearestNeighbors(n_neighbors=10).fit(ref.features[fold != FOLDS])
        own[fold == FOLDS] = near.kneighbors(ref.features[fold == FOLDS])[0][:, 9]
        found += near.kneighbors(wild.features)[0][:, 9] / 5
    np.testing.assert_allclose(term.reference, own, rtol=1e-9)
    np.testing.assert_allclose(term.rule.of(wild), found, rtol=1e-9)
    np.testing.assert_allclose(term.of(wild), (found - own.mean()) / own.std(), rtol=1e-8)


def test_few_rows_have_fewer_neighbours_and_equal_ones_no_distance() -> None:
    ref = Views.of(np.ones((4, 2)), None)
    [term] = fit_terms("knn", ref, ref, np.arange(4) % 2)
    np.testing.assert_allclose(term.reference, 0, atol=1e-7)
    assert len(term.of(Views.of(np.ones((0, 2)), None))) == 0


def test_a_sum_of_standardised_terms() -> None:
    ref, wild = both()
    terms = fit_terms("sum", ref, wild, FOLDS)
    assert [term.name for term in terms] == ["energy", "knn"]
    energy = -logsumexp(WILD[1], axis=1)
    reference = -logsumexp(REF[1], axis=1)
    wanted = (energy - reference.mean()) / reference.std() + terms[1].of(wild)
    np.testing.assert_allclose(total(term.of(wild) for term in terms), wanted)


def test_distance_of_gradients_and_their_main_direction() -> None:
    ref, wild = both()
    [l2] = fit_terms("l2", ref, wild, FOLDS, CENTRE)
    np.testing.assert_allclose(l2.rule.of(wild), np.sqrt(((WILD[2] - CENTRE) ** 2).sum(axis=1)))
    [sal] = fit_terms("sal", ref, wild, FOLDS, CENTRE)
    apart = WILD[2] - REF[2].mean(axis=0)
    values, vectors = np.linalg.eigh(apart.T @ apart)
    np.testing.assert_allclose(sal.rule.of(wild), (apart @ vectors[:, np.argmax(values)]) ** 2)


def test_the_median_vote_of_other_rows() -> None:
    """A row of the reference is scored as if its sides were a row's of the log."""
    ref, wild = both()
    [term] = fit_terms("medix", ref, wild, FOLDS, CENTRE)
    ordered = np.sort(WILD[2], axis=0)
    sides = REF[2] <= ordered[14]
    middle = np.where(np.ones(4, bool), ordered[14], 0)  # of 30 rows, the lower median
    without = np.where(sides, ordered[15], ordered[14])
    wanted = np.linalg.norm(middle - CENTRE) - np.linalg.norm(without - CENTRE, axis=1)
    np.testing.assert_allclose(term.reference, wanted, atol=1e-12)


@pytest.mark.parametrize("name", ["l2", "sal", "medix"])
def test_gradients_must_be_there(name: str) -> None:
    ref, wild = both()
    bare = Views.of(*WILD[:2])
    with pytest.raises(AuditError, match=f"filter `{name}` needs gradients"):
        fit_terms(name, ref, bare, FOLDS, CENTRE)
    [term] = fit_terms(name, ref, wild, FOLDS, CENTRE)
    with pytest.raises(AuditError, match=f"score `{name}` needs gradients"):
        term.of(bare)


@pytest.mark.parametrize("name", ["energy", "msp", "sum"])
def test_logits_must_be_there(name: str) -> None:
    bare = Views.of(REF[0], None)
    with pytest.raises(AuditError, match="needs logits") as caught:
        fit_terms(name, bare, bare, FOLDS)
    assert "--filter knn" in caught.value.hint


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_the_median_is_torchs(rows: int) -> None:
    import torch

    table = np.random.default_rng(rows).normal(size=(rows, 3))
    np.testing.assert_array_equal(lower_median(table), torch.from_numpy(table).median(dim=0).values.numpy())
