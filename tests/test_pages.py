"""The pages: links and pointers lead somewhere, docs' Python runs as it stands, flags named there exist.

README's walkthrough is run, and its output compared, where the demo is: test_demo.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from masksets import CHECKOUT, in_process
from prepared_set import write_lists, write_set

DOCS = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
PAGES = [*DOCS, CHECKOUT / "CONTRIBUTING.md"]
PYTHON_PAGE = CHECKOUT / "docs/python.md"
# "docs/benchmark.md, Object size)": the topic is a heading of that page.
POINTER = re.compile(r"docs/(\w+)\.md(?:, ([A-Z][^.,;:()`]*))?")
SCRIPT = re.compile(r"\b((?:datapreparation|evaluation|methods|benchmarks)/\w+\.(?:py|sh))\b")


def headings(page):
    return set(re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE))


def anchor(heading):
    """GitHub's name of a heading: lower case, words joined by hyphens, everything else dropped."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pointers_in_the_code_name_a_section_that_is_there():
    sections = {page.stem: headings(page) for page in PAGES}
    lost = []
    for folder in ("imagenets", "command_line", "datapreparation", "evaluation", "methods", "demo", "tests"):
        for file in sorted((CHECKOUT / folder).rglob("*.py")):
            text = re.sub(r"\s+", " ", file.read_text(encoding="utf-8"))
            for page, topic in POINTER.findall(text):
                known = sections.get(page, set())
                if topic:
                    known = {n for n in known if topic.startswith(n) or topic.lower() in n.lower()}
                if not known:
                    lost.append(f"{file.name}: docs/{page}.md, {topic}")
    assert lost == []


def test_contributing_names_files_that_are_there():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:imagenets|command_line|tests|benchmarks|methods|docs)/[\w./]*)`", text)
    assert [name for name in named if "NAME" not in name and not (CHECKOUT / name).exists()] == []
    assert len(named) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page):
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, section = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (section and section not in map(anchor, headings(file))):
            lost.append(target)
    assert lost == []


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


@cache
def help_of(script):
    done = in_process(script, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_scripts_and_flags_of_the_pages_are_there(page):
    scripts = SCRIPT.findall(page.read_text(encoding="utf-8"))
    assert [script for script in scripts if not (CHECKOUT / script).exists()] == []
    for command in commands(page):
        script = SCRIPT.search(command)[1]
        flags = re.findall(r"(?<=\s)--[a-z-]+", command.partition(script)[2])
        if flags and script.endswith(".py"):
            wrong = [flag for flag in flags if not re.search(rf"{flag}\b", help_of(script))]
            assert wrong == [], command
