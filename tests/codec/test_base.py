"""The registry, options, and how a total is shared out."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest
import torch
from deltas import SETTINGS, gauss, make
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.codec import Codec, base, create, find, names
from kinfold.codec.bitdelta import BitDelta
from kinfold.codec.rtn import Rtn
from kinfold.errors import BudgetError, CodecError

SHAPE = st.one_of(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
)


def test_names() -> None:
    assert set(names()) >= {"bitdelta", "dare", "magnitude", "osd", "rtn", "truncsvd"}
    assert names() == sorted(names())
    for name in names():
        assert find(name).name == name


def test_codecs_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by entry point; a name of ours stays ours."""
    points = [
        EntryPoint("mine", "kinfold.codec.rtn:Rtn", "kinfold.codecs"),
        EntryPoint("bitdelta", "kinfold.codec.rtn:Rtn", "kinfold.codecs"),
    ]

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "kinfold.codecs"
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(base, "entry_points", entry_points)
    assert find("mine") is Rtn
    assert find("bitdelta") is BitDelta
    assert names().count("bitdelta") == 1
    assert "mine" in names()


@pytest.mark.parametrize(("name", "near"), [("truncsdv", "truncsvd"), ("exac", "exact"), ("Dare", "dare")])
def test_unknown_codec(name: str, near: str) -> None:
    with pytest.raises(CodecError, match=f"no codec is called `{name}`; there are exact, bitdelta, dare") as caught:
        find(name)
    assert caught.value.hint == f"--codec {near}"


def test_unknown_codec_like_no_other() -> None:
    with pytest.raises(CodecError) as caught:
        create("zzzzzz")
    assert caught.value.hint == ""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("truncsvd", {"rank": 4}, "has no option `rank`.*options are value_bits, allocation"),
        ("truncsvd", {"value_bits": 5}, "does not take value_bits=5"),
        ("dare", {"keep": 2}, "does not take keep=2"),
        ("osd", {"score": "best"}, "'frob', 'mag', 'fisher' or 'taylor'"),
        ("rtn", {"version": 2}, "version=2"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        create(name, options)


def test_configs_are_frozen_and_copied() -> None:
    codec = create("truncsvd", {"value_bits": 8})
    with pytest.raises(ValueError, match="frozen"):
        codec.config.value_bits = 4
    other = codec.with_config(allocation="uniform")
    assert (other.config.value_bits, other.config.allocation) == (8, "uniform")
    assert codec.config.allocation == "energy"
    assert type(other) is type(codec)


@pytest.mark.parametrize("setting", SETTINGS)
@given(shapes=st.lists(SHAPE, min_size=1, max_size=6), total=st.integers(-100, 400_000))
@settings(deadline=None, max_examples=25)
def test_shares(setting: str, shapes: list[tuple[int, ...]], total: int) -> None:
    """Whole bytes, none below its minimum, together no more than the total; refused only when they must be."""
    codec = make(setting)
    least = [-(-codec.minimum_bits(shape) // 8) * 8 for shape in shapes]
    if sum(least) > total:
        with pytest.raises(BudgetError) as caught:
            codec.shares(shapes, total)
        assert caught.value.least_bytes == sum(least) // 8
        return
    bits = codec.shares(shapes, total)
    assert sum(bits) <= total
    assert all(share >= minimum and share % 8 == 0 for share, minimum in zip(bits, least, strict=True))
    if codec.config.model_dump().get("keep") is None:
        assert total - sum(bits) < 8 * len(shapes) + 1e-6 * total or sum(bits) == sum(least)


def test_shares_are_at_one_rate() -> None:
    assert create("dare").shares([(10, 30), (10, 10), (10, 60)], 80_000) == [24_000, 8_000, 48_000]
    assert create("osd").shares([(10, 30), (10, 10), (5, 5, 11)], 96_000) == [32_000, 16_000, 48_000]


def test_a_small_tensor_gets_its_minimum() -> None:
    """One part in 10,001 would be 10 bytes; `osd` needs 16."""
    bits = create("osd").shares([(5000, 5000), (1, 1)], 8 * 50_000)
    assert bits[1] == 128
    assert bits[0] == 8 * 50_000 - 128


def test_defaults_of_the_base_class() -> None:
    codec = create("rtn")
    assert codec.weight((3, 4, 5)) == math.prod((3, 4, 5))
    assert not codec.needs_importance
    assert not codec.surveys
    assert codec.survey(gauss(3, 4), 100, None) is None
    assert codec.alternatives() == []
    assert codec.top_rank((100, 7), 1) == 7
    assert isinstance(codec, Codec)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finite(bad: float) -> None:
    base.check_finite(torch.tensor([1.0, 3.4e38]))
    with pytest.raises(CodecError, match="NaN or infinity") as caught:
        base.check_finite(torch.tensor([1.0, bad]))
    assert "exact" in caught.value.hint
