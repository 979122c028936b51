"""What scripts show while they work, where there is no terminal: a line on stderr now and then, no bar."""

from __future__ import annotations

import itertools

import pytest

from command_line import progress
from command_line.progress import bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that is a second later each time one looks."""
    seconds = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))


def test_the_first_line_comes_early_and_then_one_a_minute(clock, capsys):
    with bar("masks", 200, unit="masks") as advance:
        for _ in range(100):
            advance(2)
    printed, lines = capsys.readouterr()
    assert printed == ""
    assert lines.splitlines() == [
        "masks: 20 of 200 masks (10 %), 10 s",
        "masks: 140 of 200 masks (70 %), 70 s",
    ]


def test_what_is_over_soon_says_nothing(clock, capsys):
    with bar("masks", 200, unit="masks") as advance:
        for _ in range(5):
            advance(40)
    assert capsys.readouterr() == ("", "")


def test_of_a_download_whose_size_nobody_knows_the_megabytes(clock, capsys):
    with bar("archive.zip", None, unit="B", done=5_000_000) as advance:
        for _ in range(12):
            advance(1_000_000)
    assert capsys.readouterr().err == "archive.zip: 15 MB, 10 s\n"
