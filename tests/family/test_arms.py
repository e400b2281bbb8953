"""The arms of a plan: their errors against dense numpy, their bytes against their payloads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kinfold.family import arms, rmm, sections
from kinfold.family.gauge import balanced, squared_product_norm
from kinfold.family.plan import Choice, choose

ROWS, COLUMNS = 24, 20
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def draw(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def layer(pairs: Pairs, norms: list[float] | None = None) -> arms.Layer:
    norms = norms or [squared_product_norm(pair) for pair in pairs]
    weights = tuple(1 / norm if norm else 1.0 for norm in norms)
    sides = (len(pairs[0][0]), len(pairs[0][1]))
    return arms.Layer("w", sides, tuple(range(len(pairs))), tuple(pairs), tuple(norms), weights)


def family(members: int = 4, rank: int = 5, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    scales = [10.0**number for number in range(members)]
    return [balanced(draw(generator, ROWS, rank) * scale, draw(generator, COLUMNS, rank) * scale) for scale in scales]


def common_part(members: int = 64, rank: int = 16) -> Pairs:
    """Members that are a strong common pair and a little of their own: where shared directions win."""
    generator = torch.Generator().manual_seed(0)
    root = torch.linspace(1.35, 0.65, rank, dtype=torch.float64)
    common = [torch.linalg.qr(draw(generator, side, rank))[0] * root for side in (ROWS, COLUMNS)]
    own = [[part + 0.47 * draw(generator, *part.shape) / len(part) ** 0.5 for part in common] for _ in range(members)]
    return [balanced(a, c) for a, c in own]


def decoded(found: arms.Arm, of: arms.Layer) -> list[np.ndarray]:
    """What a reader gets of each member, dense."""
    pairs = []
    for number, data in enumerate(found.own):
        if found.codec == "truncsvd":
            k = found.ranks[number]
            values = np.frombuffer(data, "<f4").astype(np.float64) if found.params["w"] == 32 else None
            assert values is not None
            pairs.append((values[: ROWS * k].reshape(ROWS, k), values[ROWS * k :].reshape(COLUMNS, k)))
            continue
        a, c = sections.decode(found.codec, found.params, of.sides, found.shared, data)
        scale = found.scales[number] if found.scales else 1.0
        pairs.append((a.double().numpy() * scale, c.double().numpy() * scale))
    return [a @ c.T for a, c in pairs]


def dense(pairs: Pairs) -> list[np.ndarray]:
    return [a.numpy() @ c.numpy().T for a, c in pairs]


@pytest.mark.parametrize(("width", "close"), [(32, 1e-9), (16, 1e-5)])
def test_truncation_loses_the_tail_of_numpys_svd(width: int, close: float) -> None:
    pairs = family()
    for found in arms.truncated(layer(pairs), range(6), [width]):
        for delta, error, k in zip(dense(pairs), found.errors, found.ranks, strict=True):
            s = np.linalg.svd(delta, compute_uv=False)
            assert error == pytest.approx((s[k:] ** 2).sum() / (s**2).sum(), abs=close)
        assert found.bytes == sum(map(len, found.own))
        assert all(len(data) == k * (ROWS + COLUMNS) * width // 8 + 2 * bool(k) * (width == 16) for data in found.own)


def test_truncation_takes_each_member_at_most_at_its_own_rank() -> None:
    pairs = [*family(1, 5), *family(1, 2)]
    last = list(arms.truncated(layer(pairs), widths=[32]))[-1]
    assert last.ranks == (5, 2)
    assert last.error < 1e-9
    assert last.spec == (5, 32)


@pytest.mark.parametrize("make", ["reversible", "joint", "truncated"])
def test_errors_are_of_what_a_reader_decodes(make: str) -> None:
    pairs = family()
    of = layer(pairs, [2 * squared_product_norm(pair) for pair in pairs])  # factors that hold half of each delta
    found = {
        "reversible": lambda: arms.reversible(of, [5, 3], widths=[32, 8, 4]),
        "joint": lambda: arms.joint(of, [3, 8], [32, 8]),
        "truncated": lambda: arms.truncated(of, [0, 2, 5], [32]),
    }[make]()
    for arm in found:
        for wanted, got, error in zip(dense(pairs), decoded(arm, of), arm.errors, strict=True):
            energy = (wanted**2).sum()
            assert error == pytest.approx(((wanted - got) ** 2).sum() / (2 * energy) + 0.5, rel=1e-6)


def test_bytes_are_those_of_the_payloads_and_repeat() -> None:
    of = layer(family())
    for arm in [*arms.reversible(of, [5, 3], widths=[16, 4]), *arms.joint(of, [4, 8]), *arms.truncated(of, [2, 5])]:
        sizes = {
            "rmm": lambda a: sections.rmm_bytes(ROWS + COLUMNS, a.params),
            "jd": lambda a: sections.jd_bytes(of.sides, a.params),
        }
        if arm.codec in sizes:
            assert (len(arm.shared), len(arm.own[0])) == sizes[arm.codec](arm)
        again = arms.rebuilt(of, arm.spec, arm.codec)
        assert (again.shared, again.own, again.errors) == (arm.shared, arm.own, arm.errors)
        assert arm.bytes == len(arm.shared) + sum(map(len, arm.own))


def test_all_directions_in_32_bits_lose_nothing() -> None:
    """Members of norms 1 to 10^6: each is brought to norm 1 first, so that none is lost beside a large one."""
    of = layer(family())
    exact = list(arms.reversible(of, [5], widths=[32]))[-1]
    assert exact.params == {"r": 5, "p": 3, "w": 32, "c": 1}
    assert max(exact.errors) < 1e-11
    (joint,) = arms.joint(of, [20], [32])
    assert max(joint.errors) < 1e-11


def test_a_large_member_does_not_take_the_shared_bases() -> None:
    (arm,) = arms.joint(layer(family()), [10], [32])
    assert max(arm.errors) < 3 * min(arm.errors)


def test_plain_factors_are_taken_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(draw(generator, ROWS, 4), draw(generator, COLUMNS, 4)) for _ in range(3)]
    (arm,) = arms.reversible(layer(pairs), [4], [1], [32], plain=True)
    assert (arm.gauge, arm.scales) == ("given", (1.0, 1.0, 1.0))
    z = np.stack([np.concatenate([a.numpy(), c.numpy()]) for a, c in pairs], -1)
    mean = z.mean(-1, keepdims=True)
    u, s, v = np.linalg.svd(z - mean, full_matrices=False)
    kept = mean + u[..., :1] * s[:, None, :1] @ v[:, :1]
    for number, wanted in enumerate(dense(pairs)):
        got = kept[:ROWS, :, number] @ kept[ROWS:, :, number].T
        error = ((wanted - got) ** 2).sum() / (wanted**2).sum()
        assert arm.errors[number] == pytest.approx(error, rel=1e-5)


def test_rotated_copies_need_one_direction_less_when_aligned() -> None:
    pairs = family(1)
    rotations = [np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))[0] for seed in range(4)]
    turned = [(pairs[0][0] @ torch.from_numpy(q), pairs[0][1] @ torch.from_numpy(q)) for q in rotations]
    (arm,) = arms.reversible(layer(turned), [5], [0], [32])
    assert arm.gauge == "aligned"
    assert arm.error < 1e-9
    (plain,) = arms.reversible(layer(turned), [5], [0], [32], plain=True)
    assert plain.error > 1


def test_a_zero_member_and_a_zero_layer() -> None:
    zero = (torch.zeros(ROWS, 5, dtype=torch.float64), torch.zeros(COLUMNS, 5, dtype=torch.float64))
    of = layer([*family(2), zero])
    for arm in [*arms.reversible(of, [5], [2], [32]), *arms.joint(of, [10], [32]), *arms.truncated(of, [5], [32])]:
        assert arm.error < 1e-9
        assert np.abs(decoded(arm, of)[2]).max() < 1e-9
    nothing = layer([zero, zero])
    for arm in [*arms.reversible(nothing, [5]), *arms.joint(nothing), *arms.truncated(nothing)]:
        assert arm.error < 1e-20


def test_one_member_is_stored_by_any_arm() -> None:
    """A layer that one member alone has changed."""
    of = layer(family(1))
    (arm,) = arms.reversible(of, [5], widths=[32])
    assert (arm.params["p"], arm.own) == (0, (b"",))
    (asked,) = arms.reversible(of, [5], [3], [32])  # fewer members than the directions asked for
    assert asked == arm
    for found in (arm, *arms.joint(of, [5], [32]), *arms.truncated(of, [5], [32])):
        assert found.error < 1e-12


def test_members_that_are_all_zero_take_no_bytes() -> None:
    nothing = layer([(torch.zeros(ROWS, 5).double(), torch.zeros(COLUMNS, 5).double())] * 2)
    (arm,) = arms.reversible(nothing, [5], [0], [32])
    assert (arm.params["r"], arm.bytes) == (0, 0)
    assert arms.rebuilt(nothing, arm.spec, "rmm") == arm


def test_a_mean_of_zero_takes_no_bytes() -> None:
    (a, c) = family(1)[0]
    opposed = layer([(a, c), (-a, -c)])
    exact = list(arms.reversible(opposed, [5], widths=[32], plain=True))[-1]
    assert exact.params["c"] == 0
    assert len(exact.shared) == (ROWS + COLUMNS) * 5 * 4
    assert exact.error < 1e-9


def test_where_members_have_a_strong_common_part_the_plan_picks_shared_directions() -> None:
    """64 members of rank 16 with 8 directions, against truncation in the same bytes, 16 bits a number."""
    of = layer(common_part())
    (shared,) = arms.reversible(of, [16], [8], [16])
    numbers = rmm.stored_numbers(ROWS + COLUMNS, 16, 8, 64)
    assert shared.bytes == pytest.approx(2 * numbers, rel=0.01)
    apart = list(arms.truncated(of, range(17), [16]))
    best = max((arm for arm in apart if arm.bytes <= shared.bytes), key=lambda arm: arm.bytes)
    assert best.ranks[0] == 10
    assert (shared.error / 64) ** 0.5 == pytest.approx(0.24, abs=0.01)
    assert (best.error / 64) ** 0.5 == pytest.approx(0.27, abs=0.01)
    assert shared.gauge == "aligned"
    all_ = [*apart, shared]
    chosen = choose([[Choice(arm.bytes, arm.error) for arm in all_]], shared.bytes)
    assert chosen is not None
    assert all_[chosen[0]].codec == "rmm"
