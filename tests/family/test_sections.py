"""Sections of a layer: round trips, lengths told beforehand, and params and lengths that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kinfold.errors import PackError
from kinfold.family import jd, rmm, sections

SIDES = (9, 7)


def family(members: int = 4, rank: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(SIDES[0], rank, generator=generator, dtype=torch.float64),
            torch.randn(SIDES[1], rank, generator=generator, dtype=torch.float64),
        )
        for _ in range(members)
    ]


@pytest.mark.parametrize(("width", "close"), [(32, 1e-6), (16, 1e-2), (8, 0.1), (4, 1.0)])
def test_rmm_comes_back(width: int, close: float) -> None:
    for directions in range(4):
        model = rmm.fit(rmm.stack(family(), 3)).cut(directions)
        params, shared, own = sections.encode_rmm(model, width)
        assert params == {"r": 3, "p": directions, "w": width, "c": 1}
        assert (len(shared), len(own[0])) == sections.rmm_bytes(sum(SIDES), params)
        for number, data in enumerate(own):
            a, c = sections.decode("rmm", params, SIDES, shared, data)
            assert (a.shape, c.shape, a.dtype) == ((9, 3), (7, 3), torch.float32)
            wanted = model.stacked(number).numpy()
            assert np.allclose(torch.cat([a, c]).numpy(), wanted, rtol=0, atol=close)


@pytest.mark.parametrize(("width", "close"), [(32, 1e-5), (16, 5e-2), (8, 0.5)])
def test_jd_comes_back(width: int, close: float) -> None:
    model = jd.fit(family(), 5)
    params, shared, own = sections.encode_jd(model, width)
    assert params == {"k": 5, "w": width}
    assert (len(shared), len(own[0])) == sections.jd_bytes(SIDES, params)
    for core, data in zip(model.cores, own, strict=True):
        a, c = sections.decode("jd", params, SIDES, shared, data)
        wanted = model.u.numpy() @ core.numpy() @ model.v.numpy().T
        assert np.allclose(a.double().numpy() @ c.double().numpy().T, wanted, rtol=0, atol=close)


def test_32_bits_hold_as_many_numbers_as_the_paper_counts() -> None:
    model = rmm.fit(rmm.stack(family(), 3)).cut(2)
    _, shared, own = sections.encode_rmm(model, 32)
    assert len(shared) + sum(map(len, own)) == 4 * rmm.stored_numbers(sum(SIDES), 3, 2, 4)


def test_an_uncentred_fit_has_no_mean() -> None:
    model = rmm.fit(rmm.stack(family(), 3), center=False)
    params, shared, own = sections.encode_rmm(model, 32)
    assert params["c"] == 0
    assert len(shared) == 4 * sum(SIDES) * 3 * 3
    a, c = sections.decode("rmm", params, SIDES, shared, own[2])
    assert torch.allclose(torch.cat([a, c]).double(), torch.cat(family()[2]), atol=1e-5)


GOOD = {"rmm": {"r": 3, "p": 2, "w": 32, "c": 1}, "jd": {"k": 3, "w": 32}}
BAD: list[tuple[str, dict[str, Any]]] = [
    *(("rmm", {"r": value}) for value in (-1, 8, 1 << 40, 2.0, True, "3", None)),
    *(("rmm", {"p": value}) for value in (-1, 4, 1 << 40, 1.0)),
    *(("rmm", {"w": value}) for value in (0, 1, 7, 64, -8)),
    *(("rmm", {"c": value}) for value in (2, -1, True)),
    ("rmm", {"more": 1}),
    ("rmm", {"c": 0, "p": 0}),  # no byte would vouch for the size of its factors
    *(("jd", {"k": value}) for value in (-1, 8, 1 << 62, 3.0)),
    *(("jd", {"w": value}) for value in (3, 33)),
]


@pytest.mark.parametrize(("codec", "change"), BAD)
def test_params_that_cannot_be(codec: str, change: dict[str, Any]) -> None:
    params = GOOD[codec] | change
    with pytest.raises(PackError, match=f"{codec}: .* impossible"):
        sections.decode(codec, params, SIDES, b"", b"")


@pytest.mark.parametrize("codec", GOOD)
def test_params_that_are_not_there(codec: str) -> None:
    for key in GOOD[codec]:
        params = {name: value for name, value in GOOD[codec].items() if name != key}
        with pytest.raises(PackError, match="impossible params"):
            sections.decode(codec, params, SIDES, b"", b"")


def test_a_codec_nobody_knows() -> None:
    with pytest.raises(PackError, match="impossible params"):
        sections.decode("truncsvd", {"k": 1, "w": 32}, SIDES, b"", b"")


@pytest.mark.parametrize("codec", GOOD)
@pytest.mark.parametrize(("more", "where"), [(-1, 0), (1, 0), (-1, 1), (1, 1)])
def test_lengths_are_checked_before_anything_is_read(codec: str, more: int, where: int) -> None:
    lengths = list(
        sections.rmm_bytes(sum(SIDES), GOOD["rmm"]) if codec == "rmm" else sections.jd_bytes(SIDES, GOOD["jd"])
    )
    lengths[where] += more
    with pytest.raises(PackError, match="were expected"):
        sections.decode(codec, GOOD[codec], SIDES, bytes(lengths[0]), bytes(lengths[1]))


def test_a_layer_too_large_for_its_sections_is_not_allocated() -> None:
    huge = (1 << 30, 1 << 30)
    for codec, params in (("rmm", GOOD["rmm"]), ("rmm", {"r": 1 << 30, "p": 0, "w": 4, "c": 1}), ("jd", GOOD["jd"])):
        with pytest.raises(PackError, match="were expected"):
            sections.decode(codec, params, huge, bytes(100), bytes(10))


def test_values_that_are_not_finite() -> None:
    model = jd.fit(family(), 2)
    params, shared, own = sections.encode_jd(model, 32)
    with pytest.raises(PackError, match="NaN or infinity"):
        sections.decode("jd", params, SIDES, shared, np.full(4, np.nan, "<f4").tobytes())
    assert len(own[0]) == 16
