"""What the pages show is so: docs' Python runs as it stands, and every flag that a page names is there.

README's walkthrough is run, and its output compared, where the demo is: test_demo.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from masksets import CHECKOUT
from prepared_set import write_lists, write_set

PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
PYTHON_PAGE = CHECKOUT / "docs/python.md"
SCRIPT = re.compile(r"\b((?:datapreparation|evaluation|methods|benchmarks)/\w+\.(?:py|sh))\b")


def blocks(page, *kinds):
    """List the fenced blocks of these kinds as (kind, text), in their order."""
    pattern = rf"^```({'|'.join(kinds)})\n(.*?)^```$"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_docs_python_runs(tmp_path, monkeypatch):
    write_set(tmp_path / "prepared")
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation").symlink_to(CHECKOUT / "evaluation")

    names = {"help": lambda module: module.__doc__}
    for kind, block in blocks(PYTHON_PAGE, "python", "shell"):
        if kind == "python":
            exec(compile(block, str(PYTHON_PAGE), "exec"), names)
        else:
            command = ["bash", "-e", "-c", block]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
            assert done.returncode == 0, done.stderr

    assert names["dataset"].classes[1].name == "goldfish"
    assert names["scores"].compute(names["match"])["mIoU"] >= 0
    assert (names["target"].any(), names["void"].any()) == (True, True)
    assert json.loads(Path("localization.json").read_text())["images"] == 4


def commands(page):
    """List the commands of a page's shell blocks, each on one line."""
    text = "".join(block for _, block in blocks(page, "shell")).replace("\\\n", " ")
    return [line for line in text.splitlines() if SCRIPT.search(line)]


@pytest.fixture
def help_of(monkeypatch, capsys):
    """Return what a script's --help prints."""

    @cache
    def ask(script):
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        module = import_module(script.removesuffix(".py").replace("/", "."))
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return ask


def test_scripts_and_flags_of_the_pages_are_there(help_of):
    wrong = []
    for page in PAGES:
        for script in SCRIPT.findall(page.read_text(encoding="utf-8")):
            if not (CHECKOUT / script).exists():
                wrong.append(f"{page.name}: {script}")
        for command in commands(page):
            script = SCRIPT.search(command)[1]
            flags = re.findall(r"(?<=\s)--[a-z-]+", command.partition(script)[2])
            if flags and script.endswith(".py") and (CHECKOUT / script).exists():
                wrong += [
                    f"{page.name}: {script} {f}" for f in flags if not re.search(rf"{f}\b", help_of(script))
                ]
    assert wrong == []
