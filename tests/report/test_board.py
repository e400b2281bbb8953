"""Several works side by side on a terminal; nothing off it."""

from __future__ import annotations

import io
import sys

import pytest

from kinfold.report.board import board


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_board_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with board("pack", 2) as shown:
        shown.running("movie", "encode", 1, 2)
        shown.finished("movie")
    assert capsys.readouterr() == ("", "")


def test_a_line_for_each_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with board("pack", 3) as shown:
        shown.running("[movie]", "hash", 0, 0)
        shown.running("[movie]", "encode", 5, 10)
        shown.running("news", "hash", 1, 4)
        print("movie: packed", file=sys.stderr)
        shown.finished("[movie]")
        shown.finished("never begun")
    said = terminal.getvalue()
    assert "[movie]" in said  # a name that looks like markup
    for words in ("news", "encode", "50%", "2/3", "movie: packed"):
        assert words in said
