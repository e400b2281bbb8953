"""Metrics and baselines against scipy, scikit-learn, dattri and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from kinfold.audit.influence.baselines import bm25, gradient_cosine, loss_baseline
from kinfold.audit.influence.metrics import brittleness, lds, mislabel_auc, ranks, spearman
from kinfold.errors import AuditError

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(size=(12, 4))
SUBSETS = np.stack([RANDOM.permutation(12)[:6] for _ in range(9)])
VALUES = RANDOM.normal(size=(9, 4))
TIED = RANDOM.integers(0, 4, 50).astype(float)
WRONG = RANDOM.random(50) < 0.3


def test_ranks_and_spearman_are_scipys() -> None:
    np.testing.assert_allclose(ranks(TIED), rankdata(TIED), rtol=1e-12)
    other = RANDOM.normal(size=50)
    assert spearman(TIED, other) == pytest.approx(spearmanr(TIED, other).statistic, abs=1e-9)
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_lds_is_the_rank_correlation_over_subsets() -> None:
    found = lds(SCORES, (VALUES, SUBSETS))
    for probe in range(4):
        sums = [SCORES[subset, probe].sum() for subset in SUBSETS]
        assert found[probe] == pytest.approx(spearmanr(sums, VALUES[:, probe]).statistic, abs=1e-9)


def test_auc_is_scikit_learns() -> None:
    assert mislabel_auc(TIED, WRONG) == pytest.approx(roc_auc_score(WRONG, TIED), abs=1e-9)


def test_shapes_and_labels_that_do_not_fit() -> None:
    with pytest.raises(AuditError, match=r"\(n, m\) and \(s, m\)"):
        lds(SCORES, (VALUES[:, :3], SUBSETS))
    with pytest.raises(AuditError, match="0 of 5 rows are wrong"):
        mislabel_auc(np.arange(5), np.zeros(5, bool))


def test_dattris_metrics_say_the_same() -> None:
    metric = pytest.importorskip("dattri.metric", reason="dattri is not installed")
    scores = torch.from_numpy(SCORES)
    theirs, _ = metric.lds(scores, (torch.from_numpy(VALUES), torch.from_numpy(SUBSETS)))
    np.testing.assert_allclose(lds(SCORES, (VALUES, SUBSETS)), theirs, atol=1e-9)
    own = RANDOM.normal(size=50)  # dattri steps row by row, which is exact without equal scores
    auc, _ = metric.mislabel_detection_auc(torch.from_numpy(own), torch.from_numpy(WRONG.astype(np.int64)))
    assert float(auc) == pytest.approx(mislabel_auc(own, WRONG), abs=1e-6)


def test_brittleness_counts_labels_that_flip() -> None:
    scores = np.array([[3.0, 0.0], [1.0, 5.0], [2.0, 1.0]])

    def answer(rows: np.ndarray, probe: int) -> int:
        return int(0 in rows)  # only the first row matters

    assert brittleness(scores, answer, 1) == 0.5
    assert brittleness(scores, answer, 2) == 0.5
    with pytest.raises(AuditError, match="from 1 to 2"):
        brittleness(scores, answer, 3)


def test_bm25_by_hand() -> None:
    train = [{"text": "The cat sat."}, {"text": "the dog"}, {"text": "a cat, a cat and a cat"}]
    found = bm25(train, [{"text": "Cat"}, {"text": "dog dog zebra"}])
    mean = (3 + 2 + 7) / 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    first = idf * 1 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 3 / mean))
    third = idf * 3 * 2.5 / (3 + 1.5 * (0.25 + 0.75 * 7 / mean))
    np.testing.assert_allclose(found[:, 0], [first, 0, third], rtol=1e-9)
    rare = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    np.testing.assert_allclose(found[:, 1], [0, 2 * rare * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / mean)), 0], rtol=1e-9)


def test_bm25_of_tokens() -> None:
    found = bm25([{"input_ids": [1, 12]}, {"input_ids": [2, 3]}], [{"input_ids": [12]}])
    assert found[0, 0] > 0
    assert found[1, 0] == 0


def test_cosines_and_losses() -> None:
    found = gradient_cosine(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[2.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6], [0.0]])
    assert loss_baseline(np.array([1.5], np.float32)).tolist() == [1.5]
