"""The command line of every script: what it is for, a text for every option, a mistyped one."""

from __future__ import annotations

import argparse
import re

import pytest
from masksets import CHECKOUT, in_process

from command_line.arguments import parse

FOLDERS = ("datapreparation", "evaluation", "methods", "demo", "benchmarks")
SCRIPTS = sorted(
    str(path.relative_to(CHECKOUT))
    for folder in FOLDERS
    for path in (CHECKOUT / folder).glob("*.py")
    if "__main__" in path.read_text()
)


def without_default(text):
    """A help text without what it says of the default, which tells nobody what the option is for."""
    return re.sub(r"\(default:[^()]*\)|^default:.*", "", text or "").strip()


@pytest.fixture(params=SCRIPTS)
def script(request):
    if request.param.startswith(("methods", "benchmarks")):
        pytest.importorskip("torchvision")
        pytest.importorskip("timm")
    return request.param


def test_every_option_says_what_it_is_for(script, monkeypatch):
    parsers = []

    def seen(parser, *_):
        parsers.append(parser)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", seen)
    assert in_process(script).returncode == 0
    (parser,) = parsers
    assert without_default(parser.description)
    bare = [
        "/".join(action.option_strings) or action.dest
        for action in parser._actions
        if not without_default(action.help)
    ]
    assert bare == [], "no help"
    assert parser.format_help().startswith("usage: ")


def test_help_texts_are_broken_between_words_only(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", help="the folder " + "of a --save-dir or open_clip_pytorch_model.bin " * 4)
    with pytest.raises(SystemExit, match="0"):
        parse(parser, ["--help"])
    printed = capsys.readouterr().out
    assert printed.count("--save-dir") == printed.count("open_clip_pytorch_model.bin") == 4


def test_a_mistyped_flag_is_told_with_the_one_that_was_meant(script):
    done = in_process(script, "--hepl")
    assert done.returncode == 2
    if not script.startswith("benchmarks"):
        assert "unrecognized arguments: --hepl; did you mean --help?" in done.stderr
