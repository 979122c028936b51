"""match.py and evaluator.py as a user runs them: results, refusals, the cache."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import reference
from masksets import CHECKOUT, REAL, in_process, random_images, script, to_rgb, write_mask, write_pairs
from PIL import Image
from prepared_set import WNIDS, write_lists

from imagenets.common.whole_files import write_whole
from imagenets.scoring.metrics import SCORES

NAME = "n00000001/image_1.png"
MASK = np.ones((9, 12), int)


@pytest.fixture
def masks(tmp_path):
    """A handful of good pairs in tmp_path/gt and tmp_path/pred."""
    images = random_images(np.random.default_rng(0), 6, 50, 50)
    images[1] = (MASK, 2 * MASK)
    write_pairs(tmp_path, images)
    return tmp_path, images


def given(folder, *arguments, workers=0):
    folders = ["--gt-dir", folder / "gt", "--predict-dir", folder / "pred"]
    return [*folders, "--mode", 50, "--workers", workers, *arguments]


def run(name, folder, *arguments, workers=0, env=None):
    return in_process(f"evaluation/{name}", *given(folder, *arguments, workers=workers), cwd=folder, env=env)


def refused(message, name, folder, *arguments, **options):
    """Run a script that must end with 1 and one message, which is returned."""
    done = run(name, folder, *arguments, **options)
    assert (done.returncode, done.stderr.count("error: ")) == (1, 1), done.stderr
    assert message in done.stderr
    return done.stderr


def evaluate(folder, *arguments, **options):
    done = run("evaluator.py", folder, *arguments, "--output", "scores.json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "scores.json").read_text())


def write_matching(path, clusters):
    path.write_text(json.dumps(dict.fromkeys(range(clusters + 1), 0)))


def test_match_then_evaluate(masks):
    folder, images = masks
    done = run("match.py", folder, "--session-name", "mine", workers=2)
    assert done.returncode == 0, done.stderr
    assert "50 of 50 clusters have a class" in done.stdout
    matching = json.loads((folder / "results/mine.json").read_text())
    assert list(matching) == [str(i) for i in range(51)]
    result = evaluate(folder, "--match", "mine")
    assert (result["mode"], result["images"], result["match"]) == ("50", 6, "mine")
    expected = reference.scores(images, 50, {int(k): v for k, v in matching.items()})
    for score, value in result["scores"].items():
        assert value == (None if np.isnan(expected[score]) else pytest.approx(expected[score], abs=1e-11))
    assert [c["IoU"] for c in result["classes"]] == expected["IoUs"]
    assert result["classes"][0] == {
        "id": 0,
        "wnid": None,
        "name": "background",
        "IoU": expected["IoUs"][0],
        "BIoU": expected["BIoUs"][0],
        "pixels": sum(int((truth == 0).sum()) for truth, _ in images),
        "images": sum(bool((truth == 0).any()) for truth, _ in images),
    }
    assert run("match.py", folder, "--session-name", "again", "--no-cache").returncode == 0
    assert (folder / "results/again.json").read_bytes() == (folder / "results/mine.json").read_bytes()


def test_evaluator_prints_every_score_and_class_and_saves_the_classes(masks):
    folder, _ = masks
    done = run("evaluator.py", folder, "--output", "c.csv")
    assert done.returncode == 0
    lines = done.stdout.splitlines()[:-2]
    assert lines[-2].split() == list(SCORES)
    assert len(lines) == 1 + 51 + 1 + 3
    assert "6 images, mode 50, class ids, not matched" in done.stdout
    assert all(part in done.stderr for part in ("warning", "6 masks", "752"))
    lines = (folder / "c.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("id,wnid,name,IoU,BIoU,pixels,images", 52)


def test_match_takes_a_path(masks):
    folder, _ = masks
    write_matching(folder / "m.json", 50)
    assert evaluate(folder, "--match", "m.json")["match"] == "m.json"
    assert evaluate(folder, "--match", "./m.json")["scores"]["FMeasure"] == 0


def test_names_choose_a_subset_without_a_warning_of_their_number(masks):
    folder, images = masks
    (folder / "names.txt").write_text(f"{NAME}\n\nn00000002/image_2.png\n")
    done = run("evaluator.py", folder, "--names", "names.txt", "--output", "s.json")
    assert done.stderr.count("warning") == 1 and "classes do not occur in these images" in done.stderr
    result = json.loads((folder / "s.json").read_text())
    assert result["images"] == 2
    assert result["scores"]["mIoU"] == pytest.approx(reference.scores(images[1:3], 50)["mIoU"], abs=1e-11)


def test_classes_are_named_by_the_list_at_hand_else_by_the_folders(masks):
    """A lost and a stray folder shift nothing while there is a list; hidden folders are never a class."""
    folder, _ = masks
    wnids = [f"n{i:08d}" for i in range(50)]
    lists = folder / "lists/categories"
    lists.mkdir(parents=True)
    (lists / "ImageNetS_categories_im50.txt").write_text("\n".join(wnids))
    with_list, without = {"IMAGENETS_LISTS": str(folder / "lists")}, {"IMAGENETS_LISTS": "/nowhere"}
    assert evaluate(folder, env=without)["classes"][50]["wnid"] is None
    for i in range(3, 50):  # "backup" in place of one that is lost
        (folder / "gt" / ("backup" if i == 7 else wnids[i])).mkdir()
    (folder / "gt/.cache").mkdir()
    assert [c["wnid"] for c in evaluate(folder, env=with_list)["classes"][1:]] == wnids
    (folder / "gt/backup").rename(folder / "gt" / "n01443537")
    classes = evaluate(folder, env=without)["classes"]
    assert (classes[1]["wnid"], classes[50]["name"]) == (wnids[0], "goldfish")


@pytest.mark.parametrize("method", ["image", "pixel", "majority"])
def test_more_clusters_than_classes(masks, method):
    folder, _ = masks
    write_mask(folder / "pred" / NAME, 300 * MASK)
    name = ("--session-name", "k")
    refused("pass the number of clusters", "match.py", folder, *name)
    done = run("match.py", folder, *name, "--clusters", 300, "--method", method)
    assert done.returncode == 0, done.stderr
    matching = json.loads((folder / "results/k.json").read_text())
    assert (len(matching), matching["300"]) == (301, 1)
    refused("of 300 clusters", "evaluator.py", folder, "--match", "k")
    assert evaluate(folder, "--match", "k", "--clusters", 300)["images"] == 6


def save_raw(array, mode):
    return lambda path: Image.fromarray(array, mode).save(path)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[45] ^= 1
    path.write_bytes(bytes(data))


def short_of_rows(path):
    """A PNG whose chunks are whole, but whose data end early."""
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4
    stream = zlib.compress(zlib.decompress(data[start + 8 : -16])[:-40])
    chunk = len(stream).to_bytes(4, "big") + b"IDAT" + stream
    chunk += zlib.crc32(chunk[4:]).to_bytes(4, "big")
    path.write_bytes(data[:start] + chunk + data[-12:])


def palette(path):
    Image.fromarray(MASK.astype(np.uint8)).convert("P").save(path)


def written_as_bgr(path):
    Image.fromarray(to_rgb(2 * MASK)[..., ::-1].copy()).save(path)


BAD_PREDICTIONS = {
    "missing": (lambda path: path.unlink(), "no such prediction"),
    "not a PNG": (lambda path: path.write_text("hello"), "not a PNG"),
    "JPEG in disguise": (lambda path: Image.new("RGB", (12, 9)).save(path, "JPEG"), "not a PNG"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (truncated, "truncated"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:20]), "truncated"),
    "flipped bit": (flipped, "damaged"),
    "short of rows": (short_of_rows, "damaged"),
    "grayscale": (save_raw(MASK.astype(np.uint8), "L"), "8-bit grayscale"),
    "palette": (palette, "palette"),
    "16-bit": (lambda path: Image.fromarray(MASK.astype(np.uint16)).save(path), "16-bit"),
    "RGBA": (save_raw(np.ones((9, 12, 4), np.uint8), "RGBA"), "RGBA"),
    "another size": (lambda path: write_mask(path, MASK.T), "12 x 9"),
    "blue": (save_raw(np.full((9, 12, 3), 1, np.uint8), "RGB"), "blue channel"),
    "swapped channels": (written_as_bgr, "cv2.imwrite"),
    "label above N": (lambda path: write_mask(path, 51 * MASK), "label 51 is outside 0..50"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "directory"),
}
BAD_GROUND_TRUTHS = {
    "truncated": (truncated, "truncated"),
    "label above N": (lambda path: write_mask(path, 51 * MASK), "label 51 is neither in 0..50 nor 1000"),
    "grayscale": (save_raw(MASK.astype(np.uint8), "L"), "grayscale"),
}


@pytest.mark.parametrize(
    ("side", "kind"), [*(("pred", kind) for kind in BAD_PREDICTIONS), *(("gt", k) for k in BAD_GROUND_TRUTHS)]
)
def test_a_bad_mask_is_named_and_nothing_written(masks, side, kind):
    folder, _ = masks
    spoil, message = (BAD_PREDICTIONS if side == "pred" else BAD_GROUND_TRUTHS)[kind]
    spoil(folder / side / NAME)
    assert f"{side}/{NAME}" in refused(message, "evaluator.py", folder, "--output", "scores.json")
    assert not (folder / "scores.json").exists()


def test_match_refuses_bad_masks_too_and_leaves_an_older_matching(masks):
    folder, _ = masks
    assert run("match.py", folder, "--session-name", "x").returncode == 0
    before = (folder / "results/x.json").read_bytes()
    truncated(folder / "pred" / NAME)
    for name in ("x", "y"):
        refused("truncated", "match.py", folder, "--session-name", name)
    assert (folder / "results/x.json").read_bytes() == before
    assert not (folder / "results/y.json").exists()


def test_a_bad_label_below_ignored_pixels_is_refused_too(masks):
    folder, _ = masks
    write_mask(folder / "gt" / NAME, 1000 * MASK)
    write_mask(folder / "pred" / NAME, 51 * MASK)
    refused("label 51", "evaluator.py", folder)


def test_several_bad_files_are_reported_together(masks):
    folder, _ = masks
    for i in range(3, 17):
        write_mask(folder / f"gt/n00000005/{i:02d}.png", MASK)
        write_mask(folder / f"pred/n00000005/{i:02d}.png", 60 * MASK)
    truncated(folder / "pred/n00000000/image_0.png")
    (folder / "pred" / NAME).unlink()
    message = refused("16 masks cannot be used", "evaluator.py", folder, workers=2)
    assert "n00000000/image_0.png: the PNG is truncated" in message
    assert f"{NAME}: no such prediction" in message
    assert "… and 6 more" in message and len(message.splitlines()) < 15


FILES = {
    "bad.json": "{",
    "few.json": '{"0": 0, "50": 1}',
    "up.txt": "../secret.png\n",
    "other-spelling.txt": f"{NAME}\n\n{NAME.replace('/', '//')}\n./{NAME}\n",
    "nul.txt": "n1/\0.png\n",
    "blank.txt": "\n",
    "twice.txt": f"{NAME}\n{NAME}\n",
    "unknown.txt": "n1/unknown.png\n",
}


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--match", "nothing", "results/nothing.json: no such matching"),
        ("--match", "x/nothing", "x/nothing: no such matching"),
        ("--match", "bad.json", "not JSON"),
        ("--match", "few.json", "not in this matching"),
        ("--names", "nowhere.txt", "nowhere.txt"),
        ("--names", "up.txt", "../secret.png"),
        ("--names", "blank.txt", "it is empty"),
        ("--names", "other-spelling.txt", "line 3: 'n00000001//image_1.png'"),
        ("--names", "nul.txt", "line 1"),
        ("--names", "twice.txt", "more than once"),
        ("--names", "unknown.txt", "gt/n1/unknown.png: no such ground truth"),
        ("--output", "gt/n00000001/image_1.png/x.json", "cannot be written"),
        ("--gt-dir", "void", "no masks there"),
        ("--gt-dir", "nowhere", "no such folder"),
        ("--predict-dir", "void", "no prediction of any of the 6 ground truths"),
    ],
)
def test_bad_arguments_of_evaluator(masks, flag, value, message):
    folder, _ = masks
    (folder / "void").mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    refused(message, "evaluator.py", folder, flag, value)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "/tmp/x", "x.json", "a\\b"])
def test_session_name_stays_in_the_results_folder(masks, name):
    folder, _ = masks
    before = sorted(folder.rglob("*"))
    refused("--session-name", "match.py", folder, "--session-name", name)
    assert sorted(folder.rglob("*")) == before


def test_predictions_of_another_split_are_told_as_that(masks):
    folder, _ = masks
    for mask in (folder / "pred").rglob("*.png"):
        mask.rename(mask.with_name(f"other_{mask.name}"))
    refused("the same class folders: these are predictions of other images", "evaluator.py", folder)


def test_ground_truth_of_another_mode_names_its_mode(tmp_path):
    """Its folders are all classes of mode 50, not one more, and not one less; their number says nothing."""
    write_lists(tmp_path / "lists")
    write_pairs(tmp_path, [(MASK, MASK)] * 50, [f"{wnid}/image.png" for wnid in WNIDS])
    env = {"IMAGENETS_LISTS": str(tmp_path / "lists")}
    other = "its folders are the classes of mode 50, not of mode 919: take mode 50"
    for name, more in (("match.py", ("--session-name", "mine")), ("evaluator.py", ())):
        refused(other, name, tmp_path, "--mode", 919, *more, env=env)

    def message(mode, env=env):
        return run("evaluator.py", tmp_path, "--mode", mode, env=env).stderr

    assert "classes of mode 50, not" not in message(919, env={"IMAGENETS_LISTS": "/nowhere"}) + message(50)
    (tmp_path / "gt/n99999999").mkdir()
    assert "classes of mode 50, not" not in message(919)
    for folder in ("n99999999", WNIDS[0]):
        shutil.rmtree(tmp_path / "gt" / folder)
    assert "classes of mode 50, not" not in message(919)


def test_a_swap_of_the_two_folders_is_guessed(masks):
    folder, _ = masks
    write_mask(folder / "gt" / NAME, 1000 * MASK)
    swapped = ["--gt-dir", folder / "pred", "--predict-dir", folder / "gt"]
    refused("are the two folders swapped?", "evaluator.py", folder, *swapped)


def test_a_matching_of_another_number_of_clusters_is_refused(masks):
    """A number of clusters is advised unless it is the number of classes of another mode."""
    folder, _ = masks
    write_matching(folder / "m.json", 50)
    message = refused("m.json", "evaluator.py", folder, "--mode", 300, "--match", "m.json")
    assert message == (
        "error: m.json: a matching of 50 clusters, but the predictions have 300 by mode and number of "
        "clusters: is it of mode 50? Use that mode, or the matching of these predictions\n"
    )
    write_matching(folder / "m.json", 200)
    message = refused("of 200 clusters", "evaluator.py", folder, "--match", "m.json")
    assert "have 50 by" in message and "given 200 clusters" in message
    assert run("evaluator.py", folder, "--match", "m.json", "--clusters", 200).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--clusters", "60"],
        ["--output", "scores.txt"],
        ["--workers", "-1"],
        ["--match", "m.json", "--clusters", "65536"],
        ["--match", "m.json", "--clusters", "0"],
        ["--macth", "m.json"],
        ["--mode", "51"],
        ["--gt-dir", ""],
        ["--seed", "1"],
        ["--bootstrap", "0"],
        ["--bootstrap", "ten"],
        ["--bootstrap", "9", "--seed", "-1"],
        ["--report", "page.htm"],
        ["--per-image", "x.json"],
        ["--confusion", "x.npy"],
        ["--per-image", "x.csv", "--output", "x.csv"],
        *(["--image-dir", "gt"], ["--results", "x.csv"], ["--title", "Mine"]),
    ],
)
def test_wrong_usage_ends_with_2(masks, arguments):
    assert run("evaluator.py", masks[0], *arguments).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(OSError) as error:
        write_whole(tmp_path / "scores.json", "x")
    assert error.value.filename == str(tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())


def test_an_unreadable_folder_is_one_sentence(masks):
    folder, _ = masks
    (folder / "results").write_text("a file in the way")
    refused("results", "match.py", folder, "--session-name", "x")
    done = run("evaluator.py", folder)  # only loses its cache
    assert done.returncode == 0 and "not cached" in done.stderr


def test_a_worker_that_dies_ends_the_run_with_a_sentence(masks):
    folder, _ = masks
    (folder / "pred" / NAME).unlink()
    os.mkfifo(folder / "pred" / NAME)  # a worker waits here until it is killed
    command = [sys.executable, CHECKOUT / "evaluation/evaluator.py", *map(str, given(folder, workers=1))]
    with subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with (folder / "pred" / NAME).open("wb"):  # returns when the worker has begun to read
            os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
            _, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process died" in messages and "Traceback" not in messages


def test_a_reader_that_leaves_is_no_traceback(masks):
    folder, _ = masks
    command = (
        f"{sys.executable} {CHECKOUT}/evaluation/evaluator.py {' '.join(map(str, given(folder)))} | true"
    )
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_scripts_find_their_own_packages(masks):
    folder, _ = masks
    for name in ("evaluation", "command_line", "imagenets"):
        (folder / "decoys" / name).mkdir(parents=True)
        (folder / "decoys" / name / "__init__.py").write_text("raise SystemExit('a decoy')")
    environment = {**os.environ, "PYTHONPATH": str(folder / "decoys")}
    done = script("evaluation/evaluator.py", *given(folder), cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real masks are not at {REAL}")
def test_real_masks_score_and_match_as_the_public_code_says(tmp_path):
    expected = json.loads((REAL / "expected.json").read_text())
    (tmp_path / "given.json").write_text(json.dumps(expected["matching"]))
    real = ["--gt-dir", REAL / "validation-segmentation", "--predict-dir", REAL / "predictions", "--mode", 50]
    for case, match in (("unmatched", []), ("matched", ["--match", "given.json"])):
        done = in_process("evaluation/evaluator.py", *real, *match, "--output", "s.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        result = json.loads((tmp_path / "s.json").read_text())
        ious = expected[case].pop("IoUs")
        assert result["scores"] == pytest.approx(expected[case], abs=0.01)
        assert [c["IoU"] for c in result["classes"]] == pytest.approx(ious, abs=0.01)
    done = in_process("evaluation/match.py", *real, "--session-name", "real", cwd=tmp_path)
    assert f"in common with it: {expected['matching_total']} images" in done.stdout
