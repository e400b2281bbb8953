"""A monitor on arrays: false alarms hold without outliers, outliers are found, files give the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from kinfold.audit.outliers import RequestMonitor
from kinfold.audit.outliers.head import Linear, Rows, Score
from kinfold.errors import AuditError, DegenerateGradientError, OutputError

FILTERS = ["sum", "energy", "knn", "msp", "l2", "sal", "medix", "none"]
CLASSES = np.random.default_rng(99).normal(size=(4, 16)) * 1.5


def inside(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features of four clusters, and logits of what a classifier of them says."""
    rows = CLASSES[generator.integers(0, 4, count)] + generator.normal(size=(count, 16))
    return rows, rows @ CLASSES.T


def outside(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = np.full(16, 0.8) + generator.normal(size=(count, 16))
    return rows, rows @ CLASSES.T


def log(share: float, count: int = 300, seed: int = 0) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Reference, log (four arrays), and which rows of the log are foreign."""
    generator = np.random.default_rng(seed)
    odd = round(share * count)
    reference, ours, theirs = inside(200, generator), inside(count - odd, generator), outside(odd, generator)
    wild = tuple(np.concatenate(pair) for pair in zip(ours, theirs, strict=True))
    return (*reference, *wild), np.arange(count) >= count - odd


def gradients(arrays: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    return {"gradients_ref": np.tanh(arrays[0]), "gradients_wild": np.tanh(arrays[2])}


def test_false_alarms_hold_without_outliers() -> None:
    """In the mean over 20 logs with nothing foreign in them, and so does the estimated share."""
    rates, shares = [], []
    for seed in range(20):
        arrays, _ = log(0.0, seed=seed)
        fitted = RequestMonitor(seed=seed).fit(*arrays)
        rates.append(fitted.flagged_.mean())
        shares.append(fitted.share_)
    assert 0.02 <= np.mean(rates) <= 0.07
    assert np.mean(shares) < 0.06


def test_a_head_that_saw_its_rows_gives_false_alarms() -> None:
    """What cross-fitting is for: with all rows known to the head, in-domain rows among the outliers are pushed up."""
    generator = np.random.default_rng(0)
    reference, wild = generator.normal(size=(100, 60)), generator.normal(size=(100, 60))

    def rate(cross: bool) -> float:
        def train(known: Rows, outliers: Rows) -> Score:
            if not cross:
                known, outliers = np.arange(100), picked
            head = LogisticRegression(C=10, class_weight="balanced", max_iter=2000).fit(
                np.concatenate([reference[known], wild[outliers]]),
                np.arange(len(known) + len(outliers)) >= len(known),
            )
            return lambda a, b: (head.decision_function(reference[a]), head.decision_function(wild[b]))

        energies = np.zeros(100), np.zeros(100)
        picked = np.arange(100)
        monitor = RequestMonitor(filter="none").fit(reference, energies[0], wild, energies[1], trainer=train)
        return float(monitor.flagged_.mean())

    assert rate(cross=True) <= 0.12
    assert rate(cross=False) >= 0.25


def test_the_false_discovery_rate_holds() -> None:
    found = []
    for seed in range(50):
        arrays, odd = log(0.2, 150, seed)
        flagged = RequestMonitor(filter="energy", head="none", fdr=0.1, seed=seed).fit(*arrays).flagged_
        found.append(float((flagged & ~odd).sum() / max(flagged.sum(), 1)))
    assert np.mean(found) <= 0.12


@pytest.mark.parametrize("name", FILTERS)
def test_outliers_are_found_by_every_filter_with_a_head(name: Any) -> None:
    arrays, odd = log(0.3)
    fitted = RequestMonitor(filter=name).fit(*arrays, **gradients(arrays))
    assert roc_auc_score(odd, fitted.scores_) > 0.9
    assert fitted.flagged_[odd].mean() > 0.5
    assert fitted.flagged_[~odd].mean() < 0.1
    np.testing.assert_allclose(fitted.scores_, fitted.parts_["head"] + fitted.parts_["energy"])
    assert fitted.distinct_ == 300
    np.testing.assert_array_equal(fitted.flagged_, fitted.p_values_ <= 0.05)
    ranks = (1 + (fitted.reference_scores_[:, None] >= fitted.scores_).sum(axis=0)) / 201
    np.testing.assert_allclose(fitted.p_values_, ranks)


def test_energy_alone_is_the_energy() -> None:
    arrays, _ = log(0.2)
    fitted = RequestMonitor(filter="energy", head="none").fit(*arrays)
    energy, known = -logsumexp(arrays[3], axis=1), -logsumexp(arrays[1], axis=1)
    np.testing.assert_allclose(fitted.scores_, (energy - known.mean()) / known.std())
    np.testing.assert_allclose(fitted.decision_function(*arrays[2:]), fitted.scores_)
    np.testing.assert_allclose(fitted.p_values(*arrays[2:]), fitted.p_values_)


@pytest.mark.parametrize("name", ["sum", "knn", "msp"])
def test_a_filter_alone_scores_later_rows_as_the_log(name: Any) -> None:
    arrays, _ = log(0.2)
    fitted = RequestMonitor(filter=name, head="none").fit(*arrays)
    np.testing.assert_allclose(fitted.decision_function(*arrays[2:]), fitted.scores_)


def test_features_are_enough_for_neighbours() -> None:
    arrays, odd = log(0.3)
    fitted = RequestMonitor(filter="knn").fit(arrays[0], None, arrays[2], None)
    assert roc_auc_score(odd, fitted.scores_) > 0.9
    assert set(fitted.parts_) == {"head", "knn"}
    assert RequestMonitor(filter="none").fit(arrays[0], None, arrays[2], None).share_ > 0


def test_later_rows_are_judged_by_a_head_of_all_rows() -> None:
    arrays, _ = log(0.3)
    fitted = RequestMonitor().fit(*arrays)
    fresh = inside(400, np.random.default_rng(7)), outside(400, np.random.default_rng(8))
    assert (fitted.p_values(*fresh[0]) <= 0.05).mean() < 0.09
    assert (fitted.p_values(*fresh[1]) <= 0.05).mean() > 0.6
    unit = arrays[0] / np.linalg.norm(arrays[0], axis=1, keepdims=True)
    others = arrays[2] / np.linalg.norm(arrays[2], axis=1, keepdims=True)
    theirs = LogisticRegression(C=10, class_weight="balanced", tol=1e-10, max_iter=5000).fit(
        np.concatenate([unit, others[fitted.outliers_]]), np.arange(200 + fitted.outliers_.sum()) >= 200
    )
    rule = fitted.terms_[0].rule
    assert isinstance(rule, Linear)
    np.testing.assert_allclose(rule.scores(unit), theirs.decision_function(unit), atol=1e-4)


def test_copies_count_once() -> None:
    arrays, _ = log(0.3)
    features, logits = (np.concatenate([part, np.repeat(part[:1], 500, axis=0)]) for part in arrays[2:])
    flooded = RequestMonitor().fit(*arrays[:2], features, logits)
    plain = RequestMonitor().fit(*arrays)
    assert flooded.distinct_ == 300
    np.testing.assert_allclose(flooded.scores_[:300], plain.scores_)
    np.testing.assert_array_equal(flooded.p_values_[300:], plain.p_values_[0])
    assert len(flooded.parts_["head"]) == 800


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    arrays, _ = log(0.2)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        RequestMonitor(seed=seed).fit(*arrays).save(tmp_path / name)
    same = (tmp_path / "a").read_bytes()
    assert same == (tmp_path / "b").read_bytes()
    assert same != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(("name", "head"), [("sum", "linear"), ("sum", "none"), ("msp", "none"), ("knn", "linear")])
def test_a_file_gives_the_same_scores(name: Any, head: Any, tmp_path: Path) -> None:
    arrays, _ = log(0.2)
    logits = (None, None) if name == "knn" else (arrays[1], arrays[3])
    fitted = RequestMonitor(filter=name, head=head, fdr=0.2, k=0.1).fit(arrays[0], logits[0], arrays[2], logits[1])
    path = tmp_path / "monitor.safetensors"
    fitted.save(path, variant="abc", facts={"max_length": 9})
    loaded = RequestMonitor.load(path, variant="abc")
    np.testing.assert_array_equal(
        loaded.decision_function(arrays[2], logits[1]), fitted.decision_function(arrays[2], logits[1])
    )
    np.testing.assert_array_equal(loaded.p_values(arrays[2], logits[1]), fitted.p_values(arrays[2], logits[1]))
    assert (loaded.filter, loaded.head, loaded.fdr, loaded.k, loaded.facts_) == (
        name,
        head,
        0.2,
        0.1,
        {"max_length": 9},
    )
    with pytest.raises(AuditError, match="fingerprint abc"):
        RequestMonitor.load(path, variant="xyz")
    with pytest.raises(OutputError, match="exists"):
        fitted.save(path)


def test_what_cannot_be_asked_of_later_rows(tmp_path: Path) -> None:
    arrays, _ = log(0.2)
    voted = RequestMonitor(filter="medix", head="none").fit(*arrays, **gradients(arrays))
    with pytest.raises(AuditError, match="`medix` needs gradients"):
        voted.decision_function(*arrays[2:])
    with pytest.raises(AuditError, match="nothing to save"):
        voted.save(tmp_path / "m")

    def train(known: Rows, outliers: Rows) -> Score:
        return lambda some, others: (some * 0.0, others * 0.0)

    tuned = RequestMonitor().fit(*arrays, trainer=train)
    with pytest.raises(AuditError, match="is not kept"):
        tuned.p_values(*arrays[2:])
    fitted = RequestMonitor().fit(*arrays)
    with pytest.raises(AuditError, match="needs logits"):
        fitted.decision_function(arrays[2], None)
    with pytest.raises(AuditError, match="have 5 features; the monitor was fitted on 16"):
        fitted.decision_function(arrays[2][:, :5], arrays[3])


@pytest.mark.parametrize("method", ["decision_function", "p_values", "save"])
def test_before_fit(method: str) -> None:
    with pytest.raises((ValueError, AttributeError), match="not fitted yet"):
        getattr(RequestMonitor(), method)(*["x"] * (1 if method == "save" else 2))


def test_too_few_rows() -> None:
    arrays, _ = log(0.2)
    with pytest.raises(AuditError, match="the reference has 49 rows; 50 or more"):
        RequestMonitor().fit(arrays[0][:49], arrays[1][:49], *arrays[2:])
    repeated = [np.concatenate([part[:19], part[:19]]) for part in arrays[2:]]
    with pytest.raises(AuditError, match="the log has 19 different rows; 20 or more"):
        RequestMonitor().fit(*arrays[:2], *repeated)


def test_middles_that_coincide_are_refused() -> None:
    arrays, _ = log(0.2)
    slopes = {key: np.maximum(value - 0.9, 0) for key, value in gradients(arrays).items()}
    with pytest.raises(DegenerateGradientError):
        RequestMonitor(filter="medix").fit(*arrays, **slopes)
