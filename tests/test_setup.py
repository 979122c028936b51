"""setup.sh: when it makes .venv, and what it installs there; a stand-in for Python notes what it is asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

# Its venv is a copy of itself; `import imagenets` works where it was installed from the checkout.
STAND_IN = """\
#!/usr/bin/env bash
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
printf '%s\\n' "$*" >>"$NOTES"
case "$*" in
    "-m venv"*)
        for folder; do :; done
        rm -rf "$folder"
        mkdir -p "$folder/bin"
        cp "${BASH_SOURCE[0]}" "$folder/bin/python"
        ;;
    "-m pip install"*" -e "*) touch "$here/library" ;;
    *"import imagenets"*) [ -e "$here/library" ] ;;
    *"import pip"*) [ ! -e "$here/without-pip" ] ;;
    "-m ensurepip"*) rm "$here/without-pip" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "a checkout"
    root.mkdir()
    for path in (CHECKOUT / "setup.sh", CHECKOUT / "pyproject.toml", *CHECKOUT.glob("requirements*.txt")):
        shutil.copy(path, root)
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return root


def run(checkout, *arguments):
    """Run setup.sh; return how it ended, and the lines of what Python was asked to make and install."""
    notes = checkout.parent / "notes"
    notes.write_text("")
    env = {**os.environ, "BASE_PYTHON": str(checkout.parent / "python"), "NOTES": str(notes)}
    command = ["bash", checkout / "setup.sh", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done, [line for line in notes.read_text().splitlines() if line.startswith("-m")]


def set_up(checkout, *arguments):
    done, asked = run(checkout, *arguments)
    assert done.returncode == 0, done.stderr
    return asked


def test_an_environment_is_made_once_and_serves_all_that_it_has_the_packages_of(checkout):
    made, installed = set_up(checkout)
    assert made == f"-m venv --clear {checkout}/.venv"
    assert f"-c {checkout}/requirements-tested.txt" in installed
    assert installed.endswith(f" -e {checkout}[report,kmeans]")
    assert set_up(checkout) == []
    assert set_up(checkout, "dev")[-1].endswith(f" -e {checkout}[dev]")
    assert set_up(checkout) == set_up(checkout, "methods") == set_up(checkout, "dev") == []
    (checkout / ".venv/.installed").unlink()  # of an installation that was stopped
    assert set_up(checkout, "dev")[-1].endswith(f" -e {checkout}[dev]")


def test_environment_without_its_interpreter_is_made_again(checkout):
    set_up(checkout)
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert set_up(checkout)[0].startswith("-m venv")
    assert set_up(checkout) == []


@pytest.mark.parametrize("leads", [True, False], ids=["to another environment", "nowhere"])
def test_a_link_to_another_environment_is_refused_and_nothing_done_there(checkout, leads):
    other = checkout.with_name("other")
    if leads:
        set_up(checkout)
        (checkout / ".venv").rename(other)
        (other / ".installed").write_text("user\nof another checkout\n")
    (checkout / ".venv").symlink_to(other)
    before = sorted(other.rglob("*"))
    done, asked = run(checkout)
    assert (done.returncode, asked, len(done.stderr.splitlines())) == (1, [], 1)
    assert done.stderr.startswith(f"error: {checkout}/.venv is a symbolic link to {other}")
    assert f"(rm {checkout}/.venv)" in done.stderr
    assert sorted(other.rglob("*")) == before and (checkout / ".venv").is_symlink()


def test_a_file_in_the_environments_place_is_kept(checkout):
    (checkout / ".venv").write_text("precious")
    done, _ = run(checkout)
    assert done.returncode == 1 and "is a file" in done.stderr
    assert (checkout / ".venv").read_text() == "precious"


def test_an_environment_without_pip_gets_it_and_keeps_what_is_in_it(checkout):
    set_up(checkout)
    (checkout / ".venv/.installed").unlink()
    (checkout / ".venv/bin/without-pip").touch()
    (checkout / ".venv/mine").touch()
    made, installed = set_up(checkout)
    assert made == "-m ensurepip" and installed.startswith("-m pip install")
    assert (checkout / ".venv/mine").exists()


def test_moved_checkout_is_installed_from_where_it_is(checkout):
    set_up(checkout)
    moved = checkout.rename(checkout.with_name("elsewhere"))
    assert set_up(moved)[-1].endswith(f" -e {moved}[report,kmeans]")


def test_a_users_environment_becomes_one_for_methods_and_keeps_its_torchvision(checkout):
    """The tested torch gives way to the one that fits torchvision; the environment is not made anew."""
    set_up(checkout)
    (installed,) = set_up(checkout, "methods")
    assert installed.endswith(f" -e {checkout}[methods]")
    pins = "".join(Path(name).read_text() for name in re.findall(r"-c (.*?\.txt)", installed))
    assert "torch==2.13.0" not in pins and "torch==2.14.1" in pins and "numpy==" in pins
    with (checkout / "requirements-tested.txt").open("a") as file:
        file.write("tqdm==4.70.1\n")
    assert set_up(checkout)[-1].endswith(f" -e {checkout}[methods]")
    assert set_up(checkout) == []


@pytest.mark.parametrize("arguments", [["torchvision"], ["methods", "dev"], ["--help"]])
def test_unknown_kind_is_wrong_usage(checkout, arguments):
    done, _ = run(checkout, *arguments)
    assert (done.returncode, done.stderr) == (2, "usage: bash setup.sh [methods|zero-shot|dev]\n")
    assert not (checkout / ".venv").exists()
