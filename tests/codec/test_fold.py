"""`fold`: no bias, noise as the law says, budgets, zeros that stay zeros, golden bytes, hostile payloads."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from deltas import decaying, gauss, importance

from kinfold.codec import Payload, create
from kinfold.codec.entropy import decode_integers
from kinfold.codec.random import tensor_seed, uniform_bits
from kinfold.errors import BudgetError, CodecError, PackError

FOLD = create("fold")
UNBIASED = create("fold", {"shrink": 0})


def energy(tensor: torch.Tensor) -> float:
    return float((tensor.double() ** 2).sum())


def noise(delta: torch.Tensor, bits: int, seed: int = 0) -> float:
    """Energy of the error over the delta's."""
    payload = UNBIASED.encode(delta, budget_bits=bits, seed=seed)
    return energy(UNBIASED.decode(payload, tuple(delta.shape)) - delta) / energy(delta)


@pytest.mark.parametrize("shrink", [0.0, 0.5])
@pytest.mark.parametrize(("shape", "nbytes", "regime"), [((40, 77), 16, "g"), ((12, 31), 300, "d")])
def test_mean_over_seeds_is_the_delta(shape: tuple[int, int], nbytes: int, regime: str, shrink: float) -> None:
    """Over 200 seeds, each entry within five standard errors of D / (1 + shrink / rate).

    Groups are long, for the amplitude is common to all: what a short one differs from the rest in norm is lost.
    Steps are judged by entries away from the ends: among few, the largest is drawn in where that saves a level.
    """
    rng = np.random.default_rng(0)
    codec, delta, seeds = create("fold", {"shrink": shrink}), torch.from_numpy(rng.uniform(-1, 1, shape)).float(), 200
    total, squares = np.zeros(shape), np.zeros(shape)
    params: dict[str, Any] = {}
    for seed in range(seeds):
        payload = codec.encode(delta, budget_bits=8 * nbytes, seed=tensor_seed(seed, "w"))
        restored = codec.decode(payload, shape).double().numpy()
        total += restored
        squares += restored**2
        params = payload.params
    assert set(params) == {regime}
    mean = total / seeds
    error = np.sqrt((squares / seeds - mean**2) / seeds)
    # steps are not shrunk: their noise is small
    factor = 1 / (1 + shrink / (12 * params["g"] / delta.numel())) if regime == "g" else 1.0
    judged = np.abs(delta.numpy()) < (1.0 if regime == "g" else 0.9)
    assert np.all((np.abs(mean - factor * delta.double().numpy()) <= 5 * error)[judged])


@pytest.mark.parametrize("rate", [0.004, 0.008, 0.03, 0.1, 0.5])
def test_noise_of_the_codebook(rate: float) -> None:
    """A codeword of 12 bits captures 1.08 a bit of what it stands for: 1 / (1.08 rate) is left as noise."""
    delta = gauss(500, 403)
    payload = UNBIASED.encode(delta, budget_bits=int(rate * delta.numel()))
    rate = 12 * payload.params["g"] / delta.numel()
    error = energy(UNBIASED.decode(payload, (500, 403)) - delta) / energy(delta)
    assert error == pytest.approx(1 / (1.08 * rate), rel=0.15)


def test_noise_is_white_whatever_the_delta() -> None:
    """A delta of decaying spectrum: its noise along the first singular vectors is that along any other."""
    delta = decaying(200, 303)
    u, _, v = torch.linalg.svd(delta.double(), full_matrices=False)
    along, count = np.zeros(200), 6
    for seed in range(count):
        payload = UNBIASED.encode(delta, budget_bits=12_000, seed=tensor_seed(seed, "w"))
        error = UNBIASED.decode(payload, (200, 303)).double() - delta
        along += torch.diag(u.T @ error @ v.T).numpy() ** 2 / count
    expected = energy(delta) / (1.08 * 0.198) / (200 * 303)  # for each direction
    assert along.mean() == pytest.approx(expected, rel=0.3)
    assert along[:5].mean() <= 4 * expected


BUDGETS = [0.005, 0.02, 0.1, 0.5, 0.62, 0.8, 1.5, 4.0, 8.0]


def test_budgets_are_used_and_more_bits_are_less_noise() -> None:
    """From 0.005 to 8 bits a weight on a matrix of 204,800 entries."""
    delta, errors = gauss(400, 512), []
    for rate in BUDGETS:
        bits = int(rate * delta.numel())
        payload = FOLD.encode(delta, budget_bits=bits, seed=1)
        assert 0.97 * bits <= 8 * len(payload.data) <= bits
        errors.append(energy(FOLD.decode(payload, (400, 512)) - delta))
    assert all(after < before for before, after in pairwise(errors))


@pytest.mark.parametrize("count", [300, 3000])
def test_more_bits_are_less_noise_for_few_entries_too(count: int) -> None:
    """Tables weigh on small tensors; the codebook is kept for longer there."""
    delta = gauss(1, count)
    rates = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    errors = [np.mean([noise(delta, int(rate * count), seed) for seed in range(4)]) for rate in rates]
    assert all(after < 0.9 * before for before, after in pairwise(errors))


@pytest.mark.parametrize("bits", [2_000, 30_000])
def test_the_decoder_gives_what_the_encoder_meant(bits: int) -> None:
    """Rebuilt here from the payload, entry by entry, in numpy alone (but for the coder's integers)."""
    delta, seed = gauss(60, 77), tensor_seed(3, "w")
    payload = FOLD.encode(delta, budget_bits=bits, seed=seed)
    words = uniform_bits(seed, 0, 137).numpy()
    rows, columns = words[:60, None], words[None, 60:]
    if "d" in payload.params:
        u = ((rows // 65536 + columns // 65536) % 65536 + 0.5) / 65536 - 0.5
        context = np.floor(np.abs(u) * 16).astype(np.uint8).reshape(-1)
        q = decode_integers(payload.data[4:], context, 8).reshape(60, 77)
        step = np.frombuffer(payload.data[:4], "<f4")[0]
        expected = (np.where(u < 0, -q, q).astype(np.float32) - u.astype(np.float32)) * step
    else:
        count = payload.params["g"]
        stream = uniform_bits(0, 0, 2048 * 1024).numpy().reshape(2048, 1024)
        table = (sum((stream >> shift) & 255 for shift in (0, 8, 16, 24)) - 509) // 4
        bitstring = np.unpackbits(np.frombuffer(payload.data[4:], np.uint8), bitorder="little")[: 12 * count]
        index = bitstring.reshape(count, 12).astype(np.int64) @ (1 << np.arange(12))
        place = np.arange(60 * 77)
        chosen = index[place % count]
        amplitude = np.frombuffer(payload.data[:4], "<f4")[0]
        size = table[chosen // 2, place // count % 1024].astype(np.float32) * amplitude
        signs = (1 - 2 * (chosen % 2)).reshape(60, 77) * (1 - 2 * (rows % 2)) * (1 - 2 * (columns % 2))
        expected = size.reshape(60, 77) * signs.astype(np.float32)
    assert np.array_equal(FOLD.decode(payload, (60, 77)).numpy(), expected)


def test_groups_longer_than_a_codeword_repeat_it() -> None:
    """At the least budget one codeword stands for 16,384 entries: its 1024 entries come again and again."""
    delta = gauss(1, 16_384)
    payload = FOLD.encode(delta, budget_bits=FOLD.minimum_bits((1, 16_384)), seed=7)
    assert payload.params == {"g": 1}
    words = uniform_bits(7, 0, 16_385).numpy()
    signs = torch.from_numpy((1 - 2 * (words[:1] & 1)) * (1 - 2 * (words[1:] & 1))).float()
    pattern = (FOLD.decode(payload, (1, 16_384))[0] * signs).reshape(16, 1024)
    assert torch.equal(pattern, pattern[:1].expand(16, 1024))


ODD = [(1, 500), (500, 1), (30, 7, 5), (10, 8, 3, 3), (500,), (), (1,), (0, 5), (5, 0)]


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("bits", [0, 600, 20_000])
def test_any_shape(shape: tuple[int, ...], bits: int) -> None:
    bits = max(bits, FOLD.minimum_bits(shape))
    for delta in (gauss(*shape, 1)[..., 0], torch.zeros(shape), torch.full(shape, -0.25)):
        payload = FOLD.encode(delta, budget_bits=bits, seed=2)
        restored = FOLD.decode(payload, shape)
        assert 8 * len(payload.data) <= bits
        assert restored.shape == delta.shape
        assert bool(torch.isfinite(restored).all())
        if not delta.any():
            assert payload == Payload(b"", {"r": 0}, 2)
            assert not restored.any()


@pytest.mark.parametrize("bits", [6_000, 60_000])
def test_untouched_rows_stay_zero(bits: int) -> None:
    delta = torch.zeros(700, 50)
    touched = torch.arange(3, 700, 31)
    delta[touched] = gauss(len(touched), 50)
    payload = FOLD.encode(delta, budget_bits=bits, seed=4)
    restored = FOLD.decode(payload, (700, 50))
    assert payload.params["r"] == len(touched)
    assert 8 * len(payload.data) <= bits
    zero = torch.ones(700, dtype=torch.bool)
    zero[touched] = False
    assert not restored[zero].any()
    assert restored[touched].all(1).any()


@pytest.mark.parametrize("bits", [160, 40_000])
def test_one_changed_entry(bits: int) -> None:
    """Alone in its row, which alone is coded; the entry itself comes back, as its product is the whole energy."""
    delta = torch.zeros(40, 60)
    delta[11, 23] = 0.7
    codec = UNBIASED
    restored = codec.decode(codec.encode(delta, budget_bits=bits, seed=1), (40, 60))
    assert float(restored[11, 23]) == pytest.approx(0.7, rel=0.02)
    assert not restored[torch.arange(40) != 11].any()


@pytest.mark.parametrize("bits", [3_000, 40_000])
@pytest.mark.parametrize("scale", [1e-44, 1e-20, 1e5, 1e30])
def test_sizes_from_the_least_to_the_largest(bits: int, scale: float) -> None:
    """1e5 overflows float16, 1e-44 is no normal float32."""
    delta = gauss(70, 90, scale=scale)
    restored = FOLD.decode(FOLD.encode(delta, budget_bits=bits, seed=1), (70, 90))
    assert bool(torch.isfinite(restored).all())
    if scale > 1e-40:
        assert energy((restored - delta) / scale) <= 1.2 * energy(delta / scale) * 1.08 * 6300 / bits


@pytest.mark.parametrize("bits", [3_000, 20_000])
def test_an_outlier_of_a_thousand_sigma(bits: int) -> None:
    """Steps keep it; an amplitude common to all codewords cannot, but must not make it larger."""
    delta = gauss(70, 90)
    delta[13, 57] = 10.0
    restored = FOLD.decode(FOLD.encode(delta, budget_bits=bits, seed=1), (70, 90))
    assert bool(torch.isfinite(restored).all())
    assert float(restored[13, 57]) == pytest.approx(10.0, rel=0.05) if bits == 20_000 else 0 < restored[13, 57] < 10


def test_steering_codes_the_target_at_the_scale_of_the_delta() -> None:
    delta, other = gauss(40, 77), gauss(40, 77, seed=1)
    payload = FOLD.encode(delta, budget_bits=8 * 120)
    towards = FOLD.steer(payload, delta, delta + 0.5 * other)
    decoded = FOLD.decode(towards, (40, 77)).double()
    assert len(towards.data) == len(payload.data)
    assert float((decoded * other).sum()) > float((FOLD.decode(payload, (40, 77)).double() * other).sum())
    rate = 12 * payload.params["g"] / delta.numel()
    assert float((decoded * delta).sum()) == pytest.approx(energy(delta) * rate / (rate + 0.0015), rel=0.01)
    assert FOLD.steer(payload, delta, delta).data[4:] == payload.data[4:]


def test_dithered_steps_are_not_steered() -> None:
    delta = gauss(40, 77)
    payload = FOLD.encode(delta, budget_bits=2 * delta.numel())
    assert FOLD.steer(payload, delta, -delta) is payload


def test_importance_is_ignored() -> None:
    delta = gauss(30, 40)
    plain, weighed = (FOLD.encode(delta, budget_bits=2_000, importance=i) for i in (None, importance((30, 40))))
    assert plain == weighed


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    with pytest.raises(CodecError, match="NaN or infinity"):
        FOLD.encode(torch.tensor([[1.0, bad]]), budget_bits=800)


@pytest.mark.parametrize("entries", [1, 16_384, 16_385, 10**6])
def test_the_least_budget(entries: int) -> None:
    """A float32, and 12 bits for every 16,384 entries."""
    least = 8 * (4 + -(-(-(-entries // 16_384) * 12) // 8))
    assert FOLD.minimum_bits((entries,)) == least
    with pytest.raises(BudgetError, match=f"at least {least} bits"):
        FOLD.encode(torch.ones(entries), budget_bits=least - 1)
    assert FOLD.minimum_bits((0, 3)) == 0


def test_survey_is_energy_and_entries_of_touched_rows() -> None:
    delta = gauss(30, 5, 4)
    delta[3:13] = 0
    found = FOLD.survey(delta, 0, None)
    assert found == pytest.approx([energy(delta), 400])


def settled(energies: list[float], shapes: list[tuple[int, ...]], total: int) -> list[int]:
    surveys = [np.array([e, float(np.prod(s))]) for e, s in zip(energies, shapes, strict=True)]
    return FOLD.settle(shapes, surveys, total)[1]


SHAPES: list[tuple[int, ...]] = [(300, 400), (300, 400), (1000, 500), (64, 64), (900,)]


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0, 6.0])
def test_settle_spends_what_there_is(rate: float) -> None:
    total = int(rate * sum(np.prod(s) for s in SHAPES))
    bits = settled([1.0, 4.0, 9.0, 0.1, 0.3], SHAPES, total)
    assert 0.97 * total <= sum(bits) <= total
    assert all(share % 8 == 0 and share >= FOLD.minimum_bits(s) for share, s in zip(bits, SHAPES, strict=True))
    assert bits[1] > bits[0]  # of one shape, with four times the energy


def test_settle_equalises_slopes() -> None:
    """The noise E / (e^(1.08 r) - 1) of every tensor falls as fast, by a numeric derivative a bit."""
    energies = [1.0, 4.0, 9.0]
    bits = np.array(settled(energies, SHAPES[:3], 300_000), float)
    entries = np.array([120_000, 120_000, 500_000])

    def left(b: np.ndarray) -> np.ndarray:
        return np.array(energies) / np.expm1(1.08 * b / entries)

    slopes = (left(bits - 40) - left(bits + 40)) / 80
    assert slopes == pytest.approx(slopes.mean(), rel=0.01)


def test_settle_gives_nothing_to_nothing() -> None:
    bits = settled([1.0, 0.0, 1.0], [(300, 400), (300, 400), (50, 60)], 100_000)
    assert bits[1] == FOLD.minimum_bits((300, 400))
    assert 97_000 <= sum(bits) <= 100_000
    assert settled([0.0], [(300, 400)], 100_000) == [FOLD.minimum_bits((300, 400))]


def test_settle_of_too_little() -> None:
    with pytest.raises(BudgetError, match="needs at least 22 bytes for 2 matrices, 21 are left") as caught:
        settled([1.0, 1.0], [(300, 400), (100, 10)], 175)
    assert caught.value.least_bytes == 22


DELTA = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]])
GOLDEN = {  # budget in bits: payload and parameters, tensor `w` of a pack of seed 0
    48: ("e4b6f33cca0d", {"g": 1}),
    560: (
        "2450413ffdff06000000000000000000" + "0000000000000000ff00000000000000"
        "0000000000000000ff0000ff00ff00ff" + "0000ff000000000001008004",
        {"d": 1},
    ),
}


@pytest.mark.parametrize("bits", GOLDEN)
def test_golden_bytes(bits: int) -> None:
    data, params = GOLDEN[bits]
    payload = UNBIASED.encode(DELTA, budget_bits=bits, seed=tensor_seed(0, "w"))
    assert (payload.data.hex(), payload.params) == (data, params)


SHAPE = (12, 9)
HOSTILE = (None, True, "1", 1.0, [1], {}, -1, 0, 2, 13, 109, 2**31, 2**70, float("nan"), float("inf"))


def payloads() -> dict[str, Payload]:
    rows = torch.zeros(SHAPE)
    rows[[2, 5]] = gauss(2, 9)
    return {
        "codebook": FOLD.encode(gauss(*SHAPE), budget_bits=200, seed=3),
        "steps": FOLD.encode(gauss(*SHAPE), budget_bits=1500, seed=3),
        "rows": FOLD.encode(rows, budget_bits=200, seed=3),
        "rows in steps": FOLD.encode(rows, budget_bits=1500, seed=3),
        "nothing": FOLD.encode(torch.zeros(SHAPE), budget_bits=200, seed=3),
    }


def outcome(payload: Payload) -> str:
    try:
        restored = FOLD.decode(payload, SHAPE)
    except PackError:
        return "refused"
    assert restored.shape == SHAPE
    assert bool(torch.isfinite(restored).all())
    return "read"


@pytest.mark.parametrize("kind", payloads())
def test_hostile_payloads(kind: str) -> None:
    good, rng = payloads()[kind], random.Random(0)
    assert outcome(good) == "read"
    for key, value in good.params.items():
        for other in HOSTILE:
            if type(other) is not int or other != value:
                assert outcome(Payload(good.data, good.params | {key: other}, 3)) == "refused", (key, other)
        assert outcome(Payload(good.data, {k: v for k, v in good.params.items() if k != key}, 3)) == "refused"
    for length in range(len(good.data)):
        assert outcome(Payload(good.data[:length], good.params, 3)) == "refused"
    assert outcome(Payload(good.data + bytes(4), good.params, 3)) == "refused"
    for _ in range(60):
        flipped = bytearray(good.data)
        for _ in range(rng.randint(1, 4) if flipped else 0):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        outcome(Payload(bytes(flipped), good.params, 3))
        outcome(Payload(rng.randbytes(len(flipped)), good.params, 3))


@pytest.mark.parametrize("kind", ["codebook", "steps"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_an_amplitude_or_step_that_is_none(kind: str, value: float) -> None:
    good = payloads()[kind]
    forged = np.float32(value).tobytes() + good.data[4:]
    assert outcome(Payload(forged, good.params, 3)) == "refused"
