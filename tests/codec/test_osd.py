"""`osd`: the paper's accounting, and the limits in which it must equal something simpler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from deltas import decaying, gauss, importance, relative_error, with_spectrum
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.budget import Budget
from kinfold.codec import Importance, Payload, create
from kinfold.codec.osd import EXTRA_RANKS, paper_bits
from kinfold.errors import BudgetError, CodecError, PackError


def mu(n: int, d: int, k: int, s_u: int, s_v: int) -> int:
    return 32 * (s_u + s_v) + math.ceil(math.log2(n * k)) * s_u + math.ceil(math.log2(d * k)) * s_v


def error(codec_name: str, options: dict[str, object], delta: torch.Tensor, bits: int) -> float:
    codec = create(codec_name, options)
    return relative_error(delta, codec.decode(codec.encode(delta, budget_bits=bits), tuple(delta.shape)))


@given(
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(0, 4),
    st.integers(128, 9000),
    st.sampled_from(["joint", "half"]),
)
@settings(deadline=None, max_examples=60)
def test_paper_bits_are_mu_plus_padding(n: int, d: int, extra: int, budget: int, select: str) -> None:
    codec = create("osd", {"layout": "paper", "extra_rank": extra, "select": select})
    payload = codec.encode(gauss(n, d, seed=n), budget_bits=budget)
    k, (s_u, s_v) = payload.params["k"], payload.params.get("s", [0, 0])
    if payload.params.get("f", k) == k:  # a dense pair won: no positions
        assert len(payload.data) == 4 * k * (n + d)
        return
    assert paper_bits(n, d, k, s_u, s_v) == mu(n, d, k, s_u, s_v)
    assert 0 <= 8 * len(payload.data) - mu(n, d, k, s_u, s_v) < 32
    assert 8 * len(payload.data) <= budget


@pytest.mark.parametrize(("k", "entries"), [(2, 1524), (4, 1489), (8, 1456)])
def test_entries_at_rank_one(k: int, entries: int) -> None:
    """Of a 1024 x 1024 matrix in the bits of a dense rank-1 pair: 65,536 / (32 + ceil(log2(1024 k)))."""
    bits = Budget.parse("rank:1").matrix_bits((1024, 1024))
    codec = create("osd", {"layout": "paper", "extra_rank": k - 1})
    payload = codec.encode(gauss(1024, 1024), budget_bits=bits)
    assert payload.params["k"] == k
    assert abs(sum(payload.params["s"]) - entries) <= 1


@pytest.mark.parametrize("extra", [{}, {"split": "left"}, {"score": "mag"}, {"select": "half"}])
def test_without_extra_rank_every_entry_kept_is_truncsvd(extra: dict[str, object]) -> None:
    """Rank 1 with room for all entries and their indices, but not for a second rank."""
    delta, shape = decaying(40, 60), (40, 60)
    osd = create("osd", {"layout": "paper", "extra_rank": 0, **extra})
    plain = create("truncsvd", {"value_bits": 32})
    bits = (32 + 6) * 100 + 64
    best = plain.decode(plain.encode(delta, budget_bits=bits), shape)
    assert torch.allclose(osd.decode(osd.encode(delta, budget_bits=bits), shape), best, rtol=0, atol=1e-6)
    for rank in (2, 5):
        best = plain.decode(plain.encode(delta, budget_bits=32 * rank * 100), shape)
        mine = osd.decode(osd.encode(delta, budget_bits=32 * rank * 100), shape)
        assert torch.allclose(mine, best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"layout": "paper"}, {"value_bits": 32}, {"layout": "paper", "select": "half"}])
@pytest.mark.parametrize("shape", [(24, 30), (30, 24)])
def test_full_rank_and_unlimited_bits_is_the_delta(options: dict[str, object], shape: tuple[int, int]) -> None:
    assert error("osd", options, gauss(*shape, scale=1.0), 1 << 20) < 1e-6


@pytest.mark.parametrize("bits", [2000, 5000, 12_000, 40_000])
@pytest.mark.parametrize("width", [32, 16, 8, 4])
def test_never_worse_than_a_dense_pair(width: int, bits: int) -> None:
    options = {"layout": "paper"} if width == 32 else {"value_bits": width}
    for delta in (gauss(40, 50), decaying(40, 50)):
        dense = error("truncsvd", {"value_bits": width}, delta, bits)
        assert error("osd", options, delta, bits) <= dense * (1 + 1e-6)


def test_sparse_of_higher_rank_beats_dense_of_lower_rank() -> None:
    """The paper's claim, where the spectrum is flat and the budget small."""
    delta = gauss(80, 100)
    bits = 32 * 180
    assert error("osd", {"layout": "paper"}, delta, bits) < error("truncsvd", {"value_bits": 32}, delta, bits) - 0.004


def test_auto_is_the_best_extra_rank() -> None:
    delta = decaying(40, 50)
    for bits in (1500, 4000, 9000):
        each = [error("osd", {"layout": "paper", "extra_rank": c}, delta, bits) for c in EXTRA_RANKS]
        assert error("osd", {"layout": "paper"}, delta, bits) == pytest.approx(min(each), rel=1e-6)


def test_half_keeps_as_many_of_each() -> None:
    payload = create("osd", {"layout": "paper", "extra_rank": 3, "select": "half"}).encode(
        gauss(30, 90), budget_bits=4000
    )
    s_u, s_v = payload.params["s"]
    assert abs(s_u - s_v) <= 1
    assert s_u > 20


@pytest.mark.parametrize(
    ("options", "left", "right"),  # the power of sigma in the worth of an entry of U and of V
    [
        ({}, 1, 1),
        ({"split": "left"}, 1, 1),  # the damage does not depend on the split
        ({"score": "mag"}, 0.5, 0.5),
        ({"score": "mag", "split": "left"}, 1, 0),
        ({"score": "mag", "split": "right"}, 0, 1),
    ],
)
def test_joint_keeps_the_entries_with_the_most_damage_a_bit(
    options: dict[str, object], left: float, right: float
) -> None:
    """The same choice made in numpy: |entry| sigma^power over 32 + index bits, largest first."""
    n, d, k, bits = 30, 900, 3, 20_000
    delta = with_spectrum(n, d, 0.6 ** np.arange(30)).float()
    payload = create("osd", {"layout": "paper", "extra_rank": k} | options).encode(delta, budget_bits=bits)
    u, s, vt = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    worth_u = (np.abs(u[:, :k]) * s[:k] ** left / (32 + 7)).ravel()  # 90 cells
    worth_v = (np.abs(vt[:k].T) * s[:k] ** right / (32 + 12)).ravel()  # 2700 cells
    s_u, s_v = payload.params["s"]
    least = np.sort(np.concatenate([worth_u, worth_v]))[::-1][s_u + s_v - 1]
    assert (s_u, s_v) == (int(np.sum(worth_u >= least)), int(np.sum(worth_v >= least)))


@pytest.mark.parametrize("score", ["fisher", "taylor"])
def test_gradient_scores_drop_what_does_not_matter(score: str) -> None:
    """Rows without gradient have no damage: with room for half the entries none of theirs is kept."""
    delta, held = gauss(40, 30), importance((40, 30))
    rows = torch.arange(40)[:, None] < 20
    blind = Importance(gradient=held.gradient * rows, fisher=held.fisher * rows)
    codec = create("osd", {"layout": "paper", "score": score, "extra_rank": 1})
    assert codec.needs_importance
    restored = codec.decode(codec.encode(delta, budget_bits=1200, importance=blind), (40, 30))
    assert restored[:20].any()
    assert not restored[20:].any()
    for refused in (
        codec.encode,
        lambda delta, budget_bits: create("osd", {"score": score}).encode(delta, budget_bits=budget_bits),
    ):
        with pytest.raises(CodecError, match=f"score={score} needs calibration"):
            refused(delta, budget_bits=1200)


def test_settle_takes_one_extra_rank_for_all() -> None:
    codec = create("osd", {"layout": "paper"})
    assert codec.surveys
    assert [c.config.extra_rank for c in codec.alternatives()] == list(EXTRA_RANKS)
    shapes = [(40, 50), (20, 30)]
    surveys = [np.array([3.0, 2.0, 9.0, 9.0, 9.0, 9.0]), np.array([1.0, 3.0, 0.5, 9.0, 9.0, 9.0])]
    settled, bits = codec.settle(shapes, surveys, 14_000)
    assert settled.config.extra_rank == EXTRA_RANKS[0]
    assert bits == [9000, 5000]  # by n + d
    assert not settled.surveys
    assert create("osd").settle(shapes, [None, None], 14_000)[0].config.extra_rank == "auto"


def test_survey_is_the_squared_error_of_each_extra_rank() -> None:
    delta, bits = gauss(40, 50), 4000
    survey = create("osd", {"layout": "paper"}).survey(delta, bits, None)
    norm = float(np.linalg.norm(delta.double().numpy()))
    for c, squared in zip(EXTRA_RANKS, survey, strict=True):
        measured = (error("osd", {"layout": "paper", "extra_rank": c}, delta, bits) * norm) ** 2
        assert squared == pytest.approx(measured, rel=1e-6)
    assert create("osd").survey(delta, bits, None) is None


def test_options_are_checked() -> None:
    with pytest.raises(CodecError, match="extra_rank must be 0 or more, got -1"):
        create("osd", {"extra_rank": -1})
    with pytest.raises(CodecError, match="value_bits=8 does not fit"):
        create("osd", {"layout": "paper", "value_bits": 8})
    assert create("osd", {"layout": "paper", "value_bits": 32}).config.value_bits == 32
    with pytest.raises(BudgetError, match="at least 128 bits"):
        create("osd").encode(gauss(8, 8), budget_bits=127)


def test_rank_at_which_importance_is_measured_covers_every_candidate() -> None:
    for options in ({"layout": "paper"}, {}, {"value_bits": 2}, {"extra_rank": 12}):
        codec = create("osd", options)
        for bits in (500, 3000, 20_000):
            rank = codec.encode(gauss(60, 50), budget_bits=bits).params["k"]
            assert rank <= codec.top_rank((60, 50), bits) <= 50


GOOD = {"k": 2, "w": 16, "f": 0, "s": [3, 1]}


@pytest.mark.parametrize(
    "change",
    [
        *({"k": k} for k in (-1, 3, 2.0, True, None, "2", 10**12)),
        *({"w": w} for w in (16.0, 5, 1, None, "16", [16])),
        *({"f": f} for f in (-1, 3, 1.0, 2)),
        *({"s": s} for s in ([3], [3, 1, 0], [3.0, 1], [7, 1], [3, 5], [-1, 1], "31", None, {"a": 1})),
    ],
)
def test_impossible_parameters_are_refused(change: dict[str, object]) -> None:
    # mask of 0, 1 and 4; exponent, three halves; mask of 3; exponent, one half
    data = bytes.fromhex("13" + "01" + "003c003c003c" + "08" + "01" + "003c")
    codec = create("osd")
    assert codec.decode(Payload(data, GOOD), (3, 2)).tolist() == [[0, 4], [0, 0], [0, 0]]
    with pytest.raises(PackError):
        codec.decode(Payload(data, GOOD | change), (3, 2))
    with pytest.raises(PackError):
        codec.decode(Payload(data + b"\0", GOOD), (3, 2))
