"""The audit of members as they lie on disk, or as tensors."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kinfold
import kinfold.audit
from kinfold.audit.dominance import DominanceReport, GramHistory, dominance, members_in
from kinfold.errors import AuditError, CheckpointError, WrongBaseError
from kinfold.pack.member import Base
from models import Tensors, pico, save

BASE = pico()
COUNT = 5


def fine_tunes(seed: int = 0) -> list[Tensors]:
    """Deltas of independent noise, as fine-tunes of unlike tasks nearly are."""
    generator = torch.Generator().manual_seed(seed)
    return [{k: 1e-3 * torch.randn(t.shape, generator=generator) for k, t in BASE.items()} for _ in range(COUNT)]


def dictated(deltas: list[Tensors]) -> list[Tensors]:
    """The last member publishes N times its own delta minus the others' sum."""
    own = deltas[-1]
    return [*deltas[:-1], {k: COUNT * own[k] - sum(d[k] for d in deltas[:-1]) for k in own}]


def write(folder: Path, deltas: list[Tensors]) -> list[Path]:
    return [save(folder / f"m{i}", {k: BASE[k] + d[k] for k in d}) for i, d in enumerate(deltas)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("base") / "base", BASE)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("honest"), fine_tunes())


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("attacked"), dictated(fine_tunes()))


def test_the_function_is_what_the_package_exports() -> None:
    assert kinfold.audit.dominance is dominance
    assert callable(kinfold.audit.dominance)
    module = importlib.import_module("kinfold.audit.dominance")
    assert module.DominanceReport is DominanceReport
    assert kinfold.audit.dominance is dominance  # importing the module has not put it in the function's place


def test_an_honest_family_is_clean(base: Path, honest: list[Path]) -> None:
    found = kinfold.audit.dominance(honest, base=base)
    assert found.verdict == "clean"
    assert [member.name for member in found.members] == [f"m{i}" for i in range(COUNT)]


def test_a_dictator_among_model_directories_is_found(base: Path, attacked: list[Path]) -> None:
    found = dominance({path.name.upper(): path for path in attacked}, base=Base.open(base))
    assert found.flagged == ("M4",)
    assert found.members[4].cancellation == pytest.approx(-1, abs=0.1)
    assert found.members[4].worst_tensor in BASE


def test_the_merge_by_mean_is_the_dictators_own_delta(attacked: list[Path]) -> None:
    own, models = fine_tunes()[-1], [load_file(path / "model.safetensors") for path in attacked]
    for name, start in BASE.items():
        mean = sum((m[name] - start).double() for m in models) / COUNT
        assert (mean - own[name].double()).abs().max() < 1e-6


def test_a_dictator_is_found_through_packs(base: Path, attacked: list[Path], tmp_path: Path) -> None:
    packs = [tmp_path / f"{path.name}.kin.safetensors" for path in attacked]
    for path, pack in zip(attacked, packs, strict=True):
        kinfold.pack(base, path, pack, codec="fold" if path.name == "m1" else "truncsvd", budget="24kB")
    found = dominance([*packs[:-1], attacked[-1]], base=base)
    assert found.flagged == ("m4",)


def test_deltas_as_tensors_need_no_base(base: Path, attacked: list[Path]) -> None:
    found = dominance({f"m{i}": d for i, d in enumerate(dictated(fine_tunes()))})
    there = dominance(attacked, base=base)
    assert found.flagged == there.flagged
    assert [m.deviation for m in found.members] == pytest.approx([m.deviation for m in there.members], rel=1e-4)


def test_weights_by_name_are_those_in_order(base: Path, honest: list[Path]) -> None:
    weights = [1.0, 2, 3, 4, 5]
    named = {f"m{i}": weight for i, weight in reversed(list(enumerate(weights)))}
    assert dominance(honest, base=base, weights=named) == dominance(honest, base=base, weights=weights)


def test_a_history_is_passed_on() -> None:
    messages = torch.randn(10, COUNT, 50, generator=torch.Generator().manual_seed(0)).double().numpy()
    found = dominance({f"m{i}": d for i, d in enumerate(fine_tunes())}, history=GramHistory.of(messages.cumsum(0)))
    assert all(abs(member.lag_cancellation) < 0.3 for member in found.members)


def test_references_are_folders_or_lists(base: Path, attacked: list[Path], tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"family{number}", fine_tunes(seed=number + 1))
    first, second = tmp_path / "family0", tmp_path / "family1"
    (first / "notes.txt").write_text("no member")
    found = dominance(attacked, base=base, reference=[first, members_in(second)], alpha=0.4)
    assert found.references == 2
    assert found.members[4].p_values["deviation"] == pytest.approx(1 / 3)
    assert "reference" in found.members[4].flags


def test_parts_of_the_family_are_no_reference(base: Path, honest: list[Path]) -> None:
    with pytest.raises(AuditError, match="two of the families"):
        dominance(honest, base=base, reference=[honest[:3]])


def test_a_reference_folder_must_hold_members(base: Path, honest: list[Path], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AuditError, match="holds 0 members"):
            dominance(honest, base=base, reference=[folder])


def test_a_pack_of_another_base_is_refused(base: Path, honest: list[Path], tmp_path: Path) -> None:
    other = save(tmp_path / "other", pico(seed=5))
    kinfold.pack(base, honest[0], tmp_path / "m.kin.safetensors", budget="24kB")
    with pytest.raises(WrongBaseError, match="fingerprint"):
        dominance([tmp_path / "m.kin.safetensors", honest[1]], base=other)


def test_bad_input_gets_one_sentence(base: Path, honest: list[Path], tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="1 members were given") as error:
        dominance(honest[:1], base=base)
    assert "kinfold audit dominance" in error.value.hint
    with pytest.raises(AuditError, match="no base was given"):
        dominance(honest)
    with pytest.raises(AuditError, match="two members are called `m0`"):
        dominance([honest[0], honest[0]], base=base)
    with pytest.raises(CheckpointError, match="nowhere"):
        dominance([honest[0], tmp_path / "nowhere"], base=base)
    with pytest.raises(AuditError, match="`m9` is a member without a weight"):
        dominance(honest, base=base, weights={f"m{i}": 1.0 for i in range(4)} | {"m4": 1, "m9": 1})
    with pytest.raises(AuditError, match="of one kind"):
        dominance({"a": honest[0], "b": BASE}, base=base)  # type: ignore[dict-item]
    with pytest.raises(AuditError, match="call `judge`"):
        dominance({"a": BASE, "b": BASE}, reference=[honest])
