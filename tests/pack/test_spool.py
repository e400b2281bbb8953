"""The spool: what is finished is found again, what is damaged is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kinfold.pack.coding import Coded
from kinfold.pack.spool import Spool

DATA = {0: b"first", 2: b"", 5: b"x" * 1000}


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The `.partial` folder of a run that was killed after three units."""
    spool = Spool(tmp_path / "out", "key")
    for unit, data in DATA.items():
        spool.add(unit, Coded(data, {"k": unit}, 0.5, 2.0))
    spool.data.close()
    return tmp_path / ".out.partial"


def done(folder: Path, key: str = "key") -> dict[int, bytes]:
    spool = Spool(folder.parent / "out", key)
    found = {}
    for unit in spool.done:
        offset, count = spool.place(unit)
        spool.data.seek(offset)
        found[unit] = spool.data.read(count)
    spool.close(remove=False)
    return found


def test_finished_units_are_found_again(half: Path) -> None:
    assert done(half) == DATA
    spool = Spool(half.parent / "out", "key")
    assert (spool.done[5]["params"], spool.done[5]["error"], spool.done[5]["norm"]) == ({"k": 5}, 0.5, 2.0)
    spool.add(1, Coded(b"more"))
    spool.close(remove=False)
    assert done(half) == DATA | {1: b"more"}


def test_another_key_starts_anew(half: Path) -> None:
    assert done(half, "other") == {}
    assert (half / "data").stat().st_size == 0


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_loses_one_unit(half: Path, cut: int) -> None:
    journal = half / "journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert done(half) == {unit: data for unit, data in DATA.items() if unit != 5}


def test_a_line_after_a_torn_one_is_not_lost(half: Path) -> None:
    """A kill in mid-line, a resumed run, another kill: the third run still finds the second's units."""
    journal = half / "journal"
    journal.write_bytes(journal.read_bytes()[:-10])
    spool = Spool(half.parent / "out", "key")
    spool.add(5, Coded(b"again"))
    spool.add(6, Coded(b"six"))
    spool.close(remove=False)
    assert done(half) == {0: b"first", 2: b"", 5: b"again", 6: b"six"}


def test_damaged_data_is_not_believed(half: Path) -> None:
    data = bytearray((half / "data").read_bytes())
    data[2] ^= 1
    (half / "data").write_bytes(data)
    assert done(half) == {unit: data for unit, data in DATA.items() if unit != 0}


def test_data_cut_short_is_not_believed(half: Path) -> None:
    data = (half / "data").read_bytes()
    (half / "data").write_bytes(data[:-1])
    assert done(half).keys() == {0, 2}


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b"7", json.dumps({"unit": 1}).encode()])
def test_a_journal_of_nonsense_starts_anew(half: Path, line: bytes) -> None:
    (half / "journal").write_bytes((half / "journal").read_bytes() + line + b"\n")
    assert done(half) == {}


def test_an_empty_journal_or_none_starts_anew(half: Path) -> None:
    (half / "journal").write_bytes(b"")
    assert done(half) == {}
    (half / "journal").unlink()
    assert done(half) == {}


def test_removal_leaves_nothing(half: Path) -> None:
    Spool(half.parent / "out", "key").close(remove=True)
    assert list(half.parent.iterdir()) == []
