"""From an ImageNet copy of any layout to train, validation, test and train-semi."""

import dataclasses
import errno
import io
import os
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.generated_imagenet import (
    LAYOUTS,
    OFFICIAL_LISTS,
    Needed,
    jpeg,
    masks_of,
    needed,
    rows,
    snapshot,
    write_archive,
    write_imagenet,
    write_images,
    write_toy_lists,
)
from helpers.loopback import serve
from helpers.scripts import environment, killed_at, run

from command_line.preparation import carry_out
from imagenets.classes import MERGED, MODES
from imagenets.common.errors import InputError
from imagenets.common.locks import locked
from imagenets.lists import ARCHIVES, SHA256, categories_path, mapping_path, train_semi_path
from imagenets.preparation import image_folders as preparation
from imagenets.preparation.image_folders import copy_image, prepare
from imagenets.preparation.layouts import find_train, find_val
from imagenets.preparation.links import link_text
from imagenets.preparation.plans import Plan, merged_into, plan_train
from imagenets.preparation.source_images import SourceImage

official = pytest.mark.skipif(not OFFICIAL_LISTS.is_dir(), reason="the official lists are not at hand")
CLASS_FOLDERS = ("folders", "flat", "kaggle")  # to which links can lead
RECOGNISED = {
    "folders": "class folders in",
    "tars": "tar of",
    "zip": "Kaggle's ZIP, ",
    "parquet": "parquet, ",
    "snapshot": "parquet, ",
    "unpacked": "images w",
}
TRAIN, VAL, SEMI = (f"datapreparation_{step}.py" for step in ("train", "val", "train_semi"))
DATA, ANNO = "data_preparation.sh", "datapreparation_anno.sh"
PLACE = "ImageNetS50/validation/n00001001/ILSVRC2012_val_00000000.JPEG"


@pytest.fixture(scope="session")
def toy(lists):
    return needed(lists, ["50"])


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory, toy):
    """A copy in class folders; only read."""
    return write_imagenet(tmp_path_factory.mktemp("toy") / "imagenet", "folders", toy)


def step(script, imagenet, save, *options, mode="50", **how):
    arguments = ("--imagenet-dir", imagenet, "--save-dir", save, "--mode", mode)
    return run(script, *arguments, *options, **how)


def expected_images(lists, mode):
    """Every file of validation, test and train-semi, and its content, straight from the lists."""
    files = {}
    for split in ("validation", "test"):
        for _, target in rows(lists, mapping_path(mode, split)):
            files[f"{split}/{target}"] = jpeg(target)
    for image, _ in rows(lists, train_semi_path(mode)):
        files[f"train-semi/{image}"] = jpeg(image)
    return files


def files_below(folder, *tops):
    found = {}
    for top in tops:
        for path in (folder / top).rglob("*"):
            if path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


# Every mode with the official lists.


@official
def test_official_lists(tmp_path):
    """Of the large mode, what is particular to it: merged classes, and images in folders of other classes."""
    train, val = needed(OFFICIAL_LISTS, MODES, train_images=1).train, needed(OFFICIAL_LISTS, ["50"]).val
    source, save = write_imagenet(tmp_path / "imagenet", "folders", Needed(train, val)), tmp_path / "save"
    env = environment(IMAGENETS_MIRROR=OFFICIAL_LISTS, XDG_CACHE_HOME=tmp_path / "cache")
    before = [p.stat().st_mtime_ns for p in (source, *source.iterdir())]
    step(TRAIN, source, save, mode="all", env=env)
    step(VAL, source, save, mode="50", env=env)
    step(SEMI, source, save, mode="all", env=env)
    result = step(TRAIN, source, tmp_path / "copied", "--copy", mode="919", env=env)
    assert f"{len(train)} images, the official set 1183322" in result.stderr
    assert [p.stat().st_mtime_ns for p in (source, *source.iterdir())] == before
    assert sorted(path.name for path in save.iterdir()) == ["ImageNetS300", "ImageNetS50", "ImageNetS919"]
    for name, mode in MODES.items():
        expected = expected_images(OFFICIAL_LISTS, name)
        if name != "50":
            expected = {place: image for place, image in expected.items() if place.startswith("train-semi/")}
        assert files_below(save / mode.folder, "validation", "test", "train-semi") == expected
        assert_train(save / mode.folder, name, train)
    for folder in (save / "ImageNetS919", tmp_path / "copied/ImageNetS919"):
        assert (folder / "train-full").resolve() == source / "train"
    assert_train(tmp_path / "copied/ImageNetS919", "919", train, copied=True)


def assert_train(folder, mode, places, copied=False):
    """Each class folder has its images, and in mode 919 those of the class merged into it."""
    wnids = set((OFFICIAL_LISTS / categories_path(mode)).read_text().split())
    merged = MERGED if mode == "919" else {}
    wanted = {wnid: set() for wnid in wnids}
    for place in places:
        wnid, name = place.split("/")
        if merged.get(wnid, wnid) in wnids:
            wanted[merged.get(wnid, wnid)].add(name)
    made = {path.name: {image.name for image in path.iterdir()} for path in (folder / "train").iterdir()}
    assert made == wanted
    for wnid in wnids:
        linked = not copied and wnid not in merged.values()
        assert (folder / "train" / wnid).is_symlink() is linked
        for image in () if linked else (folder / "train" / wnid).iterdir():
            assert image.is_symlink() is not copied
            assert image.read_bytes() == jpeg(image.name)


@official
def test_the_whole_preparation_is_complete(tmp_path, monkeypatch):
    """With as many training images as the set has, verify finds nothing wrong."""
    images = needed(OFFICIAL_LISTS, ["50"])
    monkeypatch.setitem(MODES, "50", dataclasses.replace(MODES["50"], train=len(images.train)))
    source = write_imagenet(tmp_path / "imagenet", "flat", images)
    archive = write_archive(tmp_path / "a.zip", masks_of(OFFICIAL_LISTS, "50"), "ImageNetS50/")
    files = {name: (OFFICIAL_LISTS / name).read_bytes() for name in SHA256}
    with serve(files | {ARCHIVES["50"]: archive.read_bytes()}) as host:
        env = environment(IMAGENETS_MIRROR=host.url, XDG_CACHE_HOME=tmp_path / "cache")
        run(DATA, source, tmp_path / "save", "50", env=env)
        asked = len(host.asked)
        run(DATA, source, tmp_path / "save", "50", env=env)
        assert len(host.asked) == asked
    result = run("verify.py", "--save-dir", tmp_path / "save", "--mode", "50", "--deep", env=env)
    assert "ImageNetS50: complete" in result.stdout


# One toy set, and all that is particular.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_classes_come_together_in_every_layout(tmp_path, layout):
    places = [f"{wnid}/{wnid}_{i}.JPEG" for wnid in ("n04355933", "n04356056") for i in range(3)]
    train = find_train(write_imagenet(tmp_path / "imagenet", layout, Needed(places, ["n04355933/a.JPEG"])))
    prepare(
        [plan_train("919", ["n04355933"], train, copy=False)], tmp_path / "imagenet", tmp_path / "save", 1
    )
    folder = tmp_path / "save/ImageNetS919"
    made = {image.name: image.read_bytes() for image in (folder / "train/n04355933").iterdir()}
    assert made == {Path(place).name: jpeg(place) for place in places}
    assert (folder / "train-full").is_symlink() is (layout in CLASS_FOLDERS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_step_alone_with_only_its_input(tmp_path, env, lists, toy, layout):
    """What belongs to the other step is taken away; the sets are the same in every layout."""
    imagenet = write_imagenet(tmp_path / "imagenet", layout, toy)
    for script, other in ((VAL, "train"), (SEMI, "val"), (TRAIN, "val")):
        places = ("*", "data/*", "snapshots/*/data/*", "ILSVRC/Data/CLS-LOC/*")
        hidden = [path for place in places for path in imagenet.glob(place) if other in path.name]
        for i, path in enumerate(hidden):
            path.rename(tmp_path / f"hidden {i}")
        result = step(script, imagenet, tmp_path / "save", env=env)
        for i, path in enumerate(hidden):
            (tmp_path / f"hidden {i}").rename(path)
        assert f"images: {RECOGNISED.get(layout, '')}" in result.stdout
        assert str(imagenet) in result.stdout
        assert hidden or layout == "zip"  # both parts are in one file
    found = files_below(tmp_path / "save/ImageNetS50", "validation", "test", "train-semi")
    assert found == expected_images(lists, "50")
    train = tmp_path / "save/ImageNetS50/train"
    made = {f"{c.name}/{i.name}": i.read_bytes() for c in train.iterdir() for i in c.iterdir()}
    assert made == {place: jpeg(place) for place in toy.train}


@pytest.mark.parametrize(
    ("script", "options", "number"), [(VAL, ["--link"], 300), (SEMI, ["--link"], 150), (TRAIN, [], 50)]
)
def test_links_are_right_whatever_path_was_given(tmp_path, env, imagenet, script, options, number):
    relative = os.path.relpath(imagenet, tmp_path)
    for save, start, more in (("save", "../", []), ("full", f"{imagenet}/", ["--absolute"])):
        step(script, relative, save, *options, *more, env=env, cwd=tmp_path)
        links = [path for path in (tmp_path / save).rglob("*") if path.is_symlink()]
        assert len(links) == number
        assert all(str(link.readlink()).startswith(start) and link.exists() for link in links)
        before = snapshot(tmp_path / save)
        step(script, imagenet, save, *options, env=env, cwd=tmp_path)
        assert snapshot(tmp_path / save) == before


def test_links_lead_to_where_things_really_are(tmp_path):
    disk = tmp_path / "disk"
    write_images(disk / "imagenet/train", ["n01/n01_1.JPEG", "n02/n02_1.JPEG"])

    def made(imagenet, save):
        (done,) = prepare([plan_train("50", ["n01"], find_train(imagenet), False)], imagenet, save, 1)
        assert (save / "ImageNetS50/train/n01/n01_1.JPEG").read_bytes() == jpeg("n01_1.JPEG")
        return done.made

    assert made(disk / "imagenet", disk / "sets") == 1
    link = disk / "sets/ImageNetS50/train/n01"
    assert link.readlink() == Path("../../../imagenet/train/n01")
    (disk / "a/b/c").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(disk / "a/b/c")  # from there, as many .. lead elsewhere
    assert made(disk / "imagenet", tmp_path / "alias") == 1
    disk = disk.rename(tmp_path / "mounted elsewhere")
    assert made(disk / "imagenet", disk / "sets") == 0
    (disk / "imagenet").rename(tmp_path / "moved")
    assert made(tmp_path / "moved", disk / "sets") == 1
    assert link_text("/data/imagenet/train/n01", "/scratch/sets/train") == "/data/imagenet/train/n01"


def test_a_disk_without_links_is_named_with_the_cure(tmp_path, imagenet, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    arguments = SimpleNamespace(
        imagenet_dir=imagenet, save_dir=tmp_path / "save", workers=1, absolute=False, copy=False
    )
    plan = plan_train("50", ["n00001000"], find_train(imagenet), copy=False)
    with pytest.raises(
        InputError, match=r"n00001000: this disk takes no symbolic links .*: set COPY to true"
    ):
        carry_out([plan], arguments, "set COPY to true")


def test_flat_and_sorted_at_once(tmp_path, env, lists, toy):
    """A script that sorts val into class folders was interrupted."""
    write_images(tmp_path / "imagenet/val", toy.val[::2])
    write_images(tmp_path / "imagenet/val", [place.split("/")[1] for place in toy.val[1::2]])
    step(VAL, tmp_path / "imagenet", tmp_path / "save", env=env)
    wanted = {k: v for k, v in expected_images(lists, "50").items() if not k.startswith("train-semi")}
    assert files_below(tmp_path / "save/ImageNetS50", "validation", "test") == wanted


def test_only_images_are_copied(tmp_path, env, toy):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    folder = imagenet / "train/n00001000"
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    shutil.copytree(folder, folder / "n00001000")  # unpacked twice
    step(TRAIN, imagenet, tmp_path / "save", "--copy", env=env)
    names = {path.name for path in (tmp_path / "save/ImageNetS50/train/n00001000").iterdir()}
    assert names == {Path(place).name for place in toy.train if place.startswith("n00001000/")}


@pytest.mark.parametrize("script", [TRAIN, VAL, SEMI])
def test_nothing_recognised(tmp_path, env, imagenet, script):
    (tmp_path / "other/images/n00001000").mkdir(parents=True)
    (tmp_path / "data/copies").mkdir(parents=True)
    (tmp_path / "data/copies/imagenet").symlink_to(imagenet)
    (tmp_path / "flat/val").mkdir(parents=True)
    (tmp_path / "flat/val/a.JPEG").touch()
    for given, message in {
        "other": "looked there for",
        "nowhere": "no such folder",
        "other/images": f"name its parent, {tmp_path / 'other'}",
        "data": f"They are in {tmp_path}/data/copies/imagenet: name that folder",
        "data/copies": f"They are in {tmp_path}/data/copies/imagenet: name that folder",
    }.items():
        assert message in step(script, tmp_path / given, tmp_path / "save", env=env, status=1).stderr
    told = step(VAL, tmp_path / "flat/val", tmp_path / "save", env=env, status=1).stderr
    assert f"They are in {tmp_path}/flat: name that folder" in told
    assert not (tmp_path / "save").exists()


def test_a_folder_of_another_name_is_recognised(tmp_path, env, imagenet):
    copy = tmp_path / "my copy"
    copy.mkdir()
    for script, part, name in ((TRAIN, "train", "training"), (VAL, "val", "validation")):
        (copy / name).symlink_to(imagenet / part)
        result = step(script, copy, tmp_path / "save", env=env, status=1)
        assert f"{copy / name} looks like them: rename it to {part}" in result.stderr
        subprocess.run(result.stderr.split("make a link, ")[1], shell=True, check=True)
    step(VAL, copy, tmp_path / "save", env=env)


def test_missing_images_are_reported_together(tmp_path):
    lists = write_toy_lists(tmp_path / "lists", ["50", "300", "919"])
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", needed(lists, ["50", "300"]))
    env = environment(IMAGENETS_LISTS=lists)
    for split in ("validation", "test"):  # 919 has the lists of 300 here
        shutil.copy(lists / mapping_path("300", split), lists / mapping_path("919", split))
    of_50 = [source for source, _ in rows(lists, mapping_path("50", "validation"))[:3]]
    of_300 = [source for source, _ in rows(lists, mapping_path("300", "test"))[-9:]]
    for source in (*of_50, *of_300):
        (imagenet / "val" / source).unlink()
    (imagenet / "val" / of_300[-1]).write_bytes(b"")
    result = step(VAL, imagenet, tmp_path / "save", mode="50", env=env, status=1)
    assert "lacks 3 needed" in result.stderr
    assert f"{of_50[0]}: No such file or directory (needed by 50)" in result.stderr
    result = step(VAL, imagenet, tmp_path / "save", mode="all", env=env, status=1)
    assert "lacks 12 needed" in result.stderr and "(needed by 300, 919)" in result.stderr
    assert result.stderr.count("(needed by") == 10 and "… and 2 more" in result.stderr
    assert not (tmp_path / "save").exists()


def test_a_missing_class_folder(tmp_path, env, toy):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    shutil.rmtree(imagenet / "train/n00001007")
    shutil.rmtree(imagenet / "train/n00001008")
    (imagenet / "train/n00001008").mkdir()
    for options in ([], ["--copy"]):
        result = step(TRAIN, imagenet, tmp_path / "save", *options, env=env, status=1)
        assert "n00001007: No such file or directory (needed by 50)" in result.stderr
        assert "n00001008: no image in it (needed by 50)" in result.stderr
        assert not (tmp_path / "save").exists()


@pytest.mark.parametrize("cut", [700, 60_000])
def test_a_tar_that_is_cut_off(tmp_path, env, toy, cut):
    imagenet = write_imagenet(tmp_path / "imagenet", "tars", toy)
    for tar in imagenet.iterdir():
        os.truncate(tar, cut)
    for script in (TRAIN, VAL, SEMI):
        assert "ILSVRC2012_img_" in step(script, imagenet, tmp_path / "save", env=env, status=1).stderr
    assert not (tmp_path / "save").exists()


def rewrite_class_tars(whole, change):
    """Write the tar of class tars again, each with the content that ``change(name, content)`` returns."""
    with tarfile.open(whole) as tar:
        tars = {member.name: tar.extractfile(member).read() for member in tar}
    with tarfile.open(whole, "w") as tar:
        for name, content in tars.items():
            member, content = tarfile.TarInfo(name), change(name, content)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_a_class_tar_that_is_cut_off_within_the_whole_one(tmp_path, env, toy):
    """Its last image would go on into the next class."""
    whole = write_imagenet(tmp_path / "imagenet", "tars", toy) / "ILSVRC2012_img_train.tar"
    rewrite_class_tars(
        whole,
        lambda name, content: content[: content.rindex(b"\xff\xd9") - 100] if "1007" in name else content,
    )
    result = step(TRAIN, whole.parent, tmp_path / "save", env=env, status=1)
    assert f"{whole}: cut off in n00001007_" in result.stderr


@pytest.mark.parametrize("damage", [b"\xff", b"\0"], ids=["garbage", "zeros"])
@pytest.mark.parametrize("header", ["n00001007_0.JPEG", "n00001007.tar"])
def test_a_damaged_header_within_a_tar(tmp_path, env, toy, header, damage):
    """The reader would take it for the end, and go on without the rest."""
    whole = write_imagenet(tmp_path / "imagenet", "tars", toy) / "ILSVRC2012_img_train.tar"
    content = bytearray(whole.read_bytes())
    at = content.index(header.encode() + b"\0")
    content[at : at + 512] = damage * 512
    whole.write_bytes(content)
    result = step(TRAIN, whole.parent, tmp_path / "save", env=env, status=1)
    assert f"{whole}: damaged header at byte {at}" in result.stderr
    assert not (tmp_path / "save").exists()


def test_class_tars_without_end_blocks(tmp_path, env, toy):
    """What follows them in the outer tar is not theirs; an empty one has no images."""
    whole = write_imagenet(tmp_path / "imagenet", "tars", toy) / "ILSVRC2012_img_train.tar"

    def without_end(name, content):
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            tar.getmembers()
            return content[: tar.offset]

    rewrite_class_tars(whole, without_end)
    step(TRAIN, whole.parent, tmp_path / "save", env=env)
    made = {p.name for p in (tmp_path / "save/ImageNetS50/train").rglob("*.JPEG")}
    assert made == {Path(place).name for place in toy.train}
    rewrite_class_tars(whole, lambda name, content: b"" if "1007" in name else content)
    result = step(TRAIN, whole.parent, tmp_path / "other", env=env, status=1)
    assert f"{whole}: no image of n00001007 in it" in result.stderr


@pytest.mark.parametrize("empty", ["--imagenet-dir", "--save-dir", "--lists", "--mirror"])
def test_an_empty_path_is_not_the_current_folder(tmp_path, env, imagenet, empty):
    paths = {"--imagenet-dir": imagenet, "--save-dir": tmp_path / "save"} | {empty: ""}
    options = [f"{option}={path}" for option, path in paths.items()]
    result = run(VAL, *options, "--mode", "50", env=env, status=2, cwd=tmp_path)
    assert f"{empty}: an empty path" in result.stderr
    assert list(tmp_path.iterdir()) == []


# Nothing of the user's is lost.


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *((PLACE, kind) for kind in ("file", "link", "folder", "link to nowhere")),
        *((Path(PLACE).parent, kind) for kind in ("file", "link")),
        ("ImageNetS50", "link"),
    ],
)
def test_what_is_in_the_way_is_named_and_kept(tmp_path, env, imagenet, place, kind):
    save, path = tmp_path / "save", tmp_path / "save" / place
    path.parent.mkdir(parents=True)
    (save / "elsewhere").mkdir()
    if kind == "file":
        path.write_bytes(b"mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(save / "elsewhere" if kind == "link" else "nowhere")
    before = snapshot(save)
    result = step(VAL, imagenet, save, env=env, status=1)
    assert f"{path}: " in result.stderr
    assert "nothing was written" in result.stderr
    assert snapshot(save) == before


def test_links_and_copies_do_not_mix(tmp_path, env, imagenet):
    (tmp_path / "alias").symlink_to(imagenet)
    step(TRAIN, tmp_path / "alias", tmp_path / "save", env=env)
    step(TRAIN, imagenet, tmp_path / "save", env=env)  # a right link by another path
    before = snapshot(imagenet)
    result = step(TRAIN, imagenet, tmp_path / "save", "--copy", env=env, status=1)
    assert "ImageNetS50/train/n00001000: a link to " in result.stderr
    assert snapshot(imagenet) == before
    link = tmp_path / "save/ImageNetS50/train/n00001000"
    link.unlink()
    link.symlink_to(imagenet / "train/n00001001")
    told = step(TRAIN, imagenet, tmp_path / "save", env=env, status=1).stderr
    assert f"{link}: a link to {imagenet}/train/n00001001, not to {imagenet}/train/n00001000" in told
    step(TRAIN, imagenet, tmp_path / "other", "--copy", env=env)
    result = step(TRAIN, imagenet, tmp_path / "other", env=env, status=1)
    assert "ImageNetS50/train/n00001000: a real folder, where a link would be made" in result.stderr


def test_save_in_imagenet_is_refused(tmp_path, env, toy):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    before = snapshot(imagenet)
    (tmp_path / "alias").symlink_to(imagenet)
    for where in (".", "val", "val/n00001000", "new", "./train/../train"):
        result = step(VAL, imagenet, imagenet / where, env=env, status=1)
        assert "lies in the ImageNet copy" in result.stderr
        step(TRAIN, imagenet, tmp_path / "alias" / where, env=env, status=1)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/val").symlink_to(imagenet / "val")
    step(VAL, tmp_path / "linked", imagenet / "val/sets", env=env, status=1)
    assert snapshot(imagenet) == before


def test_imagenet_in_the_set_is_refused_and_in_save_is_fine(tmp_path, env, toy):
    save = tmp_path / "save"
    write_imagenet(save / "ImageNetS50", "folders", toy)
    before = snapshot(save)
    result = step(VAL, save / "ImageNetS50", save, env=env, status=1)
    assert "which is to be made" in result.stderr
    assert snapshot(save) == before
    (save / "ImageNetS50").rename(save / "imagenet")
    step(VAL, save / "imagenet", save, env=env)


def test_a_second_run_writes_nothing_but_empty_files(tmp_path, env, imagenet):
    save = tmp_path / "save"
    steps = [partial(step, script, imagenet, save, env=env) for script in (VAL, SEMI)]
    steps.append(partial(step, TRAIN, imagenet, save, "--copy", env=env))
    for each in steps:
        each()
    (save / "ImageNetS50/test/n00001000/notes.txt").write_text("mine")
    whole = snapshot(save)
    for path in (save, *save.rglob("*")):
        os.utime(path, (1, 1), follow_symlinks=False)
    for each in steps:
        assert "all there before" in each().stdout
    assert all(path.lstat().st_mtime == 1 for path in (save, *save.rglob("*")))
    (save / PLACE).write_bytes(b"")
    assert "1 made now" in steps[0]().stdout
    assert snapshot(save) == whole


def test_names_of_folders(tmp_path, env, lists, imagenet):
    """Shell scripts quote them, and Python takes no path for an option."""
    mirror = tmp_path / "mirror"
    write_archive(mirror / ARCHIVES["50"], masks_of(lists, "50"))
    env["IMAGENETS_MIRROR"] = str(mirror)
    for name in ("--dashes", 'it\'s "quoted" $HOME;a'):
        (tmp_path / name).symlink_to(imagenet)
        run(DATA, name, f"{name} saved", "50", env=env, cwd=tmp_path)
    for save in ("größe 図", "-leading dash"):
        step(VAL, imagenet, save, env=env, cwd=tmp_path)
        assert (tmp_path / save / "ImageNetS50/validation").is_dir()
    for name in ("--dashes saved", 'it\'s "quoted" $HOME;a saved'):
        result = run("verify.py", f"--save-dir={name}", "--mode", "50", env=env, cwd=tmp_path)
        assert "ImageNetS50: complete" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        *([DATA, *given] for given in ([], ["a", "b"], ["", "b", "50"], ["a", "", "50"], ["a", "b", "51"])),
        *([DATA, "a", "b", "50", *given] for given in (["yes"], ["true", "c"], ["true", "--absolute", "c"])),
        *([ANNO, *given] for given in ([], ["a"], ["", "50"], ["a", "50", "b"], ["a", "51"])),
        [TRAIN, "--mode", "50"],
        [TRAIN, "--imagenet-dir", "a", "--save-dir", "b", "--mode", "50", "--link"],
        [VAL, "--imagenet-dir", "a", "--save-dir", "b", "--mode", "50", "--workers", "0"],
        ["verify.py", "--save", "a", "--mode", "50"],
        ["datapreparation_anno.py", "--save-dir", "a", "--mode", "all", "--archive", "b.zip"],
    ],
    ids=" ".join,
)
def test_wrong_usage(tmp_path, env, arguments):
    assert "usage: " in run(*arguments, env=env, cwd=tmp_path, status=2).stderr
    assert not any(tmp_path.iterdir())


def test_data_preparation_stops_at_the_first_failure(tmp_path, env, toy):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    (imagenet / "train/n00001000/n00001000_0.JPEG").unlink()
    result = run(DATA, imagenet, tmp_path / "save", "50", "true", env=env, status=1)
    assert "n00001000_0.JPEG: No such file" in result.stderr
    made = {path.name for path in (tmp_path / "save/ImageNetS50").iterdir()}
    assert made == {"train", "validation", "test"}
    assert not (tmp_path / "save/ImageNetS50/train/n00001000").is_symlink()
    (imagenet / "val" / toy.val[3]).unlink()
    result = run(DATA, imagenet, tmp_path / "other", "50", "true", env=env, status=1)
    assert "lacks 1 needed image" in result.stderr
    assert not (tmp_path / "other").exists()  # val is looked for before train is made


# Disk, other file systems, failing copies.


def test_too_little_room_is_told_before_the_first_copy(tmp_path, imagenet, monkeypatch):
    images = {f"test/n1/{i}.JPEG": SourceImage(str(path), 5000) for i, path in enumerate([imagenet] * 3)}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    with pytest.raises(InputError, match=r"needs 24\.6 kB in .*, and only 20\.0 kB are free"):
        prepare([Plan("50", copies=images)], imagenet, tmp_path / "save", 1)
    assert not list((tmp_path / "save").iterdir())


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.ENOSYS, "absent"])
def test_copy_without_help_from_the_kernel(tmp_path, monkeypatch, refusal):
    def refuse(*arguments):
        raise OSError(refusal, "refused")

    if refusal == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    copy_image(SourceImage(str(tmp_path / "a"), len(content)), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == content
    copy_image(SourceImage(str(tmp_path / "a"), 2_000_000, offset=1_000_001), str(tmp_path / "c"))
    assert (tmp_path / "c").read_bytes() == content[1_000_001:]


def test_a_copy_that_fails_leaves_no_rest(tmp_path, env, toy, monkeypatch):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    val = find_val(imagenet)
    plan = Plan("50")
    for place in toy.val:
        plan.add(f"validation/{place}", val.image(place), link=False)
    shrunk = imagenet / "val" / toy.val[70]
    os.truncate(shrunk, 10)  # after it was looked at
    with pytest.raises(InputError, match="ended after 10 of"):
        prepare([plan], imagenet, tmp_path / "save", 2)
    assert not (tmp_path / "save/ImageNetS50" / preparation.STAGING).exists()
    assert not (tmp_path / "save" / preparation.LOCK).exists()
    assert not (tmp_path / "save/ImageNetS50/validation" / toy.val[70]).exists()


# Killed, and run again.


@pytest.mark.parametrize("partly", [False, True], ids=["new folders", "folders there"])
@pytest.mark.parametrize(("script", "options"), [(VAL, []), (TRAIN, ["--copy"]), (TRAIN, []), (SEMI, [])])
@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_killed_again_and_again(tmp_path, env, toy, layout, script, options, partly):
    """Whatever a kill leaves, with the next one on top, ends in the same set; what has its name is whole."""
    imagenet, save = write_imagenet(tmp_path / "imagenet", layout, toy), tmp_path / "save"
    step(script, imagenet, tmp_path / "undisturbed", *options, env=env)
    wanted = snapshot(tmp_path / "undisturbed")
    if partly:
        shutil.copytree(tmp_path / "undisturbed", save, symlinks=True)
        for path in sorted(path for path in save.rglob("*") if path.is_symlink() or path.is_file())[::2]:
            path.unlink()
    work = partial(step, script, imagenet, save, *options, env=env)
    calls = ("rename", "mkdir", "symlink", "copy_file_range", "rmdir", "unlink")
    kills = [killed_at(moment, calls, work) for moment in (1, 2, 3, 5, 20, 53, 54, 300)]
    assert any(kills[:6])
    for place, content in snapshot(save).items():
        if preparation.STAGING not in place and place != preparation.LOCK:
            assert content == wanted[place]
    step(script, imagenet, save, *options, env=env)
    assert snapshot(save) == wanted


# Two at a time.


def test_two_runs_into_one_save(tmp_path, env, imagenet):
    save = tmp_path / "save"
    save.mkdir()
    with locked(save / preparation.LOCK):
        result = step(VAL, imagenet, save, env=env, status=1)
        assert f"another run is at work in {save}" in result.stderr
        assert [path.name for path in save.iterdir()] == [preparation.LOCK]
    (save / preparation.LOCK).write_text("12345")  # left by a killed run
    step(VAL, imagenet, save, env=env)
    assert [path.name for path in save.iterdir()] == ["ImageNetS50"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_in_place_of_the_lock_is_kept(tmp_path, env, imagenet, linked):
    lock = tmp_path / "save" / preparation.LOCK
    lock.parent.mkdir()
    mine = tmp_path / "mine" if linked else lock
    mine.write_text("mine")
    if linked:
        lock.symlink_to(mine)
    result = step(VAL, imagenet, tmp_path / "save", env=env, status=1)
    assert f"{lock}: no lock file" in result.stderr
    assert mine.read_text() == "mine"


def test_merged_classes(tmp_path):
    """They are merged only where they are no classes themselves, and their images' names differ."""
    assert merged_into("919", ["n04355933"], "n04355933") == ["n04356056"]
    assert merged_into("919", ["n04355933", "n04356056"], "n04355933") == []
    assert merged_into("300", ["n04355933"], "n04355933") == []
    write_images(tmp_path / "train", ["n04355933/a.JPEG", "n04356056/a.JPEG"])
    with pytest.raises(InputError, match=r"a second image for ImageNetS919/train/n04355933/a\.JPEG"):
        plan_train("919", ["n04355933"], find_train(tmp_path), copy=True)
