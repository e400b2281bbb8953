"""The index law against golden values and counts; quotas against sums worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kinfold.audit.influence.mask import canonical, coordinates_hash, indices, mask_seed, neuron_indices, quotas
from kinfold.errors import AuditError


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, [812, 390, 598, 351, 781, 650, 810, 61]), (1, [526, 10, 948, 675, 740, 346, 274, 885])],
)
def test_golden_mask(seed: int, expected: list[int]) -> None:
    assert indices(seed, "layer.0.weight", (20, 50), 8).tolist() == expected


def test_fewer_coordinates_are_the_first_of_more() -> None:
    whole = indices(3, "w", (384, 1536), 4096)
    assert len(set(whole.tolist())) == 4096
    assert whole.max() < 384 * 1536
    for count in (1, 8, 1000, 4095):
        assert indices(3, "w", (384, 1536), count).tolist() == whole[:count].tolist()


def test_nearly_all_and_all() -> None:
    assert sorted({*range(1000)} - {*indices(0, "w", (20, 50), 999).tolist()}) != []
    assert len(set(indices(0, "w", (20, 50), 999).tolist())) == 999
    assert indices(0, "w", (20, 50), 1000).tolist() == list(range(1000))
    assert indices(0, "w", (20, 50), 5000).tolist() == list(range(1000))


def test_every_coordinate_is_as_likely() -> None:
    counts = np.zeros(40)
    for seed in range(4000):
        counts[indices(seed, "w", (8, 5), 10)] += 1
    error = (4000 * 0.25 * 0.75) ** 0.5
    assert np.abs(counts - 1000).max() < 5 * error
    assert counts.sum() == 40_000


def test_seed_name_and_shape_all_matter() -> None:
    keys = {mask_seed(0, "a", (2, 3)), mask_seed(1, "a", (2, 3)), mask_seed(0, "b", (2, 3)), mask_seed(0, "a", (3, 2))}
    assert len(keys) == 4
    assert mask_seed(-1, "a", (2, 3)) not in keys


def test_neurons_make_a_block_of_about_the_size() -> None:
    outputs, inputs = neuron_indices(0, "w", (384, 1536), 400)
    assert (len(outputs), len(inputs)) == (10, 40)
    assert (len(set(outputs.tolist())), len(set(inputs.tolist()))) == (10, 40)
    assert outputs.max() < 384
    assert [len(part) for part in neuron_indices(0, "w", (2, 900), 4)] == [2, 2]
    assert [len(part) for part in neuron_indices(0, "w", (3, 3), 1000)] == [3, 3]


def test_too_large_a_weight_is_refused() -> None:
    with pytest.raises(AuditError, match="fewer than 4294967296"):
        indices(0, "w", (1 << 16, 1 << 16), 8)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.0.query.lora_A.weight",
        "encoder.layer.0.query.lora_A.mine.weight",
        "base_model.model.encoder.layer.0.query.lora_A.default.weight",
    ],
)
def test_names_do_not_depend_on_the_adapters(name: str) -> None:
    assert canonical(name) == "encoder.layer.0.query.lora_A.weight"


def test_wrappers_are_taken_off() -> None:
    assert canonical("base_model.model.a.base_layer.weight") == "a.weight"
    assert canonical("base_model.model.head.modules_to_save.x.weight") == "head.weight"
    assert canonical("a.base_layerish.weight") == "a.base_layerish.weight"


SHAPES = {"a": (10, 10), "b": (100, 100), "c": (1000, 100)}


def test_quotas_go_as_roots_equally_or_as_sizes() -> None:
    roots = np.sqrt([100, 10_000, 100_000])
    found = quotas(SHAPES, 1000)
    assert list(found.values()) == pytest.approx(1000 * roots / roots.sum(), abs=1)
    assert quotas(SHAPES, 300, "equal") == {"a": 100, "b": 100, "c": 100}
    assert quotas(SHAPES, 1000, "proportional") == {"a": 16, "b": 89, "c": 895}
    assert sum(found.values()) == 1000


def test_a_module_keeps_no_more_than_it_has() -> None:
    assert quotas(SHAPES, 1500, "equal") == {"a": 100, "b": 700, "c": 700}
    assert quotas(SHAPES, 1 << 40) == {"a": 100, "b": 10_000, "c": 100_000}
    assert quotas({"a": (1, 2)}, 3) == {"a": 2}


def test_too_few_coordinates_name_the_least() -> None:
    with pytest.raises(AuditError, match="at least 12") as caught:
        quotas(SHAPES, 11)
    assert "--keep 12" in caught.value.hint
    assert sum(quotas(SHAPES, 12).values()) == 12


def test_one_hash_says_whether_coordinates_are_shared() -> None:
    there = [("a", [np.array([1, 2])]), ("b", [np.array([3]), np.array([4])])]
    assert coordinates_hash(there) == coordinates_hash([(n, [p.astype(np.int32) for p in ps]) for n, ps in there])
    others = [
        [("a", [np.array([2, 1])]), there[1]],
        [("c", there[0][1]), there[1]],
        [there[0], ("b", [np.array([3, 4])])],
        there[:1],
    ]
    assert len({coordinates_hash(one) for one in [there, *others]}) == 5
