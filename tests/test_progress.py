"""What scripts show while they work, where there is no terminal: a line on stderr now and then, no bar."""

from __future__ import annotations

import itertools

import pytest

from command_line import progress


@pytest.mark.parametrize(
    ("work", "steps", "each", "lines"),
    [
        (
            ("masks", 200, "masks", 0),
            100,
            2,
            ["masks: 20 of 200 masks (10 %), 10 s", "masks: 140 of 200 masks (70 %), 70 s"],
        ),
        (("masks", 200, "masks", 0), 5, 40, []),  # over soon
        (("archive.zip", None, "B", 5_000_000), 12, 1_000_000, ["archive.zip: 15 MB, 10 s"]),
    ],
)
def test_the_first_line_comes_early_and_then_one_a_minute(monkeypatch, capsys, work, steps, each, lines):
    seconds = itertools.count()  # a clock that is a second later each time one looks
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
    description, total, unit, done = work
    with progress.bar(description, total, unit=unit, done=done) as advance:
        for _ in range(steps):
            advance(each)
    printed, said = capsys.readouterr()
    assert printed == "" and said.splitlines() == lines
