"""Options of the first stage, and which rows it hands on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kinfold.audit.outliers.filters import Views
from kinfold.audit.outliers.firststage import Settings, pick
from kinfold.audit.outliers.medix import ewm_filter
from kinfold.errors import AuditError, AuditOptionError

GENERATOR = np.random.default_rng(0)
FOLDS = np.arange(80) % 5


def views(count: int, shift: float) -> Views:
    rows = GENERATOR.normal(size=(count, 5))
    rows[: count // 4] += shift
    return Views.of(rows + 2, rows[:, :3], rows)


REF, WILD = views(80, 0), views(40, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filter": "lof"}, "filter is 'lof'; 'sum', 'energy'"),
        ({"head": "deep"}, "head is 'deep'; 'linear', 'none' are allowed"),
        ({"gradient_reference": "mode"}, "'median', 'mean'"),
        ({"false_alarm": 0}, "false_alarm is 0; a number between 0 and 1"),
        ({"fdr": 1.0}, "fdr is 1.0; a number between 0 and 1"),
        ({"filter": "none", "head": "none"}, "leave no score"),
        ({"k": 0}, "k is 0"),
        ({"k": "all"}, "k is 'all'"),
        ({"k": 2.5}, "k is 2.5"),
        ({"max_rounds": 0}, "max_rounds is 0"),
        ({"eps": -1.0}, "eps -1.0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AuditOptionError, match=words) as caught:
        Settings(**options).check()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AuditError)


def test_the_highest_rows_are_taken() -> None:
    picked = pick(Settings(filter="energy", k=7), REF, WILD, FOLDS)
    assert WILD.energy is not None
    np.testing.assert_array_equal(np.flatnonzero(picked.outliers), np.sort(np.argsort(-WILD.energy, kind="stable")[:7]))
    assert pick(Settings(filter="energy", k=0.25), REF, WILD, FOLDS).outliers.sum() == 10
    assert pick(Settings(filter="none"), REF, WILD, FOLDS).outliers.all()


def test_k_goes_with_the_share() -> None:
    picked = pick(Settings(filter="energy"), REF, WILD, FOLDS)
    p = [(1 + (REF.energy >= value).sum()) / 81 for value in WILD.energy]  # type: ignore[operator, union-attr]
    assert picked.share == max(0.0, 1 - 2 * float(np.mean(np.array(p) > 0.5)))
    assert picked.outliers.sum() == np.clip(round(picked.share * 40), 10, 20)


@pytest.mark.parametrize("reference", ["median", "mean"])
def test_the_vote_is_the_filters(reference: Any) -> None:
    assert REF.gradients is not None
    assert WILD.gradients is not None
    centre = REF.gradients.mean(axis=0) if reference == "mean" else np.sort(REF.gradients, axis=0)[39]
    settings = Settings(filter="medix", k=4, max_rounds=3, gradient_reference=reference)
    picked = pick(settings, REF, WILD, FOLDS)
    wanted = ewm_filter(WILD.gradients, centre, k=4, max_rounds=3)
    np.testing.assert_array_equal(np.flatnonzero(picked.outliers), np.sort(wanted.order[:12]))


@pytest.mark.parametrize("name", ["medix", "sal", "none"])
def test_energy_and_neighbours_count_for_filters_that_cannot(name: Any) -> None:
    wanted = pick(Settings(filter="sum"), REF, WILD, FOLDS).share
    assert pick(Settings(filter=name), REF, WILD, FOLDS).share == wanted


def test_more_than_there_is() -> None:
    with pytest.raises(AuditOptionError, match="k is 40; a whole number from 1 to 39"):
        pick(Settings(k=40), REF, WILD, FOLDS)
