"""The command line of every script: what it is for, a text for every option, a mistyped one."""

from __future__ import annotations

import argparse
import importlib
import re
import sys

import pytest
from masksets import CHECKOUT

from command_line.arguments import parse

FOLDERS = ("datapreparation", "evaluation", "methods", "demo", "benchmarks")
SCRIPTS = sorted(
    f"{folder}.{path.stem}"
    for folder in FOLDERS
    for path in (CHECKOUT / folder).glob("*.py")
    if "__main__" in path.read_text()
)


class SeenError(Exception):
    """Carries the parser of a script that was about to parse."""


def parsing(script):
    """Import a script and give the function of it that parses the command line first of all."""
    if script.startswith(("methods", "benchmarks")):
        pytest.importorskip("torchvision")
        pytest.importorskip("timm")
    module = importlib.import_module(script)
    return getattr(module, "parse_arguments", getattr(module, "main", None))


def parser_of(script, monkeypatch):
    """The parser that a script makes, in this process: as many processes would load PyTorch as often."""

    def seen(parser, *_):
        raise SeenError(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", seen)
    monkeypatch.setattr(sys, "argv", [script])
    with pytest.raises(SeenError) as caught:
        parsing(script)()
    return caught.value.args[0]


def without_default(text):
    """A help text but for what it says of the default, which tells nobody what the option is for."""
    return re.sub(r"\(default:[^()]*\)|^default:.*", "", text or "").strip()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_says_what_it_is_for(script, monkeypatch):
    parser = parser_of(script, monkeypatch)
    assert without_default(parser.description)
    bare = [
        "/".join(action.option_strings) or action.dest
        for action in parser._actions
        if not without_default(action.help)
    ]
    assert not bare, f"{script}: no help for {', '.join(bare)}"
    assert parser.format_help().startswith("usage: ")


def test_help_texts_are_broken_between_words_only(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", help="the folder " + "of a --save-dir or open_clip_pytorch_model.bin " * 4)
    with pytest.raises(SystemExit, match="0"):
        parse(parser, ["--help"])
    printed = capsys.readouterr().out
    assert printed.count("--save-dir") == printed.count("open_clip_pytorch_model.bin") == 4


@pytest.mark.parametrize("script", [name for name in SCRIPTS if not name.startswith("benchmarks")])
def test_a_mistyped_flag_is_told_with_the_one_that_was_meant(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--hepl"])
    with pytest.raises(SystemExit, match="2"):
        parsing(script)()
    assert "unrecognized arguments: --hepl; did you mean --help?" in capsys.readouterr().err
