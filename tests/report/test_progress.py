"""Sizes for people, and a bar that is silent off a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from kinfold.report import progress as module
from kinfold.report.progress import progress, size, told


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1500, "1.5 kB"),
        (83_233, "83.2 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (2_660_000, "2.66 MB"),
        (90_856_960, "90.9 MB"),
        (13_000_000_000, "13 GB"),
        (2_400_000_000_000, "2400 GB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("encode", 10) as advance:
        advance(5, 1)
        advance(5)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stand_in = Terminal()
    monkeypatch.setattr(sys, "stderr", stand_in)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return stand_in


def test_progress_shows_bytes_saved_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress("encode", 2_000_000) as advance:
        advance(1_000_000, 100_000)
        advance(1_000_000, 100_000)
    assert "encode" in terminal.getvalue()
    assert "1.8 MB saved" in terminal.getvalue()


def test_only_the_outermost_bar_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress("compare", 10) as outer:
        with progress("encode", 5) as inner:
            inner(5)
        outer(10)
    assert "compare" in terminal.getvalue()
    assert "encode" not in terminal.getvalue()
    with progress("encode", 5) as advance:
        advance(5)
    assert "encode" in terminal.getvalue()


def test_who_is_told_hears_of_the_outermost_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(module, "_PAUSE", 0)
    heard: list[tuple[str, int, int]] = []
    with told(lambda *facts: heard.append(facts)):
        with progress("encode", 10) as outer, progress("within", 5) as inner:
            inner(5)
            outer(4, 1)
            outer(6)
        with progress("hash", 3) as advance:
            advance(3)
    assert heard == [("encode", 0, 10), ("encode", 4, 10), ("encode", 10, 10), ("hash", 0, 3), ("hash", 3, 3)]
    assert terminal.getvalue() == ""
    with progress("encode", 5) as advance:
        advance(5)
    assert len(heard) == 5
