"""A folder of variants into a store: what is packed, what is not packed again, and what a failure leaves alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_ray import FakeRay, install

import kinfold
from kinfold.errors import (
    BudgetError,
    CheckpointError,
    CodecError,
    MissingExtraError,
    OutputError,
    StoreError,
)
from kinfold.pack.write import recipe
from kinfold.store import Packed, PackedAll, Store, many, pack_all, pack_into
from kinfold.store.job import Job, run_job
from models import perturbed, pico, raw, save


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """base, movie, news, tweets; a folder without a model, one hidden, and a file."""
    folder = tmp_path / "fleet"
    save(folder / "base", pico())
    for seed, name in enumerate(("movie", "news", "tweets"), 1):
        save(folder / name, perturbed(pico(), seed))
    (folder / "notes").mkdir()
    save(folder / ".cache", perturbed(pico(), 9))
    (folder / "README.md").write_text("mine")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "store", cache=tmp_path / "cache")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Jobs run in this process."""
    return install(monkeypatch)


def packed(fleet: Path, store: Store, **keywords: Any) -> PackedAll:
    return pack_all(fleet, store, **{"base": fleet / "base", "codec": "exact", "ray": "local", **keywords})


def statuses(report: PackedAll) -> dict[str, str]:
    return {one.name: one.status for one in report.variants}


def versions(store: Store) -> dict[str, int]:
    return {entry.name: entry.version for entry in store.ls()}


ALL = {"base": "base", "movie": "packed", "news": "packed", "tweets": "packed"}


def test_a_folder_in_processes_of_their_own(fleet: Path, store: Store, tmp_path: Path) -> None:
    os.truncate(fleet / "news" / "model.safetensors", 700)  # one of three is broken
    heard: list[Packed] = []
    report = packed(fleet, store, ray=None, workers=1, told=heard.append)
    assert statuses(report) == ALL | {"news": "failed"}
    assert report.skipped == ["notes"]
    assert {one.name for one in heard} == {"base", "movie", "news", "tweets"}
    (broken,) = report.of("failed")
    assert "news" in broken.error
    assert "safetensors" in broken.error
    assert broken.version is None
    assert versions(store) == {"movie": 1, "tweets": 1}
    for name in ("movie", "tweets"):
        kinfold.restore(store.path(name), fleet / "base", tmp_path / name)
        assert raw(tmp_path / name) == raw(fleet / name)


def run_or_die(job: Job, scratch: Path) -> Packed:
    if job.name == "news":
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job, scratch)


def test_a_worker_that_dies_is_a_failure_that_is_listed(
    fleet: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "run_job", run_or_die)
    report = packed(fleet, store, ray=None, workers=1)
    assert statuses(report) == ALL | {"news": "failed"}
    (dead,) = report.of("failed")
    assert "killed" in dead.error
    assert "--workers" in dead.hint


def test_a_rerun_packs_only_what_is_missing(fleet: Path, store: Store, here: FakeRay) -> None:
    assert statuses(packed(fleet, store)) == ALL
    before = store.ls()
    again = packed(fleet, store)
    assert statuses(again) == {"base": "base"} | dict.fromkeys(("movie", "news", "tweets"), "present")
    assert {one.name: one.version for one in again.of("present")} == {"movie": 1, "news": 1, "tweets": 1}
    assert store.ls() == before
    store.rm("news")
    save(fleet / "late", perturbed(pico(), 5))
    expected = {"base": "base", "late": "packed", "movie": "present", "news": "packed", "tweets": "present"}
    assert statuses(packed(fleet, store)) == expected


def test_what_has_changed_is_a_new_version(fleet: Path, store: Store, here: FakeRay) -> None:
    packed(fleet, store)
    save(fleet / "movie", perturbed(pico(), 11))  # other tensors under the same name
    (fleet / "news" / "config.json").write_text('{"model_type": "pico", "labels": 3}')  # another file
    report = packed(fleet, store)
    assert statuses(report) == {"base": "base", "movie": "packed", "news": "packed", "tweets": "present"}
    assert versions(store) == {"movie": 2, "news": 2, "tweets": 1}
    assert statuses(packed(fleet, store)) == {"base": "base"} | dict.fromkeys(("movie", "news", "tweets"), "present")


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"budget": "1/3"},
        {"budget": "rank:2", "codec": "truncsvd"},
        {"options": {"shrink": 0.01}},
        {"codec": "exact", "budget": None},
    ],
)
def test_other_settings_pack_again(fleet: Path, store: Store, here: FakeRay, other: dict[str, Any]) -> None:
    first = {"codec": "fold", "budget": "1/2"}
    assert statuses(packed(fleet, store, **first)) == ALL
    assert packed(fleet, store, **{**first, "budget": " 1/2"}).of("packed") == []  # the same in other words
    assert {one.version for one in packed(fleet, store, **{**first, **other}).of("packed")} == {2}


def test_calibration_counts_as_a_setting() -> None:
    rows = [kinfold.Calibration([{"input_ids": [1, 2, token]}]) for token in (3, 4)]
    found = [recipe("osd", None, "1/2", one, 0) for one in (*rows, None)]
    assert [one["calibration"] for one in found] == [rows[0].digest, rows[1].digest, None]
    assert found[0] != found[1]


def test_another_base_packs_again(fleet: Path, store: Store, here: FakeRay, tmp_path: Path) -> None:
    packed(fleet, store)
    other = save(tmp_path / "other", perturbed(pico(), 20))
    report = packed(fleet, store, base=other)
    assert statuses(report) == dict.fromkeys(("base", "movie", "news", "tweets"), "packed")  # `base` is a variant now
    assert versions(store) == {"base": 1, "movie": 2, "news": 2, "tweets": 2}


def test_what_was_finished_before_an_interrupt_stays(fleet: Path, store: Store, here: FakeRay) -> None:
    def stop(found: Packed) -> None:
        if found.status == "packed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(fleet, store, told=stop)
    (done,) = versions(store)
    report = packed(fleet, store)
    assert [one.name for one in report.of("present")] == [done]
    assert len(report.of("packed")) == 2


def test_failures_are_tried_again(fleet: Path, store: Store, here: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def twice(job: Job, scratch: Path) -> Packed:
        tries.append(job.name)
        if job.name == "news" and tries.count("news") < 3:
            return Packed("news", "failed", error="for now")
        return run_job(job, scratch)

    monkeypatch.setattr(many, "run_job", twice)
    assert statuses(packed(fleet, store, retries=1))["news"] == "failed"
    assert statuses(packed(fleet, store, retries=1)) == {
        "base": "base",
        "movie": "present",
        "news": "packed",
        "tweets": "present",
    }
    assert tries.count("news") == 3
    assert tries.count("movie") == 2


def test_a_ray_worker_that_dies(fleet: Path, store: Store, here: FakeRay) -> None:
    def get(promise: Any) -> Any:
        if promise.given[1].name == "movie":
            raise here.exceptions.RayError("out of memory")
        return promise.function(*promise.given)

    here.get = get  # type: ignore[method-assign]
    report = packed(fleet, store)
    assert statuses(report) == ALL | {"movie": "failed"}
    assert report.of("failed")[0].error == "on Ray: out of memory"


def test_a_fault_of_ours_stops_nobody_else(
    fleet: Path, store: Store, here: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = many.run_job.__globals__["pack_and_add"]

    def broken(base: Path, variant: Path, *given: Any, **settings: Any) -> Any:
        if variant.name == "news":
            raise ZeroDivisionError("oh")
        return real(base, variant, *given, **settings)

    monkeypatch.setitem(many.run_job.__globals__, "pack_and_add", broken)
    report = packed(fleet, store)
    assert statuses(report) == ALL | {"news": "failed"}
    (found,) = report.of("failed")
    assert found.error == "ZeroDivisionError: oh"
    assert found.hint.startswith(f"kinfold pack {fleet / 'base'} {fleet / 'news'} --store {store.url}")


def test_a_folder_that_is_no_name_for_the_store(fleet: Path, store: Store, here: FakeRay) -> None:
    for name in ("my model", "NUL", "x."):
        save(fleet / name, perturbed(pico(), 8))
    report = packed(fleet, store)
    assert {one.name for one in report.of("failed")} == {"my model", "NUL", "x."}
    assert len(report.of("packed")) == 3
    found = next(one for one in report.variants if one.name == "my model")
    assert "letters, digits" in found.error
    assert f"'{fleet}/my model' --store {store.url} --name NAME" in found.hint


def test_the_base_from_the_store(fleet: Path, store: Store, here: FakeRay) -> None:
    store.add(fleet / "base", name="minilm")
    report = packed(fleet, store, base=None)  # its only model
    assert statuses(report) == ALL  # by its tensors, `base` is the base
    assert {entry.base_name for entry in store.ls() if entry.kind == "pack"} == {"minilm"}
    assert kinfold.inspect(store.path("movie")).base == "minilm"
    assert statuses(packed(fleet, store, base="minilm"))["movie"] == "present"


def test_which_base(fleet: Path, store: Store) -> None:
    with pytest.raises(StoreError, match=r"no base is given, and the store at .* has 0 models"):
        pack_all(fleet, store)
    store.add(fleet / "base")
    with pytest.raises(StoreError, match=r"`bse` is neither a model directory nor a model in the store .*: base"):
        pack_all(fleet, store, base="bse")
    store.add(fleet / "movie")
    with pytest.raises(StoreError, match="has 2 models: base, movie"):
        pack_all(fleet, store)
    with pytest.raises(StoreError, match="is no name"):
        pack_all(fleet, store, base="no name")


def test_a_base_of_another_shape(fleet: Path, store: Store, here: FakeRay, tmp_path: Path) -> None:
    wrong = save(tmp_path / "wrong", pico(shapes={"other.weight": (8, 8)}))
    report = packed(fleet, store, base=wrong)
    assert set(statuses(report).values()) == {"failed"}
    assert len(report.variants) == 4


def test_nothing_to_pack(fleet: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"no folder directly in .*empty` is a model directory"):
        pack_all(tmp_path / "empty", store, base=fleet / "base")
    with pytest.raises(StoreError) as caught:
        pack_all(fleet / "movie", store, base=fleet / "base")
    assert "kinfold pack BASE" in caught.value.hint
    with pytest.raises(CheckpointError, match="nowhere` is no folder"):
        pack_all(tmp_path / "nowhere", store, base=fleet / "base")


def test_only_the_base_lies_there(fleet: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (fleet / "base").rename(tmp_path / "alone" / "base")
    report = pack_all(tmp_path / "alone", store, base=tmp_path / "alone" / "base")
    assert statuses(report) == {"base": "base"}


def test_arguments_at_fault(fleet: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = fleet / "base"
    with pytest.raises(StoreError, match="not both"):
        pack_all(fleet, store, base=base, workers=2, ray="local")
    with pytest.raises(StoreError, match="at least 1, got 0"):
        pack_all(fleet, store, base=base, workers=0)
    with pytest.raises(StoreError, match="0 or more, got -1"):
        pack_all(fleet, store, base=base, retries=-1)
    with pytest.raises(BudgetError):
        pack_all(fleet, store, base=base, budget="lots")
    with pytest.raises(CodecError):
        pack_all(fleet, store, base=base, codec="ods")
    with pytest.raises(StoreError, match="no store"):
        pack_all(fleet, tmp_path / "none", base=base)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError):
        pack_all(fleet, store, base=base, ray="local")


def test_a_store_that_cannot_be_written_is_refused_before_the_work(
    fleet: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "run_here", lambda *_: pytest.fail("packed for nothing"))
    leases = Path(store.url) / "leases"
    if leases.is_dir():
        leases.rmdir()
    leases.write_text("a file where a folder belongs: not even root can write below it")
    with pytest.raises(OutputError):
        pack_all(fleet, store, base=fleet / "base")
    with pytest.raises(OutputError):
        pack_into(fleet / "base", fleet / "movie", store)


def test_one_into_the_store(fleet: Path, store: Store, tmp_path: Path) -> None:
    both = pack_into(fleet / "base", fleet / "movie", store, codec="exact")
    assert (both.added.name, both.added.version) == ("movie", 1)
    assert both.pack.file_bytes == both.added.bytes
    store.add(fleet / "base")
    kept = tmp_path / "kept.kin.safetensors"
    both = pack_into("base", fleet / "movie", store, name="film", out=kept, codec="exact")
    assert (both.added.name, both.pack.path) == ("film", str(kept))
    assert kept.read_bytes() == store.get("film", tmp_path / "film.kin.safetensors").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        pack_into("base", fleet / "movie", store, name="film", out=kept, codec="exact")
    with pytest.raises(StoreError, match="is no name"):
        pack_into("base", fleet / "movie", store, name="../film")
    with pytest.raises(CheckpointError):
        pack_into("base", fleet / "nowhere", store)
    assert versions(store) == {"base": 1, "film": 1, "movie": 1}
