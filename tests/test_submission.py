"""submission.py: the archive it writes, what it refuses, and what --check finds in a spoilt archive."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import zipfile

import numpy as np
import pytest
from masksets import blobs, script, to_rgb, write_mask
from PIL import Image

from evaluation import submission
from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.lists import categories_path, mapping_path
from imagenets.scoring.submission import ArchiveSource

NAMES = [f"n0000000{i % 3}/ILSVRC2012_val_{i:08d}" for i in range(20)]  # more than a worker's chunk
METHOD = {
    "--method-name": "Ours",
    "--training-data": "ImageNet-S-50",
    "--training-scheme": "fully unsupervised",
    "--networks": "ResNet-50",
    "--link": "https://example.org/ours",
    "--description": "k-means; see the paper – twice",
}
METHOD_TEXT = (
    "Method name: Ours\n"
    "Training data: ImageNet-S-50\n"
    "Training scheme: fully unsupervised\n"
    "Networks: ResNet-50\n"
    "Paper/Project link: https://example.org/ours\n"
    "Method description: k-means; see the paper – twice\n"
)


def write_image(path, height, width, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, "JPEG", **options)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Test images in tmp_path/data, their predictions in tmp_path/pred; returns the folder."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        height, width = (int(side) for side in rng.integers(5, 40, 2))
        write_image(image_path(tmp_path, name), height, width)
        write_mask(tmp_path / f"pred/{name}.png", blobs(rng, height, width, np.arange(51), ignore=0))
    root = tmp_path / "data/ImageNetS50"
    write_image(root / "validation/n00000001/v.JPEG", 6, 4)
    write_mask(root / "validation-segmentation/n00000001/v.png", np.zeros((6, 4), int))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODES, "50", MODES["50"].__class__("50", 50, 0, 0, len(NAMES), 0))
    return tmp_path


def image_path(folder, name):
    return folder / f"data/ImageNetS50/test/{name}.JPEG"


def size_of(folder, name):
    with Image.open(image_path(folder, name)) as image:
        return image.height, image.width


def arguments(*changes, output="out/s.zip", workers=0):
    common = ["--predict-dir", "pred", "--save-dir", "data", "--mode", "50", "--output", output]
    method = [part for pair in METHOD.items() for part in pair]
    return [*common, *method, "--workers", str(workers), *changes]


def run(monkeypatch, *given):
    """The script's main() in this process."""
    monkeypatch.setattr(sys, "argv", ["submission.py", *map(str, given)])
    submission.main()


@pytest.fixture
def submit(prepared, monkeypatch, capsys):
    """Run the script on the prepared set; gives (stdout, stderr)."""

    def call(*changes, **options):
        run(monkeypatch, *arguments(*changes, **options))
        return capsys.readouterr()

    return call


@pytest.fixture
def check(prepared, monkeypatch, capsys):
    def call(path, *given):
        run(monkeypatch, "--check", path, "--mode", "50", "--workers", "0", *given)
        return capsys.readouterr()

    return call


def identity(clusters=50):
    return {str(cluster): min(cluster, 50) for cluster in range(clusters + 1)}


def write_matching(folder, matching):
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results/mine.json").write_text(json.dumps(matching))


def test_archive_holds_every_prediction_as_it_is(prepared, submit):
    write_matching(prepared, identity())
    out, err = submit("--match", "mine")
    assert err == ""
    assert "20 predictions, match.json, method.txt" in out
    with zipfile.ZipFile("out/s.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["match.json", "method.txt", *sorted(f"{name}.png" for name in NAMES)]
        for name in NAMES:
            assert archive.read(f"{name}.png") == (prepared / f"pred/{name}.png").read_bytes()
        assert archive.read("method.txt").decode() == METHOD_TEXT
        assert json.loads(archive.read("match.json")) == identity()
    assert [path.name for path in prepared.glob("out/*")] == ["s.zip"]


def test_without_a_matching_there_is_no_match_json(prepared, submit):
    submit()
    with zipfile.ZipFile("out/s.zip") as archive:
        assert "match.json" not in archive.namelist()


def test_same_input_gives_the_same_bytes(prepared, submit):
    submit()
    first = hashlib.sha256((prepared / "out/s.zip").read_bytes()).hexdigest()
    for name in NAMES:  # other times and permissions, and other files around
        os.utime(prepared / f"pred/{name}.png", (1, 1))
        (prepared / f"pred/{name}.png").chmod(0o600)
    (prepared / "pred/n00000000/notes.txt").write_text("mine")
    submit(output="out/again.zip", workers=2)
    assert hashlib.sha256((prepared / "out/again.zip").read_bytes()).hexdigest() == first


def test_a_good_archive_passes_its_check(prepared, submit, check):
    write_matching(prepared, identity())
    submit("--match", "mine")
    for given in ([], ["--save-dir", "data"]):
        out, err = check("out/s.zip", *given)
        assert err == ""
        assert out == "out/s.zip: good; 20 predictions, match.json of 50 clusters, method.txt\n"


def spoil(kind, folder, name):
    """Spoil one prediction; gives what the message must say."""
    path = folder / f"pred/{name}.png"
    height, width = size_of(folder, name)
    labels = np.zeros((height, width), int)
    if kind == "missing":
        path.unlink()
        return "no such prediction"
    if kind == "no png":
        write_image(path, height, width)
        return "not a PNG"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
        return "truncated"
    if kind == "damaged":
        content = bytearray(path.read_bytes())
        content[45] ^= 1
        path.write_bytes(content)
        return "damaged"
    if kind == "grayscale":
        Image.fromarray(labels.astype(np.uint8)).save(path)
        return "grayscale"
    if kind == "swapped":
        Image.fromarray(to_rgb(labels + 1)[..., ::-1].copy()).save(path)
        return "channels look swapped"
    if kind == "size":
        write_mask(path, np.zeros((height + 1, width), int))
        return f"{width} x {height + 1} pixels, but its test image has {width} x {height}"
    if kind == "label":
        write_mask(path, labels + 51)
        return "label 51 is outside 0..50; cluster ids need a matching"
    raise ValueError(kind)


KINDS = ["missing", "no png", "truncated", "damaged", "grayscale", "swapped", "size", "label"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_prediction_is_refused(prepared, submit, kind):
    message = spoil(kind, prepared, NAMES[7])
    with pytest.raises(InputError) as caught:
        submit()
    assert str(caught.value).startswith(f"1 mask cannot be used:\n  pred/{NAMES[7]}.png: ")
    assert message in str(caught.value)
    assert not list(prepared.glob("out/*"))


def test_bad_predictions_are_reported_together_and_leave_the_old_archive(prepared, submit):
    submit()
    before = (prepared / "out/s.zip").read_bytes()
    messages = [spoil(kind, prepared, name) for kind, name in zip(KINDS, NAMES[10:], strict=False)]
    with pytest.raises(InputError) as caught:
        submit(workers=2)
    assert "8 masks cannot be used" in str(caught.value)
    for message in messages:
        assert message in str(caught.value)
    assert [path.name for path in prepared.glob("out/*")] == ["s.zip"]
    assert (prepared / "out/s.zip").read_bytes() == before


def test_a_new_archive_replaces_the_old_one(prepared, submit):
    submit("--method-name", "Another")
    submit()
    with zipfile.ZipFile("out/s.zip") as archive:
        assert archive.read("method.txt").decode() == METHOD_TEXT


@pytest.mark.parametrize(("orientation", "fits"), [(6, True), (3, False), (None, False)])
def test_size_after_exif_rotation(prepared, submit, orientation, fits):
    name = NAMES[3]
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    write_image(image_path(prepared, name), 10, 20, exif=exif)
    write_mask(prepared / f"pred/{name}.png", np.zeros((10, 20), int))
    submit()
    write_mask(prepared / f"pred/{name}.png", np.zeros((20, 10), int))
    if fits:
        submit()
    else:
        with pytest.raises(InputError, match="10 x 20 pixels, but its test image has 20 x 10"):
            submit()


def test_broken_exif_does_not_end_the_run(prepared, submit):
    name = NAMES[3]
    write_image(image_path(prepared, name), 10, 20, exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x05\x01\x12")
    write_mask(prepared / f"pred/{name}.png", np.zeros((20, 10), int))
    with pytest.raises(InputError, match="10 x 20 pixels"):
        submit()


def test_images_that_do_not_open_are_a_warning(prepared, submit):
    image_path(prepared, NAMES[0]).write_bytes(b"")
    image_path(prepared, NAMES[1]).unlink()
    image_path(prepared, NAMES[1]).symlink_to("nowhere.JPEG")
    _, err = submit()
    assert "2 test images cannot be opened" in err
    assert (prepared / "out/s.zip").exists()


def test_unusual_test_sets_are_a_warning(prepared, submit):
    write_image(prepared / "data/ImageNetS50/test/n00000001/other.jpg", 5, 5)
    (prepared / "data/ImageNetS50/test/.DS_Store").touch()
    write_image(prepared / "data/ImageNetS50/test/n00000001/new.JPEG", 5, 5)
    write_mask(prepared / "pred/n00000001/new.png", np.zeros((5, 5), int))
    write_mask(prepared / "pred/n00000002/extra.png", np.zeros((5, 5), int))
    out, err = submit("--incomplete")
    assert "21 images, but the test set of mode 50 has 20" in err
    assert "1 files are not <wnid>/<name>.JPEG:\n  n00000001/other.jpg" in err
    assert "1 predictions belong to no test image and are not packed:\n  n00000002/extra.png" in err
    assert "21 predictions" in out


def test_another_number_of_predictions_is_an_error(prepared, submit, check):
    """Three of 1,682 test images are no submission, however good they are."""
    submit()
    rewritten("out/s.zip", "fewer.zip", lambda n, c: [] if n == FIRST else [(n, c)])
    with pytest.raises(
        InputError, match=r"^fewer\.zip: 19 predictions, but the test set of mode 50 has 20; .*"
    ):
        check("fewer.zip")
    image_path(prepared, NAMES[3]).unlink()
    for run_it in (lambda: submit(output="new.zip"), lambda: check("out/s.zip", "--save-dir", "data")):
        with pytest.raises(InputError, match=r"the test set of mode 50 has 20; .*--incomplete"):
            run_it()
    assert not (prepared / "new.zip").exists()
    submit("--incomplete", output="new.zip")


def test_predictions_of_other_images_alone_are_one_sentence(prepared, submit):
    for path in (prepared / "pred").rglob("*.png"):
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(InputError, match=r"no prediction of any of the .* for other images: validation"):
        submit()
    assert not (prepared / "out").exists()


def test_own_lists_have_their_own_number_of_test_images(prepared, submit, monkeypatch):
    wnids = [f"n{i:08d}" for i in range(50)]
    for name, lines in (
        (categories_path("50"), wnids),
        (mapping_path("50", "test"), [f"{name}.JPEG {name}.JPEG" for name in NAMES[:19]]),
    ):
        (prepared / name).parent.mkdir()
        (prepared / name).write_text("\n".join(lines))
    monkeypatch.setenv("IMAGENETS_LISTS", str(prepared))
    with pytest.raises(InputError, match="20 images, but the test set of mode 50 has 19"):
        submit()
    (prepared / mapping_path("50", "test")).unlink()
    submit()


def test_clusters(prepared, submit, check):
    name = NAMES[4]
    write_mask(prepared / f"pred/{name}.png", np.full(size_of(prepared, name), 60))
    write_matching(prepared, identity(60))
    with pytest.raises(InputError, match=r"of 60 clusters, .* have 50 .* given 60 clusters"):
        submit("--match", "mine")
    submit("--match", "mine", "--clusters", "60")
    with pytest.raises(InputError, match=r"label 60 is outside 0..50; .*number of clusters"):
        check("out/s.zip")
    assert "match.json of 60 clusters" in check("out/s.zip", "--clusters", "60").out


@pytest.mark.parametrize(
    ("matching", "message"),
    [
        ("{", "not JSON"),
        (json.dumps({"0": 0, "1": 51}), "51 is no class"),
        (json.dumps({k: v for k, v in identity().items() if k != "7"}), "cluster 7"),
    ],
)
def test_a_bad_matching_is_refused_at_once(prepared, submit, check, matching, message):
    (prepared / "m.json").write_text(matching)
    (prepared / f"pred/{NAMES[0]}.png").unlink()  # is not even looked for
    with pytest.raises(InputError, match=message) as caught:
        submit("--match", "m.json")
    assert "m.json" in str(caught.value)


@pytest.mark.parametrize("folder", ["nowhere", "pred"])
def test_no_test_images(submit, folder):
    with pytest.raises(InputError, match="no such folder; test images lie in <save-dir>/ImageNetS50/test"):
        submit("--save-dir", folder)


@pytest.mark.parametrize(
    "changes",
    [
        ["--description", "two\nlines"],
        ["--description", "two\u2028lines"],
        ["--link", " "],
        ["--link", "\udcff"],
        ["--output", "s.tar"],
        ["--clusters", "60"],
        ["--check", "s.zip"],
        ["--clusters", "0", "--match", "m"],
    ],
)
def test_wrong_usage(submit, changes):
    with pytest.raises(SystemExit) as caught:
        submit(*changes)
    assert caught.value.code == 2


@pytest.mark.parametrize("flag", [*METHOD, "--output", "--save-dir", "--predict-dir"])
def test_flags_are_required(prepared, monkeypatch, capsys, flag):
    given = arguments()
    place = given.index(flag)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *given[:place], *given[place + 2 :])
    assert caught.value.code == 2
    assert flag in capsys.readouterr().err


def rewritten(source, target, change):
    """Copy an archive; ``change(name, content)`` gives the entries to write instead of one."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            for entry in change(name, old.read(name)):
                new.writestr(*entry)


def png(labels):
    data = io.BytesIO()
    Image.fromarray(to_rgb(labels)).save(data, "PNG")
    return data.getvalue()


FIRST = f"{NAMES[0]}.png"

SPOILT = {
    "nested": (
        lambda n, c: [(f"submission/{n}", c)],
        "no predictions (<wnid>/<name>.png) at the archive's top",
    ),
    "stray": (lambda n, c: [(n, c), ("notes.txt", b"")] if n == FIRST else [(n, c)], "txt: not part of"),
    "no method": (lambda n, c: [] if n == "method.txt" else [(n, c)], "no method.txt"),
    "short method": (
        lambda n, c: [(n, c.replace(b"Networks: ResNet-50\n", b"")) if n == "method.txt" else (n, c)],
        "method.txt: no line 'Networks: …'",
    ),
    "empty line": (
        lambda n, c: [(n, c.replace(b"ResNet-50", b"")) if n == "method.txt" else (n, c)],
        "method.txt: no line 'Networks: …'",
    ),
    "bad matching": (
        lambda n, c: [(n, b"[]") if n == "match.json" else (n, c)],
        "match.json: not a matching",
    ),
    "short matching": (
        lambda n, c: [(n, b'{"0": 0}') if n == "match.json" else (n, c)],
        "match.json: a submission's matching holds every cluster 0..50",
    ),
    "no png": (lambda n, c: [(n, b"nothing") if n == FIRST else (n, c)], f"{FIRST}: not a PNG"),
    "label": (
        lambda n, c: [(n, png(np.full((5, 5), 51))) if n == FIRST else (n, c)],
        f"{FIRST}: label 51 is outside 0..50",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_check_finds_what_is_wrong(prepared, submit, check, kind):
    write_matching(prepared, identity())
    submit("--match", "mine")
    change, message = SPOILT[kind]
    rewritten("out/s.zip", "bad.zip", change)
    with pytest.raises(InputError) as caught:
        check("bad.zip")
    assert message in str(caught.value)
    assert str(caught.value).startswith("bad.zip: ")


def test_check_finds_names_twice(prepared, submit, check):
    submit()
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewritten("out/s.zip", "bad.zip", lambda n, c: [(n, c), (n, c)] if n == FIRST else [(n, c)])
    with pytest.raises(InputError, match="more than once"):
        check("bad.zip")


def test_check_holds_names_and_sizes_against_the_test_images(prepared, submit, check):
    submit()
    rewritten("out/s.zip", "fewer.zip", lambda n, c: [] if n == FIRST else [(n, c)])
    assert "19 predictions, but the test set of mode 50 has 20" in check("fewer.zip", "--incomplete").err
    with pytest.raises(InputError, match=f"{FIRST}: no such prediction"):
        check("fewer.zip", "--save-dir", "data")
    rewritten("out/s.zip", "size.zip", lambda n, c: [(n, png(np.zeros((3, 4), int)) if n == FIRST else c)]
              if n.endswith(".png") else [(n, c)])  # fmt: skip
    check("size.zip")
    with pytest.raises(InputError, match=f"{FIRST}: 4 x 3 pixels, but its test image has"):
        check("size.zip", "--save-dir", "data")
    extra = "n00000009/ILSVRC2012_val_00000099.png"
    rewritten("out/s.zip", "more.zip", lambda n, c: [(n, c), (extra, c)] if n == FIRST else [(n, c)])
    with pytest.raises(InputError, match=f"{extra}: no such test image"):
        check("more.zip", "--save-dir", "data")


def test_check_finds_damage(prepared, submit, check):
    submit()
    content = bytearray((prepared / "out/s.zip").read_bytes())
    with zipfile.ZipFile("out/s.zip") as archive:
        info = archive.getinfo(FIRST)
    content[info.header_offset + 30 + len(FIRST) + 40] ^= 1
    (prepared / "bad.zip").write_bytes(content)
    with pytest.raises(InputError, match=f"{FIRST}: is damaged in the archive"):
        check("bad.zip")
    (prepared / "short.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"short\.zip: not a complete ZIP archive"):
        check("short.zip")


def test_each_process_opens_the_archive_for_itself(prepared, submit, monkeypatch):
    submit()
    source = ArchiveSource(prepared / "out/s.zip")
    opened = source.archive()
    assert source.archive() is opened
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
    assert source.archive() is not opened


def test_as_a_process(prepared):
    """From another folder, with workers; a refusal is exit status 1, wrong usage 2, and names the file."""
    given = arguments(workers=2, output="s.zip")
    done = script("evaluation/submission.py", *given, cwd=prepared)
    assert done.returncode == 1 and "20 images, but the test set of mode 50 has 1682" in done.stderr
    given.append("--incomplete")
    done = script("evaluation/submission.py", *given, cwd=prepared)
    assert done.returncode == 0
    assert done.stdout.startswith("20 predictions, method.txt\nsaved: s.zip\n")
    assert "no submissions since January 2026" in done.stdout
    assert "20 images, but the test set of mode 50 has 1682" in done.stderr
    done = script("evaluation/submission.py", "--check", "s.zip", "--mode", 50, "--incomplete", cwd=prepared)
    assert (done.returncode, done.stdout) == (0, "s.zip: good; 20 predictions, no match.json, method.txt\n")
    (prepared / f"pred/{NAMES[0]}.png").unlink()
    done = script("evaluation/submission.py", *given, cwd=prepared)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: 1 mask cannot be used:",
        f"  pred/{NAMES[0]}.png: no such prediction",
    ]
    assert script("evaluation/submission.py", "--mode", 50, cwd=prepared).returncode == 2
    assert (
        script("evaluation/submission.py", "--check", "nowhere.zip", "--mode", 50, cwd=prepared).returncode
        == 1
    )


def test_all_problems_go_to_a_file(prepared, submit, tmp_path, monkeypatch):
    submit()
    bad = NAMES[:13]
    for name in bad:
        (prepared / f"pred/{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3 more\nall 13: p/bad\.txt$"):
        submit("--problems", "p/bad.txt")
    lines = (prepared / "p/bad.txt").read_text().splitlines()
    assert len(lines) == 13 and all(any(name in line for line in lines) for name in bad)
    with zipfile.ZipFile("out/s.zip") as archive, zipfile.ZipFile("cut.zip", "w") as cut:
        for name in archive.namelist():
            cut.writestr(name, b"" if name.endswith(".png") else archive.read(name))
    with pytest.raises(InputError, match=r"all 20: check\.txt$"):
        run(monkeypatch, "--check", "cut.zip", "--mode", "50", "--problems", "check.txt", "--workers", 0)
    assert len((prepared / "check.txt").read_text().splitlines()) == 20
    (prepared / "p/in the way").mkdir()
    with pytest.raises(InputError, match="a folder is in the way"):
        submit("--problems", "p/in the way")


def test_a_resized_imagenet_is_refused_and_unconfirmed_sizes_are_said(prepared, submit):
    """Predictions fit the test images, and both are too small."""
    root = prepared / "data/ImageNetS50"
    shutil.rmtree(root / "validation-segmentation")
    assert "nothing confirms that the test images have their original sizes" in submit().err
    for i in range(4):
        write_image(root / f"train-semi/n00000001/{i}.JPEG", 6, 4)
        write_mask(
            root / f"train-semi-segmentation/n00000001/{i}.png", np.zeros((12, 8) if i else (6, 4), int)
        )
    with pytest.raises(
        InputError, match="is a resized copy: 3 of 4 images with masks do not have their mask"
    ):
        submit(output="new.zip")
    assert not (prepared / "new.zip").exists()
    write_image(root / "train-semi/n00000001/3.JPEG", 12, 8)
    write_image(root / "train-semi/n00000001/2.JPEG", 12, 8)
    assert "original sizes" not in submit(output="new.zip").err
