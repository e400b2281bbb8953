"""Gram matrices read tensor by tensor equal those of the whole deltas, however they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kinfold
from kinfold.audit import measure
from kinfold.audit.measure import member_grams, tensor_grams
from kinfold.errors import AuditError
from kinfold.pack.member import Base
from kinfold.pack.members import open_members
from models import PICO, Tensors, perturbed, pico, save

BASE = pico()


def vectors(members: list[Tensors], base: Tensors = BASE) -> np.ndarray:
    """Deltas laid end to end, float64, by numpy; a tensor that is absent is unchanged."""
    return np.stack(
        [
            np.concatenate([(m.get(k, base[k]).double() - base[k].double()).float().double().reshape(-1) for k in base])
            for m in members
        ]
    )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A base and four members; d has an unchanged matrix."""
    folder = tmp_path_factory.mktemp("fleet")
    made = {name: perturbed(BASE, seed) for seed, name in enumerate("abcd", 1)}
    made["d"]["layer.0.weight"] = BASE["layer.0.weight"]
    return {"base": save(folder / "base", BASE)} | {name: save(folder / name, made[name]) for name in made}


def test_model_directories(fleet: Mapping[str, Path]) -> None:
    base = Base.open(fleet["base"])
    found = member_grams(open_members([fleet[name] for name in "abcd"], base))
    whole = vectors([load_file(fleet[name] / "model.safetensors") for name in "abcd"])
    assert np.allclose(found.total, whole @ whole.T, rtol=1e-10, atol=1e-15)
    assert found.names == tuple("abcd")
    assert set(found.tensors) == set(PICO)
    assert np.allclose(sum(found.tensors.values()), found.total, rtol=1e-12, atol=1e-15)
    assert found.tensors["layer.0.weight"][3].tolist() == [0] * 4


def test_packs_are_compared_by_their_factors(
    fleet: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{name}.kin.safetensors" for name in "ab"]
    for path, name in zip(paths, "ab", strict=True):
        kinfold.pack(fleet["base"], fleet[name], path, codec="truncsvd", budget="12kB")
        kinfold.restore(path, fleet["base"], tmp_path / f"{name}-restored")
    members = open_members([*paths, fleet["c"]], Base.open(fleet["base"]))
    assert members[0].factors("layer.0.weight") is not None
    monkeypatch.setattr(members[0], "delta", _refuse_matrices(members[0].delta))
    found = member_grams(members)
    restored = [load_file(tmp_path / f"{name}-restored" / "model.safetensors") for name in "ab"]
    whole = vectors([*restored, load_file(fleet["c"] / "model.safetensors")])
    assert np.allclose(found.total, whole @ whole.T, rtol=1e-5)  # a restored weight is rounded to the base's float32


def _refuse_matrices(delta):  # type: ignore[no-untyped-def]
    def read(name: str) -> torch.Tensor:
        assert name not in ("layer.0.weight", "layer.1.weight"), f"{name} was multiplied out"
        return delta(name)

    return read


def test_blocks_of_members_give_the_same(fleet: Mapping[str, Path]) -> None:
    base = Base.open(fleet["base"])
    members = open_members([fleet[name] for name in "abcd"], base)
    whole = member_grams(members).total
    for limit in (1, 4 * 96 * 64 * 2 - 1, 4 * 96 * 64 * 3):
        assert np.allclose(member_grams(members, memory_limit=limit).total, whole, rtol=1e-10, atol=1e-15)


def test_few_deltas_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    gram, cross = measure.gram, measure.cross_gram
    monkeypatch.setattr(measure, "gram", lambda block: seen.append(len(block)) or gram(block))
    monkeypatch.setattr(measure, "cross_gram", lambda a, b: seen.append(len(a) + len(b)) or cross(a, b))
    deltas = {str(i): {"w": torch.randn(100, generator=torch.Generator().manual_seed(i))} for i in range(7)}
    found = tensor_grams(deltas, memory_limit=4 * 400)
    assert max(seen) == 4
    rows = np.stack([d["w"].double().numpy() for d in deltas.values()])
    assert np.allclose(found.total, rows @ rows.T, rtol=1e-10)


def test_a_tensor_that_a_member_lacks_counts_as_unchanged(fleet: Mapping[str, Path], tmp_path: Path) -> None:
    made = perturbed(BASE, 9)
    del made["norm.weight"]
    members = open_members([fleet["a"], save(tmp_path / "short", made)], Base.open(fleet["base"]))
    found = member_grams(members)
    whole = vectors([load_file(fleet["a"] / "model.safetensors"), made])
    assert np.allclose(found.total, whole @ whole.T, rtol=1e-10)
    assert found.notes == ("`short` lacks norm.weight: counted as unchanged",)


def test_a_tensor_of_another_shape_is_refused(fleet: Mapping[str, Path], tmp_path: Path) -> None:
    made = perturbed(BASE, 9)
    made["embed.weight"] = torch.cat([made["embed.weight"], made["embed.weight"][:2]])
    members = open_members([fleet["a"], save(tmp_path / "grown", made)], Base.open(fleet["base"]))
    with pytest.raises(AuditError, match=r"`embed.weight` of `.*grown`.*\[64, 48\]") as error:
        member_grams(members)
    assert "kinfold diff" in error.value.hint


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_delta_that_is_not_finite_is_named(fleet: Mapping[str, Path], tmp_path: Path, poison: float) -> None:
    made = perturbed(BASE, 9)
    made["layer.1.bias"][3] = poison
    members = open_members([fleet["a"], save(tmp_path / "broken", made)], Base.open(fleet["base"]))
    with pytest.raises(AuditError, match=r"`layer.1.bias` in `broken`"):
        member_grams(members)


def test_tensors_must_have_the_same_names_and_shapes() -> None:
    one = {"w": torch.ones(2, 3)}
    with pytest.raises(AuditError, match="only one has a tensor `v`"):
        tensor_grams({"a": one, "b": one | {"v": torch.ones(1)}})
    with pytest.raises(AuditError, match=r"`w` is \[3, 2\] in `b` and \[2, 3\] in `a`"):
        tensor_grams({"a": one, "b": {"w": torch.ones(3, 2)}})
