"""What points into the pages of docs/ finds its page and its section."""

from __future__ import annotations

import re

import pytest
from masksets import CHECKOUT

PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
# "docs/benchmark.md, Object size)": the topic is a heading of that page.
POINTER = re.compile(r"docs/(\w+)\.md(?:, ([A-Z][^.,;:()`]*))?")


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
