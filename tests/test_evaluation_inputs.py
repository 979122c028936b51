"""What the scoring scripts were given: told in results, held against each other, and forgiven where meant."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from masksets import in_process, random_images, table_of, write_mask, write_pairs

import imagenets
from command_line import progress
from imagenets.common.errors import InputError
from imagenets.common.whole_files import whole_file
from imagenets.scoring import table_cache
from imagenets.scoring.matching import find_matching, read_matching
from imagenets.scoring.matching_record import image_digests, made_of_others, write_record
from imagenets.scoring.pairs import check_predict_dir, find_pairs, read_names

NAME = "n00000001/image_1.png"


@pytest.fixture
def images():
    return random_images(np.random.default_rng(0), 5, 3, 3)


def test_a_matching_of_other_predictions_warns_and_says_of_how_many(tmp_path, images):
    table = table_of(images)
    matching = find_matching(table, "image", 3, 3)
    path = tmp_path / "m.json"
    path.write_text(matching.text())
    assert made_of_others(read_matching(path, 3), table) is None, "no record"
    write_record(path, matching, table)
    known = read_matching(path, 3)
    assert made_of_others(known, table) is None
    truth, prediction = images[2]
    changed = table_of([*images[:2], (truth, np.full_like(prediction, 3)), *images[3:]])
    assert "1 of these 5 pairs" in made_of_others(known, changed)
    assert len(set(image_digests(table))) == 5
    for spoilt in ("", "{}", "[]", '{"format": 1}'):
        (tmp_path / "m.made-of.json").write_text(spoilt)
        assert made_of_others(known, changed) is None
    write_record(path, matching, table)
    path.write_text('{"0": 0, "1": 1, "2": 2, "3": 3}\n')
    assert made_of_others(read_matching(path, 3), changed) is None, "a record of another matching"


def test_results_say_what_they_were_made_of(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path, images)

    def call(script, *arguments, status=0):
        common = ("--gt-dir", "gt", "--mode", 50, "--workers", 0)
        done = in_process(f"evaluation/{script}", *common, *arguments)
        assert done.returncode == status, done.stderr
        return done.stderr

    call("match.py", "--predict-dir", "pred", "--session-name", "m")
    (tmp_path / "some.txt").write_text(f"n1/x.JPEG {NAME}\nn00000000/image_0.JPEG n00000000/image_0.JPEG\n")
    # m.json, though it lies in results/; two columns, as in the official lists; a part of the same masks.
    options = ("--match", "m.json", "--names", "some.txt", "--output", "s.json")
    assert call("evaluator.py", "--predict-dir", "pred", *options).count("warning") == 1, "absent classes"
    result = json.loads((tmp_path / "s.json").read_text())
    digest = hashlib.sha256((tmp_path / "results/m.json").read_bytes()).hexdigest()
    assert (result["toolbox"], result["matching_sha256"]) == (imagenets.__version__, digest)
    assert (result["predict_dir"], result["gt_dir"], result["images"]) == ("pred", "gt", 2)
    shutil.copytree("pred", "other")
    write_mask(tmp_path / "other" / NAME, np.zeros((1, 1), int))
    sides = ("--a", "pred,m", "--b", "other,m", "--bootstrap", 2, "--output", "c.json", "--problems", "p.txt")
    assert "all 1: p.txt" in call("compare.py", *sides, status=1)
    assert f"other/{NAME}" in (tmp_path / "p.txt").read_text()
    write_mask(tmp_path / "other" / NAME, np.full(images[1][0].shape, 7))
    assert call("compare.py", *sides).count("made of other masks: 1 of these 5") == 1
    result = json.loads((tmp_path / "c.json").read_text())
    assert (result["gt_dir"], result["toolbox"]) == ("gt", imagenets.__version__)
    assert [result[side]["runs"][0]["matching_sha256"] for side in "ab"] == [digest, digest]


def test_a_wrong_flag_is_named_and_the_right_one_guessed():
    done = in_process("evaluation/evaluator.py", "--pred-dir", "pred", "--gt-dir", "gt")
    assert done.returncode == 2
    assert "--pred-dir; did you mean --predict-dir?" in done.stderr


def test_names_of_official_lists(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("n1/a.JPEG n2/a.JPEG\nn1/b.JPEG n1/b.png\nn3/c d.png\n")
    assert read_names(path) == ["n2/a.png", "n1/b.png", "n3/c d.png"]


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError("the source is cut short"), None),
        (OSError(errno.EIO, "Input/output error"), None),
        (OSError(errno.EACCES, "Permission denied", "source"), "source"),
        (OSError(errno.ENOSPC, "No space left on device", "source"), "out"),
    ],
)
def test_the_file_at_fault_is_named(tmp_path, monkeypatch, error, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "out"):
        raise error
    assert caught.value.filename == (str(tmp_path / "out") if named == "out" else named)


def test_the_cache_is_pruned_by_age_and_size(tmp_path, monkeypatch):
    tables = {f"{i:024x}.table": days for i, days in enumerate((0, 10, 80, 91))}
    others = {".0123456789abcdef.tmp": 2, ".fedcba9876543210.tmp": 0, "mine.table": 500, "notes": 500}
    for name, days in (tables | others).items():
        path = tmp_path / name
        path.write_bytes(b"x" * 100)
        age = path.stat().st_mtime - days * 86_400
        os.utime(path, (age, age))
    kept = {".fedcba9876543210.tmp", "mine.table", "notes"}
    for most, number in ((table_cache._MOST_BYTES, 3), (350, 2)):
        monkeypatch.setattr(table_cache, "_MOST_BYTES", most)
        table_cache.prune(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {*list(tables)[:number], *kept}


def test_without_a_terminal_long_work_says_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0, 5, 11, 30, 72])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("masks", 8, unit="pair") as advance:
        for _ in range(4):
            advance(2)
    assert capsys.readouterr().err == "masks: 4 of 8 pairs (50 %), 11 s\nmasks: 8 of 8 pairs (100 %), 72 s\n"


@pytest.mark.parametrize(
    ("ending", "cure"),
    [
        (".jpg", "JPEG changes labels, .* save the predictions as PNGs"),
        (".PNG", "rename them to <name>.png"),
        ("_pred.png", "rename them to <name>.png"),
        (".npy", r"evaluation/convert_masks\.py converts \.npy"),
    ],
)
def test_predictions_of_another_ending_are_named(tmp_path, ending, cure):
    (tmp_path / "pred/n01").mkdir(parents=True)
    for i in range(2):
        write_mask(tmp_path / f"gt/n01/{i}.png", np.ones((3, 4), int))
        (tmp_path / f"pred/n01/{i}{ending}").touch()
    with pytest.raises(InputError, match=rf"but 2 files with another suffix, such as 0{ending}; {cure}"):
        check_predict_dir(find_pairs(tmp_path / "gt", tmp_path / "pred"))


@pytest.mark.parametrize(("held", "there"), [("n01/0.npy", ", and there is n01/0.npy"), (None, "")])
def test_a_folder_without_ground_truth_says_what_is_there(tmp_path, held, there):
    (tmp_path / "gt/n01").mkdir(parents=True)
    if held:
        (tmp_path / "gt" / held).touch()
    with pytest.raises(InputError, match=rf"no masks there; ground truth lies in .*\.png{there}$"):
        find_pairs(tmp_path / "gt", tmp_path)
