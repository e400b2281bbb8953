"""The figures and the verdict, on families given as vectors; figures are computed from the vectors by numpy."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from kinfold.audit.dominance import DominanceReport, DominanceThresholds, GramHistory, judge
from kinfold.errors import AuditError

WIDE = 4000


def family(count: int, seed: int = 0, common: float = 0.0) -> np.ndarray:
    """Independent deltas of norm 1, and a part that all share; float64 (count, entries)."""
    rng = np.random.default_rng(seed)
    rows, shared = rng.standard_normal((count, WIDE)), rng.standard_normal(WIDE)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit + common * shared / np.linalg.norm(shared)


def zero_lag(rows: np.ndarray) -> np.ndarray:
    """The first member publishes N times its own delta minus the sum of the others'."""
    return np.vstack([len(rows) * rows[0] - rows[1:].sum(0), rows[1:]])


def verdict(rows: np.ndarray, **options: object) -> DominanceReport:
    names = [f"m{i}" for i in range(len(rows))]
    return judge(rows @ rows.T, names, **options)  # type: ignore[arg-type]


def test_figures_are_those_of_the_vectors() -> None:
    rows = family(5, common=0.3) * [[1], [2], [0.5], [1], [1.5]]
    weights = np.array([1.0, 2, 3, 4, 2])
    shares = weights / weights.sum()
    found = verdict(rows, weights=weights)
    norms = np.linalg.norm(rows, axis=1)
    parts = 5 * shares[:, None] * rows
    merge = shares @ rows
    for i, member in enumerate(found.members):
        rest = parts.sum(0) - parts[i]
        without = (merge - shares[i] * rows[i]) / (1 - shares[i])
        others = [j for j in range(5) if j != i]
        cosine = rows[i] @ rows.T / norms / norms[i]
        assert member.share == pytest.approx(shares[i])
        assert member.norm == pytest.approx(norms[i])
        assert member.norm_ratio == pytest.approx(norms[i] / np.median(norms))
        assert member.cancellation == pytest.approx(parts[i] @ rest / (rest @ rest))
        assert member.cosine_rest == pytest.approx(parts[i] @ rest / np.linalg.norm(rest) / np.linalg.norm(parts[i]))
        assert member.influence == pytest.approx(np.linalg.norm(merge - without) / np.linalg.norm(merge))
        assert member.nearest == f"m{others[int(np.argmax(cosine[others]))]}"
        assert member.nearest_cosine == pytest.approx(max(cosine[others]))
    assert found.cohesion == pytest.approx((parts.sum(0) ** 2).sum() / (parts**2).sum())
    assert found.effective_members == pytest.approx(1 / (shares**2).sum())


def test_deviation_is_from_the_geometric_median() -> None:
    angles = np.radians([90, 210, 330, 0, 0])
    rows = np.stack([np.cos(angles), np.sin(angles), [0, 0, 0, 0.0, 0.0]], 1)
    rows[3:] = [[0, 0, 2], [0, 0, -4]]
    rows += 10  # five points in balance about (10, 10, 10): unit vectors towards them add to zero
    found = verdict(rows, thresholds=DominanceThresholds(copy_cosine=1.0))
    assert [member.deviation for member in found.members] == pytest.approx([1, 1, 1, 2, 4], rel=1e-6)


@pytest.mark.parametrize("common", [0.0, 1.0])
@pytest.mark.parametrize("count", [4, 6, 12])
def test_a_clean_family_is_clean(count: int, common: float) -> None:
    found = verdict(family(count, common=common))
    assert found.verdict == "clean"
    assert found.flagged == ()
    assert max(member.deviation for member in found.members) < 1.1


@pytest.mark.parametrize("common", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("count", [5, 6, 12])
def test_zero_lag_is_found_whatever_the_members_have_in_common(count: int, common: float) -> None:
    rows = zero_lag(family(count, common=common))
    found = verdict(rows, thresholds=DominanceThresholds(copy_cosine=0.999))  # with so much in common all are alike
    assert found.flagged == ("m0",)
    assert "deviation" in found.members[0].flags
    assert found.members[0].deviation == pytest.approx(count, rel=0.35)


def test_zero_lag_cancels_a_family_with_nothing_in_common() -> None:
    found = verdict(zero_lag(family(6)))
    assert found.members[0].cancellation == pytest.approx(-1, abs=0.05)
    assert set(found.members[0].flags) >= {"deviation", "norm", "cancellation"}
    assert "`m0`" in found.sentence
    assert "uncalibrated" in found.notes[0]


def test_the_merge_by_mean_with_a_zero_lag_dictator_is_its_own_delta() -> None:
    rows = family(7)
    assert np.abs(zero_lag(rows).mean(0) - rows[0]).max() < 1e-12


def test_a_dictator_with_a_weight_of_its_own_is_found_by_what_the_merge_does() -> None:
    rows, weights = family(6), np.array([2.0, 1, 1, 1, 1, 1])
    shares = weights / weights.sum()
    rows[0] = (rows[0] - shares[1:] @ rows[1:]) / shares[0]  # the weighted mean is its own delta
    found = verdict(rows, weights=weights)
    assert found.members[0].cancellation == pytest.approx(-1, abs=0.05)
    assert found.flagged == ("m0",)


def test_a_member_that_only_erases_is_named_alone() -> None:
    rows = family(6)
    rows[0] -= rows[1:].sum(0)
    found = verdict(rows)
    assert found.flagged == ("m0",)
    assert found.members[0].flags == ("cancellation",)
    assert all(member.cancellation < -0.4 for member in found.members[1:])  # honest, and yet they look like it


def test_two_copies_of_a_dictator_are_judged_as_one() -> None:
    honest = family(6)
    half = (8 * honest[0] - honest.sum(0) + honest[0]) / 2
    found = verdict(np.vstack([half, half, honest[1:]]))
    assert found.flagged == ("m0", "m1")
    assert found.copies == (("m0", "m1"),)
    assert found.members[0].cancellation == found.members[1].cancellation == pytest.approx(-1, abs=0.1)
    assert found.members[0].nearest == "m1"


def test_two_honest_copies_are_not_flagged() -> None:
    rows = family(6)
    found = verdict(np.vstack([rows[:1], rows]))
    assert found.verdict == "clean"
    assert found.copies == (("m0", "m1"),)


def test_ten_times_the_norm_is_flagged() -> None:
    rows = family(6)
    rows[2] *= 10
    found = verdict(rows)
    assert found.flagged == ("m2",)
    assert set(found.members[2].flags) == {"norm", "deviation"}
    assert "10 times the median norm" in found.sentence


def test_a_family_that_sums_to_zero_is_undecided() -> None:
    rows = family(6)
    found = verdict(rows - rows.mean(0))
    assert found.verdict == "undecided"
    assert found.flagged == ()
    assert "as a group" in found.sentence
    assert all(member.influence is None for member in found.members)


def test_two_dictators_that_differ_are_named_one_after_the_other() -> None:
    rows = family(9)
    rows[1] = 2 * rows[1] - 0.55 * rows[2:].sum(0)
    found = verdict(zero_lag(rows))  # the second is seen once the first is out
    assert set(found.flagged) == {"m0", "m1"}
    assert all("cancellation" in member.flags for member in found.members[:2])


def test_less_than_half_are_named() -> None:
    unit = family(6)
    rows = unit.copy()
    rows[2] = 1.45 * unit[2] - 0.55 * unit[3:].sum(0)
    rows[1] = 5 * unit[1] - rows[2:].sum(0)
    rows[0] = 6 * unit[0] - rows[1:].sum(0)
    found = verdict(rows)  # three, each seen once those before it are out: the third makes half of the family
    assert [member.name for member in found.members if "cancellation" in member.flags] == ["m0", "m1"]
    assert found.verdict == "flagged"
    assert any("still cancel as a group" in note for note in found.notes)


def test_a_weight_of_a_billion_is_flagged_alone() -> None:
    found = verdict(family(6), weights=[1, 1, 1e9, 1, 1, 1])
    assert found.flagged == ("m2",)
    assert "share" in found.members[2].flags
    assert found.effective_members == pytest.approx(1, abs=1e-6)
    few = verdict(family(3), weights=[1, 1, 1e9])
    assert few.flagged == ("m2",)
    assert any("only their shares" in note for note in few.notes)


@pytest.mark.parametrize("count", [2, 3])
def test_fewer_than_four_get_figures_and_no_verdict(count: int) -> None:
    found = verdict(zero_lag(family(count)))
    assert found.verdict == "too few members"
    assert found.flagged == ()
    assert found.members[0].deviation >= 1
    assert "4 are needed" in found.sentence


def test_members_all_alike_are_too_few_distinct_ones() -> None:
    found = verdict(family(6, common=20))
    assert found.verdict == "too few members"
    assert len(found.copies[0]) == 6


def test_an_empty_delta_is_a_warning() -> None:
    rows = family(6)
    rows[3] = 0
    found = verdict(rows)
    assert found.members[3].flags == ("empty",)
    assert found.members[3].deviation is None
    assert found.verdict == "clean"
    assert verdict(np.zeros((4, 3))).verdict == "too few members"


def test_a_rest_of_zero_gives_no_figure() -> None:
    rows = np.array([[1.0, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    found = verdict(rows)
    assert found.members[0].cancellation is None
    assert "m0" not in found.flagged


def test_permuted_members_get_the_same_figures() -> None:
    rows = zero_lag(family(6)) * np.linspace(1, 1.5, 6)[:, None]
    order = [3, 0, 5, 1, 4, 2]
    here, there = verdict(rows), verdict(rows[order])
    for place, i in enumerate(order):
        one, other = here.members[i], there.members[place]
        assert one.flags == other.flags
        for name in ("norm_ratio", "deviation", "cancellation", "influence"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


def test_one_wild_tensor_is_reported_and_never_judged_by() -> None:
    body, norm = family(5), family(5, seed=1) * 1e-3
    norm[3] *= 3.9
    tensors = {"body": body @ body.T, "norm": norm @ norm.T}
    found = judge(tensors["body"] + tensors["norm"], list("abcde"), tensors=tensors)
    assert found.members[3].worst_tensor == "norm"
    assert found.members[3].worst_ratio == pytest.approx(3.9)
    assert found.verdict == "clean"


def dictated(kind: str, rounds: int = 30, count: int = 6) -> np.ndarray:
    """Messages whose changes are independent noise but for member 0, which may take back last round's sum."""
    rng = np.random.default_rng(5)
    messages = rng.standard_normal((rounds, count, 300)).cumsum(0)
    if kind == "lag":
        messages[1:, 0] -= messages[:-1, 1:].sum(1)
    return messages


def test_lag_cancellation_is_the_regression_on_last_rounds_change() -> None:
    messages = dictated("lag")
    steps = np.diff(messages, axis=0)
    found = judge(messages[-1] @ messages[-1].T, list("abcdef"), history=GramHistory.of(messages))
    for i, member in enumerate(found.members):
        rest = np.delete(steps, i, axis=1).sum(1)
        expected = (steps[1:, i] * rest[:-1]).sum() / (rest[:-1] ** 2).sum()
        assert member.lag_cancellation == pytest.approx(expected, abs=1e-12)
    assert found.members[0].lag_cancellation == pytest.approx(-1, abs=0.1)
    assert [member.name for member in found.members if "lag" in member.flags] == ["a"]
    assert "last change" in found.sentence


def test_honest_messages_show_no_lag() -> None:
    messages = dictated("honest")
    found = judge(messages[-1] @ messages[-1].T, list("abcdef"), history=GramHistory.of(messages))
    assert all(abs(member.lag_cancellation) < 0.15 for member in found.members)


def test_references_give_p_values() -> None:
    honest = [family(6, seed=seed) for seed in range(1, 20)]
    references = [rows @ rows.T for rows in honest]
    rows = family(6)
    rows[1] *= 2  # below every fixed limit
    found = verdict(rows, reference=references)
    assert found.members[1].p_values == {
        "deviation": 1 / 20,
        "norm_ratio": 1 / 20,
        "cancellation": pytest.approx(1, abs=1),
    }
    assert found.members[1].flags == ("reference",)
    assert found.flagged == ("m1",)
    assert found.references == 19
    assert not any("cannot be reached" in note for note in found.notes)


def test_a_dictator_does_not_make_the_others_rare() -> None:
    references = [rows @ rows.T for rows in (family(6, seed=seed) for seed in range(1, 20))]
    rows = family(6)
    rows[0] -= rows[1:].sum(0)
    found = verdict(rows, reference=references)
    assert found.members[1].p_values["cancellation"] == 1 / 20
    assert "m0" in found.flagged
    assert not any("cancellation" in member.flags for member in found.members[1:])


def test_too_few_references_say_so() -> None:
    rows = family(6)
    found = verdict(rows, reference=[family(6, seed=1) @ family(6, seed=1).T] * 4)
    assert any("4 reference families" in note and "fewer than 19" in note for note in found.notes)
    assert all(min(member.p_values.values()) >= 1 / 5 for member in found.members)


def test_the_report_is_plain_data() -> None:
    found = verdict(zero_lag(family(6)), weights=np.ones(6))
    assert json.loads(json.dumps(asdict(found)))["flagged"] == ["m0"]


@pytest.mark.parametrize(
    ("gram", "names", "options", "words"),
    [
        (np.eye(1), "a", {}, "1 members were given"),
        (np.eye(3), "ab", {}, r"shape \(3, 3\)"),
        (np.full((2, 2), np.nan), "ab", {}, "finite"),
        (np.eye(2), "ab", {"weights": [1, 2, 3]}, "3 weights"),
        (np.eye(2), "ab", {"weights": [1, math.nan]}, "nan"),
        (np.eye(2), "ab", {"weights": [1, 0]}, "above 0"),
        (np.eye(2), "ab", {"alpha": 0.0}, "between 0 and 1"),
        (np.eye(2), "ab", {"history": GramHistory.of(np.zeros((4, 3, 2)))}, "3 members"),
    ],
)
def test_what_cannot_be_judged_is_refused(gram: np.ndarray, names: str, options: dict, words: str) -> None:
    with pytest.raises(AuditError, match=words):
        judge(gram, list(names), **options)


def test_a_history_needs_three_rounds_of_the_same_members() -> None:
    with pytest.raises(AuditError, match="3 or more rounds"):
        GramHistory.of(np.zeros((2, 3, 4)))
