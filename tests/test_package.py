"""The package: its map, its public names, and the wheel in an environment of its own."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import imagenets

CHECKOUT = Path(__file__).resolve().parents[1]
LIBRARY = CHECKOUT / "imagenets"
MODULES = sorted(LIBRARY.rglob("*.py"))
_FLAG = re.compile(r"(^|[^\w-])--[a-z]")
_QUOTED = re.compile(r"``[^`]*``")


def test_public_names_are_there_and_known_to_type_checkers():
    assert all(getattr(imagenets, name) is not None for name in imagenets.__all__)
    assert set(imagenets.__all__) <= set(dir(imagenets))
    source = (LIBRARY / "__init__.py").read_text(encoding="utf-8")
    typed = re.findall(r"^    from (imagenets\.[\w.]+) import (\w+) as \2$", source, re.MULTILINE)
    assert sorted(typed) == sorted((imagenets._MODULES[name], name) for name in imagenets.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        imagenets.nonsense  # noqa: B018


def test_every_package_and_module_is_on_the_map():
    on_map = re.findall(r"``(\w+)``", imagenets.__doc__)
    packages = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert (packages | {path.stem for path in LIBRARY.glob("*.py")}) - {"__init__"} <= set(on_map)
    there = {path.stem for path in LIBRARY.rglob("*")} | {"methods"}
    assert {name for name in on_map if name.islower()} <= there, "the map names what is not there"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_the_library_names_no_flag_prints_nothing_and_ends_nothing(path):
    """Scripts spell flags, print and exit; docstrings may quote a command between double backquotes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = {node.value: node.lineno for node in ast.walk(tree) if _is_text(node)}
    assert [line for text, line in strings.items() if _FLAG.search(_QUOTED.sub("", text))] == []
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {alias.name for node in imports for alias in node.names}
    imported |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    # Worker processes have no script to end them.
    ends = set() if path == LIBRARY / "common/workers.py" else {"os._exit", "atexit"}
    assert not (names | imported) & {"print", "exit", "quit", "sys.exit", "argparse", *ends}


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is written into the checkout and nothing old is taken from it."""
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(LIBRARY, source / "imagenets", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    assert wheel.name == f"imagenets-{imagenets.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert {name.split("/")[0] for name in names} == {"imagenets", metadata.split("/")[0]}
    ours = {
        str(path.relative_to(CHECKOUT))
        for path in LIBRARY.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("imagenets/")} == ours
    assert "License-Expression: MIT\n" in text and "Provides-Extra: methods\n" in text


def test_the_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    """Away from the checkout; the packages it depends on are this environment's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    program = (
        "import imagenets; from importlib.metadata import version; from imagenets.reporting import html\n"
        "print(imagenets.__file__); print(version('imagenets')); imagenets.decode_mask; imagenets.published()"
    )
    command = [tmp_path / "env/bin/python", "-I", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / "imagenets" / "__init__.py"), imagenets.__version__]


def test_the_citation_names_this_version():
    citation = (CHECKOUT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {imagenets.__version__}\n" in citation
