"""README's PyTorch section, run as it stands: its blocks in order, in a folder with a small prepared set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from masksets import CHECKOUT
from prepared_set import write_lists, write_set

README = CHECKOUT / "README.md"


def test_the_examples_run(tmp_path, monkeypatch):
    section = (
        README.read_text(encoding="utf-8").partition("<!-- pytorch -->")[2].partition("<!-- /pytorch -->")[0]
    )
    blocks = re.findall(r"^```(python|shell)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    write_set(tmp_path / "data")
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation").symlink_to(CHECKOUT / "evaluation")

    names = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(README), "exec"), names)
        else:
            done = subprocess.run(
                ["bash", "-e", "-c", block], capture_output=True, text=True, check=False, timeout=240
            )
            assert done.returncode == 0, done.stderr

    assert names["dataset"].classes[1].name == "goldfish"
    assert names["scores"].compute(names["match"])["mIoU"] >= 0
    assert (names["target"].any(), names["void"].any()) == (True, True)
    assert len(json.loads(Path("results/mymodel.json").read_text())) == 51
    assert json.loads(Path("localization.json").read_text())["images"] == 4
