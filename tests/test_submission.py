"""submission.py: the archive it writes, what it refuses, and what --check finds in a spoilt archive."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from masksets import blobs, in_process, to_rgb, write_mask
from PIL import Image

from imagenets.classes import MODES
from imagenets.lists import categories_path, mapping_path
from imagenets.scoring.submission import ArchiveSource

NAMES = [f"n0000000{i % 3}/ILSVRC2012_val_{i:08d}" for i in range(20)]  # more than a worker's chunk
FIRST = f"{NAMES[0]}.png"
METHOD = {
    "--method-name": ("Method name", "Ours"),
    "--training-data": ("Training data", "ImageNet-S-50"),
    "--training-scheme": ("Training scheme", "fully unsupervised"),
    "--networks": ("Networks", "ResNet-50"),
    "--link": ("Paper/Project link", "https://example.org/ours"),
    "--description": ("Method description", "k-means; see the paper – twice"),
}
METHOD_TEXT = "".join(f"{line}: {value}\n" for line, value in METHOD.values())
ROOT = Path("data/ImageNetS50")


def write_image(path, height, width, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, "JPEG", **options)


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    """Work in a folder with test images in data and their predictions in pred."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODES, "50", MODES["50"].__class__("50", 50, 0, 0, len(NAMES), 0))
    rng = np.random.default_rng(0)
    for name in NAMES:
        height, width = (int(side) for side in rng.integers(5, 40, 2))
        write_image(image_path(name), height, width)
        write_mask(prediction(name), blobs(rng, height, width, np.arange(51), ignore=0))
    write_image(ROOT / "validation/n00000001/v.JPEG", 6, 4)
    write_mask(ROOT / "validation-segmentation/n00000001/v.png", np.zeros((6, 4), int))


def image_path(name):
    return ROOT / f"test/{name}.JPEG"


def prediction(name):
    return Path(f"pred/{name}.png")


def size_of(name):
    with Image.open(image_path(name)) as image:
        return image.height, image.width


def run(*given, status=0, refused=""):
    """Run the script, which must end with ``status``, or be ``refused`` with this; returns its output."""
    done = in_process("evaluation/submission.py", *given)
    assert done.returncode == (1 if refused else status), done.stderr
    assert re.search(refused, done.stderr), done.stderr
    return done.stdout, done.stderr


def arguments(*changes, output="out/s.zip", workers=0):
    common = ["--predict-dir", "pred", "--save-dir", "data", "--mode", "50", "--output", output]
    method = [part for flag, (_, value) in METHOD.items() for part in (flag, value)]
    return [*common, *method, "--workers", workers, *changes]


def submit(*changes, output="out/s.zip", workers=0, **expected):
    return run(*arguments(*changes, output=output, workers=workers), **expected)


def check(path, *given, **expected):
    return run("--check", path, "--mode", 50, "--workers", 0, *given, **expected)


def content(name, path="out/s.zip"):
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def identity(clusters=50):
    return {str(cluster): min(cluster, 50) for cluster in range(clusters + 1)}


def write_matching(matching):
    Path("results").mkdir(exist_ok=True)
    Path("results/mine.json").write_text(json.dumps(matching))


def test_archive_holds_every_prediction_as_it_is_and_passes_its_check():
    write_matching(identity())
    out, err = submit("--match", "mine")
    assert (out.splitlines()[:2], err) == (["20 predictions, match.json, method.txt", "saved: out/s.zip"], "")
    assert "no submissions since January 2026" in out
    with zipfile.ZipFile("out/s.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["match.json", "method.txt", *sorted(f"{name}.png" for name in NAMES)]
    for name in NAMES:
        assert content(f"{name}.png") == prediction(name).read_bytes()
    assert content("method.txt").decode() == METHOD_TEXT
    assert json.loads(content("match.json")) == identity()
    assert list(Path("out").iterdir()) == [Path("out/s.zip")]
    good = "out/s.zip: good; 20 predictions, match.json of 50 clusters, method.txt\n"
    for given in ([], ["--save-dir", "data"]):
        assert check("out/s.zip", *given) == (good, "")


def test_same_input_gives_the_same_bytes_whatever_was_there_before():
    submit("--method-name", "Another")
    submit()
    assert check("out/s.zip")[0] == "out/s.zip: good; 20 predictions, no match.json, method.txt\n"
    for name in NAMES:  # other times and permissions, and other files around
        os.utime(prediction(name), (1, 1))
        prediction(name).chmod(0o600)
    Path("pred/n00000000/notes.txt").write_text("mine")
    submit(output="again.zip", workers=2)
    assert Path("again.zip").read_bytes() == Path("out/s.zip").read_bytes()


def test_bad_predictions_are_reported_together_and_leave_the_old_archive():
    """Each kind of bad PNG is tried with the evaluator, which decodes as this script does."""
    submit()
    before = Path("out/s.zip").read_bytes()
    missing, cut, swapped, larger, beyond = names = NAMES[10:15]
    prediction(missing).unlink()
    prediction(cut).write_bytes(prediction(cut).read_bytes()[:-20])
    sizes = {name: size_of(name) for name in names}
    Image.fromarray(to_rgb(np.ones(sizes[swapped], int))[..., ::-1].copy()).save(prediction(swapped))
    height, width = sizes[larger]
    write_mask(prediction(larger), np.zeros((height + 1, width), int))
    write_mask(prediction(beyond), np.full(sizes[beyond], 51))
    _, err = submit(workers=2, refused="error: 5 masks cannot be used:\n")
    for name, message in {
        missing: "no such prediction",
        cut: "truncated",
        swapped: "channels look swapped",
        larger: f"{width} x {height + 1} pixels, but its test image has {width} x {height}",
        beyond: "label 51 is outside 0..50; cluster ids need a matching",
    }.items():
        assert re.search(rf"  {prediction(name)}: .*{message}", err)
    assert list(Path("out").iterdir()) == [Path("out/s.zip")]
    assert Path("out/s.zip").read_bytes() == before


@pytest.mark.parametrize(
    ("exif", "fits"),
    [(6, True), (3, False), (None, False), (b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x05\x01\x12", False)],
)
def test_size_after_exif_rotation(exif, fits):
    """Also with a broken entry."""
    written = Image.Exif()
    if isinstance(exif, int):
        written[0x0112] = exif
    write_image(image_path(NAMES[3]), 10, 20, exif=exif if isinstance(exif, bytes) else written)
    write_mask(prediction(NAMES[3]), np.zeros((10, 20), int))
    submit()
    write_mask(prediction(NAMES[3]), np.zeros((20, 10), int))
    submit(refused="" if fits else "10 x 20 pixels, but its test image has 20 x 10")


def test_images_that_do_not_open_are_a_warning():
    image_path(NAMES[0]).write_bytes(b"")
    image_path(NAMES[1]).unlink()
    image_path(NAMES[1]).symlink_to("nowhere.JPEG")
    assert "2 test images cannot be opened" in submit()[1]


def test_unusual_test_sets_are_a_warning():
    write_image(ROOT / "test/n00000001/other.jpg", 5, 5)
    (ROOT / "test/.DS_Store").touch()
    write_image(image_path("n00000001/new"), 5, 5)
    for name in ("n00000001/new", "n00000002/extra"):
        write_mask(prediction(name), np.zeros((5, 5), int))
    out, err = submit("--incomplete")
    assert "21 images, but the test set of mode 50 has 20" in err
    assert "1 files are not <wnid>/<name>.JPEG:\n  n00000001/other.jpg" in err
    assert "1 predictions belong to no test image and are not packed:\n  n00000002/extra.png" in err
    assert "21 predictions" in out


def test_another_number_of_predictions_is_an_error():
    """Three of 1,682 test images are no submission, however good they are."""
    submit()
    rewritten("fewer.zip", FIRST, lambda data: [])
    check("fewer.zip", refused=r"error: fewer\.zip: 19 predictions, but the test set of mode 50 has 20; ")
    image_path(NAMES[3]).unlink()
    few = r"the test set of mode 50 has 20; .*--incomplete"
    submit(output="new.zip", refused=few)
    check("out/s.zip", "--save-dir", "data", refused=few)
    assert not Path("new.zip").exists()
    submit("--incomplete", output="new.zip")


def test_predictions_of_other_images_alone_are_one_sentence():
    for path in Path("pred").rglob("*.png"):
        path.rename(path.with_name(f"other_{path.name}"))
    submit(refused=r"no prediction of any of the .* for other images: validation")
    assert not Path("out").exists()


def test_own_lists_have_their_own_number_of_test_images(monkeypatch):
    mapping = Path(mapping_path("50", "test"))
    for path, lines in (
        (Path(categories_path("50")), [f"n{i:08d}" for i in range(50)]),
        (mapping, [f"{name}.JPEG {name}.JPEG" for name in NAMES[:19]]),
    ):
        path.parent.mkdir()
        path.write_text("\n".join(lines))
    monkeypatch.setenv("IMAGENETS_LISTS", str(Path.cwd()))
    submit(refused="20 images, but the test set of mode 50 has 19")
    mapping.unlink()
    submit()


def test_clusters():
    write_mask(prediction(NAMES[4]), np.full(size_of(NAMES[4]), 60))
    write_matching(identity(60))
    submit("--match", "mine", refused=r"of 60 clusters, .* have 50 .* given 60 clusters")
    submit("--match", "mine", "--clusters", 60)
    check("out/s.zip", refused=r"label 60 is outside 0..50; .*number of clusters")
    assert "match.json of 60 clusters" in check("out/s.zip", "--clusters", 60)[0]


@pytest.mark.parametrize(
    ("matching", "message"),
    [
        ("{", "not JSON"),
        (json.dumps({"0": 0, "1": 51}), "51 is no class"),
        (json.dumps({k: v for k, v in identity().items() if k != "7"}), "cluster 7"),
    ],
)
def test_a_bad_matching_is_refused_at_once(matching, message):
    Path("m.json").write_text(matching)
    prediction(NAMES[0]).unlink()  # is not even looked for
    submit("--match", "m.json", refused=rf"m\.json.*(\n.*)*{message}")


@pytest.mark.parametrize("folder", ["nowhere", "pred"])
def test_no_test_images(folder):
    missing = "no such folder; test images lie in <save-dir>/ImageNetS50/test"
    submit("--save-dir", folder, refused=missing)


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
def test_wrong_usage(changes):
    submit(*changes, status=2)


@pytest.mark.parametrize("flag", [*METHOD, "--output", "--save-dir", "--predict-dir"])
def test_flags_are_required(flag):
    given = arguments()
    place = given.index(flag)
    assert flag in run(*given[:place], *given[place + 2 :], status=2)[1]


def rewritten(target, changed, change, source="out/s.zip"):
    """Copy an archive; ``change(content)`` returns the entries to write in place of the entry ``changed``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            for entry in change(data) if name == changed else [(name, data)]:
                new.writestr(*entry)


def png(labels):
    data = io.BytesIO()
    Image.fromarray(to_rgb(labels)).save(data, "PNG")
    return data.getvalue()


def without(part):
    return lambda data: [("method.txt", data.replace(part, b""))]


SPOILT = {
    "stray": (FIRST, lambda data: [(FIRST, data), ("notes.txt", b"")], "notes.txt: not part of"),
    "no method": ("method.txt", lambda data: [], "no method.txt"),
    "short method": ("method.txt", without(b"Networks: ResNet-50\n"), "method.txt: no line 'Networks: …'"),
    "empty line": ("method.txt", without(b"ResNet-50"), "method.txt: no line 'Networks: …'"),
    "not text": ("method.txt", lambda data: [("method.txt", b"\xff")], "method.txt: no UTF-8 text"),
    "bad matching": ("match.json", lambda data: [("match.json", b"[]")], "match.json: not a matching"),
    "short matching": (
        "match.json",
        lambda data: [("match.json", b'{"0": 0}')],
        "match.json: a submission's matching holds every cluster 0..50",
    ),
    "no png": (FIRST, lambda data: [(FIRST, b"nothing")], f"{FIRST}: not a PNG"),
    "label": (FIRST, lambda data: [(FIRST, png([[51]]))], f"{FIRST}: label 51 is outside 0..50"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_check_finds_what_is_wrong(kind):
    write_matching(identity())
    submit("--match", "mine")
    changed, change, message = SPOILT[kind]
    rewritten("bad.zip", changed, change)
    check("bad.zip", refused=rf"error: bad\.zip: (.*\n)*.*{message}")


def test_check_finds_names_twice_and_in_a_folder():
    submit()
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewritten("twice.zip", FIRST, lambda data: [(FIRST, data), (FIRST, data)])
    check("twice.zip", refused="more than once")
    with zipfile.ZipFile("nested.zip", "w") as archive:
        archive.writestr(f"submission/{FIRST}", b"")
    check("nested.zip", refused=r"no predictions \(<wnid>/<name>.png\) at the archive's top")


def test_check_holds_names_and_sizes_against_the_test_images():
    submit()
    rewritten("fewer.zip", FIRST, lambda data: [])
    few = "19 predictions, but the test set of mode 50 has 20"
    assert few in check("fewer.zip", "--incomplete")[1]
    check("fewer.zip", "--save-dir", "data", refused=f"{FIRST}: no such prediction")
    rewritten("size.zip", FIRST, lambda data: [(FIRST, png(np.zeros((3, 4), int)))])
    check("size.zip")
    check("size.zip", "--save-dir", "data", refused=f"{FIRST}: 4 x 3 pixels, but its test image has")
    extra = "n00000009/ILSVRC2012_val_00000099.png"
    rewritten("more.zip", FIRST, lambda data: [(FIRST, data), (extra, data)])
    check("more.zip", "--save-dir", "data", refused=f"{extra}: no such test image")


def test_check_finds_damage():
    submit()
    data = bytearray(Path("out/s.zip").read_bytes())
    with zipfile.ZipFile("out/s.zip") as archive:
        place = archive.getinfo(FIRST).header_offset + 30 + len(FIRST) + 40
    data[place] ^= 1
    Path("bad.zip").write_bytes(data)
    check("bad.zip", refused=f"{FIRST}: is damaged in the archive")
    data[data.rindex(FIRST.encode()) - 38] |= 1  # in the archive's directory: the entry is encrypted
    Path("locked.zip").write_bytes(data)
    check("locked.zip", refused=f"{FIRST}: is encrypted")
    Path("short.zip").write_bytes(data[: len(data) // 2])
    check("short.zip", refused=r"short\.zip: not a complete ZIP archive")
    check("nowhere.zip", refused=r"nowhere\.zip")


def test_each_process_opens_the_archive_for_itself(monkeypatch):
    submit()
    source = ArchiveSource(Path("out/s.zip"))
    opened = source.archive()
    assert source.archive() is opened
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
    assert source.archive() is not opened


def test_all_problems_go_to_a_file():
    submit()
    bad = NAMES[:13]
    for name in bad:
        prediction(name).write_bytes(b"")
    submit("--problems", "p/bad.txt", refused=r"3 more\nall 13: p/bad\.txt\n$")
    lines = Path("p/bad.txt").read_text().splitlines()
    assert len(lines) == 13 and all(any(name in line for line in lines) for name in bad)
    with zipfile.ZipFile("out/s.zip") as archive, zipfile.ZipFile("cut.zip", "w") as cut:
        for name in archive.namelist():
            cut.writestr(name, b"" if name.endswith(".png") else archive.read(name))
    check("cut.zip", "--problems", "check.txt", refused=r"all 20: check\.txt\n$")
    assert len(Path("check.txt").read_text().splitlines()) == 20
    submit("--problems", "p", refused="a folder is in the way")


def test_a_resized_imagenet_is_refused_and_unconfirmed_sizes_are_said():
    """Predictions fit the test images, and both are too small."""
    shutil.rmtree(ROOT / "validation-segmentation")
    assert "nothing confirms that the test images have their original sizes" in submit()[1]
    semi = ROOT / "train-semi/n00000001"
    for i in range(4):
        write_image(semi / f"{i}.JPEG", 6, 4)
        labels = np.zeros((12, 8) if i else (6, 4), int)
        write_mask(ROOT / f"train-semi-segmentation/n00000001/{i}.png", labels)
    resized = "is a resized copy: 3 of 4 images with masks do not have their mask"
    submit(output="new.zip", refused=resized)
    assert not Path("new.zip").exists()
    for i in (2, 3):
        write_image(semi / f"{i}.JPEG", 12, 8)
    assert "original sizes" not in submit(output="new.zip")[1]
