"""Robust rules against their definitions on the vectors themselves, and the bounds they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kinfold.codec import sums
from kinfold.errors import MergeError
from kinfold.family import robust

RULES = {
    "clip_mean": robust.clip_mean,
    "geomedian": robust.geomedian,
    "centered_clip": robust.centered_clip,
    "multikrum": lambda gram: robust.multikrum(gram, 1),
}


def family(count: int, seed: int, entries: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, entries)) * rng.uniform(0.5, 3, (count, 1)) + rng.standard_normal(entries)


def attacked(seed: int) -> tuple[np.ndarray, int]:
    """A family of which the first k < N/2 are anything: far away, opposed, or alike."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 13))
    bad = int(rng.integers(1, (count - 1) // 2 + 1))
    rows = family(count, seed)
    kind = seed % 3
    if kind == 0:
        rows[:bad] = rng.standard_normal((bad, 12)) * 10 ** rng.uniform(0, 6)
    elif kind == 1:
        rows[:bad] = count * rows[:bad] - rows[bad:].sum(0)
    else:
        rows[:bad] = -rows[bad:].mean(0) * rng.uniform(0.5, 3)
    return rows, bad


@pytest.mark.parametrize("seed", range(20))
def test_clip_mean_is_the_mean_of_clipped_vectors(seed: int) -> None:
    rows = family(7, seed)
    shares = np.random.default_rng(seed).dirichlet(np.ones(7)) + 0.01
    shares /= shares.sum()
    size = np.linalg.norm(rows, axis=1)
    clipped = rows * np.minimum(1, np.median(size) / size)[:, None]
    assert np.allclose(robust.clip_mean(rows @ rows.T, shares) @ rows, shares @ clipped, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_centered_clip_is_the_published_iteration(seed: int) -> None:
    rows = family(7, seed)
    radius, centre = np.median(np.linalg.norm(rows, axis=1)), np.zeros(12)
    for _ in range(20):
        away = rows - centre
        centre = centre + np.mean(away * np.minimum(1, radius / np.linalg.norm(away, axis=1))[:, None], axis=0)
    assert np.allclose(robust.centered_clip(rows @ rows.T) @ rows, centre, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("f", [0, 1, 2])
def test_multikrum_takes_the_members_with_near_neighbours(f: int) -> None:
    rows = family(8, 4)
    scores = []
    for i in range(8):
        squared = sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(8) if j != i)
        scores.append(sum(squared[: 8 - f - 2]))
    best = np.argsort(scores)[: 8 - f]
    found = robust.multikrum(rows @ rows.T, f)
    assert set(np.flatnonzero(found)) == set(best.tolist())
    assert np.allclose(found @ rows, rows[best].mean(0), rtol=1e-10)


def test_clip_mean_bound() -> None:
    for seed in range(300):
        rows, bad = attacked(seed)
        size = np.linalg.norm(rows, axis=1)
        limit = np.median(size)
        merged = robust.clip_mean(rows @ rows.T) @ rows
        honest = (rows * np.minimum(1, limit / size)[:, None])[bad:].sum(0) / len(rows)
        assert np.linalg.norm(merged - honest) <= bad * limit / len(rows) * (1 + 1e-9)
        assert limit <= size[bad:].max()


def test_geomedian_bound() -> None:
    worst = 0.0
    for seed in range(300):
        rows, bad = attacked(seed)
        part = bad / len(rows)
        centre = np.random.default_rng(seed).standard_normal(12)
        reach = (1 - part) / np.sqrt(1 - 2 * part) * np.linalg.norm(rows[bad:] - centre, axis=1).max()
        worst = max(worst, np.linalg.norm(robust.geomedian(rows @ rows.T) @ rows - centre) / reach)
    assert worst <= 1 + 1e-6
    assert worst > 0.3  # the cases are no easy ones


@pytest.mark.parametrize("rule", RULES)
def test_permuted_members_get_permuted_weights(rule: str) -> None:
    rows, order = family(9, 2), np.random.default_rng(1).permutation(9)
    here, there = RULES[rule](rows @ rows.T), RULES[rule](rows[order] @ rows[order].T)
    assert np.allclose(there, here[order], atol=1e-9)


@pytest.mark.parametrize("rule", ["geomedian", "multikrum"])
def test_weights_add_up_to_one(rule: str) -> None:
    rows = family(9, 3)
    assert RULES[rule](rows @ rows.T).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_equal_members_give_that_member(rule: str) -> None:
    rows = np.tile(family(1, 0), (6, 1))
    assert np.allclose(RULES[rule](rows @ rows.T) @ rows, rows[0], atol=1e-12)


def test_clip_mean_of_equal_norms_is_the_mean() -> None:
    rows = family(6, 5)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gram = rows @ rows.T
    np.fill_diagonal(gram, 1.0)
    assert np.allclose(robust.clip_mean(gram), 1 / 6, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_publishing_a_copy_changes_nothing(rule: str) -> None:
    rows = family(7, 6, entries=400)
    copied = np.vstack([rows, rows[2], rows[2]])
    merges = []
    for members in (rows, copied):
        joined = robust.join_copies(members @ members.T)
        merges.append(joined.split(RULES[rule](joined.gram)) @ members)
    assert np.abs(merges[0] - merges[1]).max() < 1e-12


def test_joined_copies_have_one_share_and_their_mean() -> None:
    rows = family(4, 7, entries=400)
    rows = np.vstack([rows, 2 * rows[1]])
    joined = robust.join_copies(rows @ rows.T, [1, 2, 1, 1, 4])
    assert joined.groups == ((0,), (1, 4), (2,), (3,))
    assert joined.shares == pytest.approx(np.array([1, 3, 1, 1]) / 6)
    means = np.vstack([rows[0], 1.5 * rows[1], rows[2:4]])
    assert np.allclose(joined.gram, means @ means.T, rtol=1e-10)
    assert np.allclose(joined.split(np.array([1, 2, 3, 4.0])) @ rows, [1, 2, 3, 4.0] @ means, rtol=1e-10)
    stack = torch.from_numpy(rows).float().reshape(5, 20, 20)
    assert np.allclose(joined.means(stack).numpy().reshape(4, -1), means, rtol=1e-5, atol=1e-6)


def test_a_zero_member_is_not_clipped_by_a_division() -> None:
    rows = np.vstack([np.zeros(12), family(4, 1)])
    for rule in RULES.values():
        assert np.isfinite(rule(rows @ rows.T)).all()
    assert robust.clip_mean(np.zeros((3, 3))).tolist() == [1 / 3] * 3
    assert robust.centered_clip(np.zeros((3, 3))) == pytest.approx(np.full(3, 1 / 3))


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_median_of_each_weight(count: int) -> None:
    stack = torch.randn(count, 5, 7, generator=torch.Generator().manual_seed(count))
    expected = np.median(stack.double().numpy(), axis=0)
    found = robust.median(stack)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("count", "beta"), [(5, 0.2), (10, 0.3), (7, 0.0), (4, 0.2), (30, 0.1)])
def test_trimmed_mean_of_each_weight(count: int, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import trim_mean

    monkeypatch.setattr(robust, "PIECE", 64)  # several blocks
    stack = torch.randn(count, 11, 13, generator=torch.Generator().manual_seed(0))
    expected = trim_mean(stack.double().numpy(), beta, axis=0)
    assert np.allclose(robust.trimmed_mean(stack, beta).numpy(), expected, rtol=1e-6, atol=1e-7)
    assert sums.PIECE > 64


@pytest.mark.parametrize("beta", [-0.1, 0.5, 1.0, float("nan")])
def test_trimming_everything_is_refused(beta: float) -> None:
    with pytest.raises(MergeError, match=r"below 0\.5"):
        robust.trimmed_mean(torch.zeros(4, 2), beta)


@pytest.mark.parametrize(("count", "f"), [(4, 1), (6, 2), (2, 0), (5, -1)])
def test_multikrum_needs_members(count: int, f: int) -> None:
    with pytest.raises(MergeError, match=f"{count} distinct") as error:
        robust.multikrum(np.eye(count), f)
    assert error.value.hint


@pytest.mark.parametrize("rule", [*RULES.values(), robust.join_copies])
def test_products_must_be_a_finite_square(rule: object) -> None:
    for wrong in (np.ones((2, 3)), np.full((5, 5), np.inf), np.zeros((0, 0))):
        with pytest.raises(MergeError, match="finite square"):
            rule(wrong)  # type: ignore[operator]


@pytest.mark.parametrize("rule", [robust.clip_mean, robust.geomedian, robust.centered_clip, robust.join_copies])
def test_shares_must_be_above_zero(rule: object) -> None:
    with pytest.raises(MergeError, match="above 0"):
        rule(np.eye(2), [1, 0])  # type: ignore[operator]
