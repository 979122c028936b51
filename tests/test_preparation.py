"""From an ImageNet copy of any layout to train, validation, test and train-semi."""

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
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
from helpers.scripts import command, environment, run

from command_line.preparation import carry_out
from imagenets.classes import MERGED, MODES
from imagenets.common.errors import InputError
from imagenets.common.locks import locked
from imagenets.lists import (
    ARCHIVES,
    SHA256,
    categories_path,
    mapping_path,
    train_semi_path,
)
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
    "flat": "",
    "kaggle": "",
    "tars": "tar of",
    "zip": "Kaggle's ZIP, ",
    "parquet": "parquet, ",
    "snapshot": "parquet, ",
    "unpacked": "images w",
    "repeated": "",
}
PACKED = ("tars", "zip", "parquet", "snapshot")
TRAIN, VAL, SEMI = (f"datapreparation_{step}.py" for step in ("train", "val", "train_semi"))


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    return write_toy_lists(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="session")
def toy(lists):
    return needed(lists, ["50"])


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory, toy):
    """A copy in class folders; only read."""
    return write_imagenet(tmp_path_factory.mktemp("toy") / "imagenet", "folders", toy)


@pytest.fixture
def env(tmp_path, lists):
    return environment(IMAGENETS_LISTS=lists, XDG_CACHE_HOME=tmp_path / "cache")


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


# Every layout, every mode, with the official lists.


@pytest.fixture(scope="session")
def official_images():
    return needed(OFFICIAL_LISTS, MODES)


@official
@pytest.mark.parametrize("layout", ["folders", "tars", "parquet"])
def test_official_lists_every_mode(tmp_path, official_images, layout):
    source = write_imagenet(tmp_path / "imagenet", layout, official_images)
    save = tmp_path / "save"
    env = environment(IMAGENETS_MIRROR=OFFICIAL_LISTS, XDG_CACHE_HOME=tmp_path / "cache")
    before = [p.stat().st_mtime_ns for p in (source, *source.iterdir())]
    for script in (TRAIN, VAL, SEMI):
        step(script, source, save, mode="all", env=env)
    assert [p.stat().st_mtime_ns for p in (source, *source.iterdir())] == before
    assert sorted(path.name for path in save.iterdir()) == ["ImageNetS300", "ImageNetS50", "ImageNetS919"]
    for name, mode in MODES.items():
        folder = save / mode.folder
        files = files_below(folder, "validation", "test", "train-semi")
        assert files == expected_images(OFFICIAL_LISTS, name)
        counts = {top: sum(path.startswith(f"{top}/") for path in files) for top in ("validation", "test")}
        assert counts == {"validation": mode.validation, "test": mode.test}
        assert len(files) - sum(counts.values()) == mode.train_semi
        assert_train(folder, name, official_images, layout)
    train_full = save / "ImageNetS919/train-full"
    if layout not in CLASS_FOLDERS:
        assert not train_full.is_symlink()
        assert not train_full.exists()
    else:
        root = source / "ILSVRC/Data/CLS-LOC" if layout == "kaggle" else source
        assert train_full.resolve() == root / "train"


def assert_train(folder: Path, mode: str, images: Needed, layout: str, copied: bool = False):
    """Each class folder has its images, and in mode 919 those of the class merged into it."""
    wnids = set((OFFICIAL_LISTS / categories_path(mode)).read_text().split())
    merged = MERGED if mode == "919" else {}
    wanted: dict[str, set[str]] = {wnid: set() for wnid in wnids}
    for place in images.train:
        wnid, name = place.split("/")
        if merged.get(wnid, wnid) in wnids:
            wanted[merged.get(wnid, wnid)].add(name)
    assert {
        path.name: {image.name for image in path.iterdir()} for path in (folder / "train").iterdir()
    } == wanted
    for wnid in wnids:
        linked = layout in CLASS_FOLDERS and not copied and wnid not in merged.values()
        assert (folder / "train" / wnid).is_symlink() is linked
        if not linked:
            for image in (folder / "train" / wnid).iterdir():
                assert image.is_symlink() is (layout not in PACKED and not copied)
                assert image.read_bytes() == jpeg(image.name)


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


@official
def test_merged_classes_are_copied_flat(tmp_path):
    images = needed(OFFICIAL_LISTS, ["919"], train_images=1)
    source = write_imagenet(tmp_path / "imagenet", "folders", Needed(images.train, []))
    env = environment(IMAGENETS_MIRROR=OFFICIAL_LISTS, XDG_CACHE_HOME=tmp_path / "cache")
    result = step(TRAIN, source, tmp_path / "save", "--copy", mode="919", env=env)
    folder = tmp_path / "save/ImageNetS919"
    assert_train(folder, "919", images, "folders", copied=True)
    assert (folder / "train-full").resolve() == source / "train"
    assert f"{len(images.train)} images, the official set 1183322" in result.stderr


@official
def test_the_whole_preparation_is_complete(tmp_path):
    """With as many training images as the official set, here hard links, verify finds nothing wrong."""
    images = needed(OFFICIAL_LISTS, ["50"], train_images=0)
    wnids = (OFFICIAL_LISTS / categories_path("50")).read_text().split()
    source = write_imagenet(tmp_path / "imagenet", "flat", images)
    for i in range(MODES["50"].train - len(images.train)):
        wnid = wnids[i % 50]
        os.link(
            source / "train" / images.train[i % 500], source / "train" / wnid / f"{wnid}_{100_000 + i}.JPEG"
        )
    archive = write_archive(tmp_path / "a.zip", masks_of(OFFICIAL_LISTS, "50"), "ImageNetS50/")
    files = {name: (OFFICIAL_LISTS / name).read_bytes() for name in SHA256}
    files[ARCHIVES["50"]] = archive.read_bytes()
    with serve(files) as host:
        env = environment(IMAGENETS_MIRROR=host.url, XDG_CACHE_HOME=tmp_path / "cache")
        run("data_preparation.sh", source, tmp_path / "save", "50", env=env)
        asked = len(host.asked)
        run("data_preparation.sh", source, tmp_path / "save", "50", env=env)
        assert len(host.asked) == asked
    result = run("verify.py", "--save-dir", tmp_path / "save", "--mode", "50", "--deep", env=env)
    assert "ImageNetS50: complete" in result.stdout


# One toy set, and all that is particular.


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
        assert f"images: {RECOGNISED[layout]}" in result.stdout
        assert str(imagenet) in result.stdout
        assert hidden or layout == "zip"  # both parts are in one file
    found = files_below(tmp_path / "save/ImageNetS50", "validation", "test", "train-semi")
    assert found == expected_images(lists, "50")
    train = tmp_path / "save/ImageNetS50/train"
    made = {f"{c.name}/{i.name}": i.read_bytes() for c in train.iterdir() for i in c.iterdir()}
    assert made == {place: jpeg(place) for place in toy.train}


@pytest.mark.parametrize(("script", "options"), [(VAL, ["--link"]), (SEMI, ["--link"]), (TRAIN, [])])
def test_links_are_right_whatever_path_was_given(tmp_path, env, imagenet, script, options):
    relative = os.path.relpath(imagenet, tmp_path)
    step(script, relative, "save", *options, env=env, cwd=tmp_path)
    step(script, relative, "full", *options, "--absolute", env=env, cwd=tmp_path)
    for save, start in (("save", "../"), ("full", f"{imagenet}/")):
        links = [path for path in (tmp_path / save).rglob("*") if path.is_symlink()]
        assert len(links) in (50, 150, 300)
        for link in links:
            assert str(link.readlink()).startswith(start)
            assert link.exists()
        before = snapshot(tmp_path / save)
        step(script, imagenet, save, *options, env=env, cwd=tmp_path)
        assert snapshot(tmp_path / save) == before


@pytest.fixture
def linked(tmp_path):
    """ImageNet and a set of one class, made by links, in one folder; and how to make it."""
    write_images(tmp_path / "disk/imagenet/train", ["n01/n01_1.JPEG", "n02/n02_1.JPEG"])

    def make(imagenet, save, **how):
        return prepare([plan_train("50", ["n01"], find_train(imagenet), False)], imagenet, save, 1, **how)

    make(tmp_path / "disk/imagenet", tmp_path / "disk/sets")
    return tmp_path / "disk", make


def test_imagenet_and_sets_can_be_moved_together(tmp_path, linked):
    disk, make = linked
    made = disk.rename(tmp_path / "mounted elsewhere")
    link = made / "sets/ImageNetS50/train/n01"
    assert link.readlink() == Path("../../../imagenet/train/n01")
    assert (link / "n01_1.JPEG").read_bytes() == jpeg("n01_1.JPEG")
    assert [done.made for done in make(made / "imagenet", made / "sets")] == [0]


def test_links_count_from_where_the_sets_really_are(tmp_path, linked):
    """SAVE is reached through a link to a deeper folder, from which as many .. lead elsewhere."""
    disk, make = linked
    (disk / "a/b/c").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(disk / "a/b/c")
    make(disk / "imagenet", tmp_path / "alias")
    assert (tmp_path / "alias/ImageNetS50/train/n01/n01_1.JPEG").is_file()


def test_links_are_absolute_where_only_the_root_is_shared():
    assert link_text("/data/imagenet/train/n01", "/scratch/sets/train") == "/data/imagenet/train/n01"
    assert link_text("/data/imagenet/train/n01", "/data/sets/train") == "../../imagenet/train/n01"


def test_links_that_lead_nowhere_are_made_again(tmp_path, linked):
    disk, make = linked
    (disk / "imagenet").rename(tmp_path / "moved")
    link = disk / "sets/ImageNetS50/train/n01"
    assert link.is_symlink() and not link.exists()
    assert [done.made for done in make(tmp_path / "moved", disk / "sets")] == [1]
    assert (link / "n01_1.JPEG").is_file()


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


def test_a_right_link_by_another_path_is_accepted(tmp_path, env, imagenet):
    (tmp_path / "alias").symlink_to(imagenet)
    step(TRAIN, tmp_path / "alias", tmp_path / "save", env=env)
    step(TRAIN, imagenet, tmp_path / "save", env=env)


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
    shutil.copytree(folder, imagenet / "train/n00001000/n00001000")  # unpacked twice
    step(TRAIN, imagenet, tmp_path / "save", "--copy", env=env)
    names = {path.name for path in (tmp_path / "save/ImageNetS50/train/n00001000").iterdir()}
    assert names == {Path(place).name for place in toy.train if place.startswith("n00001000/")}


@pytest.mark.parametrize("script", [TRAIN, VAL, SEMI])
def test_nothing_recognised(tmp_path, env, script):
    (tmp_path / "imagenet/images").mkdir(parents=True)
    result = step(script, tmp_path / "imagenet", tmp_path / "save", env=env, status=1)
    assert "looked there for" in result.stderr
    assert "ILSVRC2012_img_" in result.stderr
    assert not (tmp_path / "save").exists()
    result = step(script, tmp_path / "nowhere", tmp_path / "save", env=env, status=1)
    assert "no such folder" in result.stderr
    (tmp_path / "imagenet/images/n00001000").mkdir()
    result = step(script, tmp_path / "imagenet/images", tmp_path / "save", env=env, status=1)
    assert f"name its parent, {tmp_path / 'imagenet'}" in result.stderr


@pytest.mark.parametrize("below", ["", "copies"])
def test_a_parent_of_the_copy_is_told_where_it_is(tmp_path, env, imagenet, below):
    place = tmp_path / "data" / below / "imagenet"
    place.parent.mkdir(parents=True)
    place.symlink_to(imagenet)
    for script in (TRAIN, VAL, SEMI):
        result = step(script, tmp_path / "data", tmp_path / "save", env=env, status=1)
        assert f"They are in {place}: name that folder" in result.stderr


def test_one_level_too_deep_without_class_folders(tmp_path, env, toy):
    copy = write_imagenet(tmp_path / "flat", "flat", toy)
    result = step(VAL, copy / "val", tmp_path / "save", env=env, status=1)
    assert f"They are in {copy}: name that folder" in result.stderr


def test_a_folder_of_another_name_is_recognised(tmp_path, env, imagenet):
    copy = tmp_path / "my copy"
    copy.mkdir()
    for part, name in (("train", "training"), ("val", "validation")):
        (copy / name).symlink_to(imagenet / part)
        result = step(TRAIN if part == "train" else VAL, copy, tmp_path / "save", env=env, status=1)
        assert f"{copy / name} looks like them: rename it to {part}" in result.stderr
        subprocess.run(result.stderr.split("make a link, ")[1], shell=True, check=True)
    step(VAL, copy, tmp_path / "save", env=env)


def test_missing_images_are_reported_together(tmp_path, toy):
    lists = write_toy_lists(tmp_path / "lists", ["50", "300"])
    images = needed(lists, ["50", "300"])
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", images)
    both = rows(lists, mapping_path("50", "validation"))[:3]
    for source, _ in both:
        (imagenet / "val" / source).unlink()
    for source, _ in rows(lists, mapping_path("300", "test"))[-9:-1]:
        (imagenet / "val" / source).unlink()
    (imagenet / "val" / rows(lists, mapping_path("300", "test"))[-1][0]).write_bytes(b"")
    env = environment(IMAGENETS_LISTS=lists)
    shutil.copytree(lists, tmp_path / "same")
    result = step(VAL, imagenet, tmp_path / "save", mode="50", env=env, status=1)
    assert "lacks 3 needed" in result.stderr
    assert f"{both[0][0]}: No such file or directory (needed by 50)" in result.stderr
    (lists / categories_path("919")).write_text("\n".join(f"n{1000 + i:08d}" for i in range(919)))
    for split in ("validation", "test"):
        shutil.copy(lists / mapping_path("300", split), lists / mapping_path("919", split))
    result = step(VAL, imagenet, tmp_path / "save", mode="all", env=env, status=1)
    # 919 has the lists of 300 here; the images of 50 are others.
    assert "(needed by 300, 919)" in result.stderr
    assert "… and " in result.stderr
    assert result.stderr.count("(needed by") == 10
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
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        os.truncate(imagenet / name, cut)
    for script in (TRAIN, VAL, SEMI):
        result = step(script, imagenet, tmp_path / "save", env=env, status=1)
        assert "ILSVRC2012_img_" in result.stderr
    assert not (tmp_path / "save").exists()


def test_a_class_tar_that_is_cut_off_within_the_whole_one(tmp_path, env, toy):
    """Its last image would go on into the next class."""
    imagenet = write_imagenet(tmp_path / "imagenet", "tars", toy)
    whole, broken = imagenet / "ILSVRC2012_img_train.tar", tmp_path / "broken.tar"
    with tarfile.open(whole) as tar, tarfile.open(broken, "w") as cut:
        for member in tar:
            content = tar.extractfile(member).read()
            if member.name == "n00001007.tar":
                content = content[: content.rindex(b"\xff\xd9") - 100]
                member.size = len(content)
            cut.addfile(member, io.BytesIO(content))
    broken.replace(whole)
    result = step(TRAIN, imagenet, tmp_path / "save", env=env, status=1)
    assert f"{whole}: cut off in n00001007_" in result.stderr


@pytest.mark.parametrize("damage", [b"\xff", b"\0"], ids=["garbage", "zeros"])
@pytest.mark.parametrize("header", ["n00001007_0.JPEG", "n00001007.tar"])
def test_a_damaged_header_within_a_tar(tmp_path, env, toy, header, damage):
    """The reader would take it for the end, and go on without the rest."""
    imagenet = write_imagenet(tmp_path / "imagenet", "tars", toy)
    whole = imagenet / "ILSVRC2012_img_train.tar"
    content = bytearray(whole.read_bytes())
    at = content.index(header.encode() + b"\0")
    content[at : at + 512] = damage * 512
    whole.write_bytes(content)
    result = step(TRAIN, imagenet, tmp_path / "save", env=env, status=1)
    assert f"{whole}: damaged header at byte {at}" in result.stderr
    assert not (tmp_path / "save").exists()


def test_class_tars_without_end_blocks(tmp_path, env, toy):
    """What follows them in the outer tar is not theirs; an empty one has no images."""
    imagenet = write_imagenet(tmp_path / "imagenet", "tars", toy)
    whole, cut = imagenet / "ILSVRC2012_img_train.tar", tmp_path / "cut.tar"
    for empty in (False, True):
        with tarfile.open(whole) as tar, tarfile.open(cut, "w") as made:
            for member in tar:
                content = tar.extractfile(member).read()
                with tarfile.open(fileobj=io.BytesIO(content)) as inner:
                    inner.getmembers()
                    member.size = inner.offset
                if empty and member.name == "n00001007.tar":
                    member.size = 0
                made.addfile(member, io.BytesIO(content))
        cut.replace(whole)
        result = step(TRAIN, imagenet, tmp_path / f"save {empty}", env=env, status=int(empty))
    assert f"{whole}: no image in its n00001007.tar" in result.stderr
    made = {p.name for p in (tmp_path / "save False/ImageNetS50/train").rglob("*.JPEG")}
    assert made == {Path(place).name for place in toy.train}


@pytest.mark.parametrize("empty", ["--imagenet-dir", "--save-dir", "--lists", "--mirror"])
def test_an_empty_path_is_not_the_current_folder(tmp_path, env, imagenet, empty):
    paths = {"--imagenet-dir": imagenet, "--save-dir": tmp_path / "save"} | {empty: ""}
    options = [f"{option}={path}" for option, path in paths.items()]
    result = run(VAL, *options, "--mode", "50", env=env, status=2, cwd=tmp_path)
    assert f"{empty}: an empty path" in result.stderr
    paths = {option: paths[option] for option in ("--imagenet-dir", "--save-dir")} | {"--save-dir": ""}
    assert (
        "usage" in run("data_preparation.sh", *paths.values(), "50", env=env, status=2, cwd=tmp_path).stderr
    )
    run("datapreparation_anno.sh", "", "50", env=env, status=2, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_val_is_looked_for_before_train_is_made(tmp_path, env, toy):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    (imagenet / "val" / toy.val[3]).unlink()
    result = run("data_preparation.sh", imagenet, tmp_path / "save", "50", "true", env=env, status=1)
    assert "lacks 1 needed image" in result.stderr
    assert not (tmp_path / "save").exists()


# Nothing of the user's is lost.


def in_the_way_cases(save, imagenet):
    """Something of the user's where val would make something, and the name that must be told."""
    place = save / "ImageNetS50/validation/n00001001/ILSVRC2012_val_00000000.JPEG"

    def file_of_another_size():
        place.parent.mkdir(parents=True)
        place.write_bytes(b"mine")

    def link_in_place_of_a_file():
        place.parent.mkdir(parents=True)
        place.symlink_to(imagenet / "val/n00001000/ILSVRC2012_val_00000000.JPEG")

    def folder_in_place_of_a_file():
        place.mkdir(parents=True)

    def class_folder_that_is_a_link():
        place.parent.parent.mkdir(parents=True)
        (save / "elsewhere").mkdir()
        place.parent.symlink_to(save / "elsewhere")

    def set_folder_that_is_a_link():
        (save / "elsewhere").mkdir(parents=True)
        (save / "ImageNetS50").symlink_to(save / "elsewhere")

    def file_in_place_of_a_folder():
        place.parent.parent.mkdir(parents=True)
        place.parent.write_bytes(b"mine")

    def link_to_nowhere():
        place.parent.mkdir(parents=True)
        place.symlink_to("nowhere")

    cases = [file_of_another_size, link_in_place_of_a_file, folder_in_place_of_a_file, link_to_nowhere]
    return dict.fromkeys(cases, place) | {
        class_folder_that_is_a_link: place.parent,
        set_folder_that_is_a_link: save / "ImageNetS50",
        file_in_place_of_a_folder: place.parent,
    }


@pytest.mark.parametrize("number", range(7))
def test_what_is_in_the_way_is_named_and_kept(tmp_path, env, imagenet, number):
    save = tmp_path / "save"
    case, place = list(in_the_way_cases(save, imagenet).items())[number]
    case()
    before = snapshot(save)
    result = step(VAL, imagenet, save, env=env, status=1)
    assert f"{place}: " in result.stderr
    assert "nothing was written" in result.stderr
    assert snapshot(save) == before


def test_an_empty_file_is_nothing_of_the_users(tmp_path, env, imagenet):
    step(VAL, imagenet, tmp_path / "save", env=env)
    whole = snapshot(tmp_path / "save")
    empty = tmp_path / "save/ImageNetS50/validation/n00001001/ILSVRC2012_val_00000000.JPEG"
    empty.write_bytes(b"")
    result = step(VAL, imagenet, tmp_path / "save", env=env)
    assert "1 made now" in result.stdout
    assert snapshot(tmp_path / "save") == whole


def test_links_and_copies_do_not_mix(tmp_path, env, imagenet):
    step(TRAIN, imagenet, tmp_path / "save", env=env)
    before = snapshot(imagenet)
    result = step(TRAIN, imagenet, tmp_path / "save", "--copy", env=env, status=1)
    assert "ImageNetS50/train/n00001000: a link to " in result.stderr
    assert snapshot(imagenet) == before
    step(TRAIN, imagenet, tmp_path / "other", "--copy", env=env)
    result = step(TRAIN, imagenet, tmp_path / "other", env=env, status=1)
    assert "ImageNetS50/train/n00001000: a real folder, where a link would be made" in result.stderr


def test_a_wrong_link_is_named(tmp_path, env, imagenet):
    (tmp_path / "save/ImageNetS50/train").mkdir(parents=True)
    (tmp_path / "save/ImageNetS50/train/n00001000").symlink_to(imagenet / "train/n00001001")
    result = step(TRAIN, imagenet, tmp_path / "save", env=env, status=1)
    assert (
        f"n00001000: a link to {imagenet}/train/n00001001, not to {imagenet}/train/n00001000" in result.stderr
    )


@pytest.mark.parametrize("where", [".", "val", "val/n00001000", "new", "./train/../train"])
def test_save_in_imagenet_is_refused(tmp_path, env, toy, where):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    before = snapshot(imagenet)
    result = step(VAL, imagenet, imagenet / where, env=env, status=1)
    assert "lies in the ImageNet copy" in result.stderr
    (tmp_path / "alias").symlink_to(imagenet)
    step(TRAIN, imagenet, tmp_path / "alias" / where, env=env, status=1)
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


def test_a_source_behind_a_link_is_protected(tmp_path, env, toy):
    real = write_imagenet(tmp_path / "disk", "folders", toy)
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/val").symlink_to(real / "val")
    step(VAL, tmp_path / "imagenet", real / "val/sets", env=env, status=1)


def test_a_second_run_writes_nothing(tmp_path, env, imagenet):
    save = tmp_path / "save"
    for script, options in ((TRAIN, ["--copy"]), (VAL, []), (SEMI, [])):
        step(script, imagenet, save, *options, env=env)
    for path in (save, *save.rglob("*")):
        os.utime(path, (1, 1), follow_symlinks=False)
    for script, options in ((TRAIN, ["--copy"]), (VAL, []), (SEMI, [])):
        assert "all there before" in step(script, imagenet, save, *options, env=env).stdout
    assert all(path.lstat().st_mtime == 1 for path in (save, *save.rglob("*")))


def test_an_own_file_in_a_class_folder_stays(tmp_path, env, imagenet):
    step(VAL, imagenet, tmp_path / "save", env=env)
    mine = tmp_path / "save/ImageNetS50/test/n00001000/notes.txt"
    mine.write_text("mine")
    step(VAL, imagenet, tmp_path / "save", env=env)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["with space", 'it\'s "quoted"', "größe 図", "-leading dash", "--dashes", "$HOME;a"]
)
def test_names_of_folders(tmp_path, env, lists, imagenet, name):
    (tmp_path / name).symlink_to(imagenet)
    mirror = tmp_path / "mirror"
    write_archive(mirror / ARCHIVES["50"], masks_of(lists, "50"))
    env["IMAGENETS_MIRROR"] = str(mirror)
    save = f"{name} saved"
    run("data_preparation.sh", name, save, "50", env=env, cwd=tmp_path)
    arguments = ["--save-dir", save] if not name.startswith("--") else [f"--save-dir={save}"]
    result = run("verify.py", *arguments, "--mode", "50", env=env, cwd=tmp_path)
    assert "ImageNetS50: complete" in result.stdout


def test_wrong_usage(tmp_path, env):
    for script, arguments in {
        "data_preparation.sh": (
            [],
            ["a", "b"],
            ["a", "b", "51"],
            ["a", "b", "50", "yes"],
            ["a", "b", "50", "true", "c"],
            ["a", "b", "50", "true", "--absolute", "c"],
        ),
        "datapreparation_anno.sh": ([], ["a"], ["a", "50", "b"], ["a", "51"]),
        TRAIN: (["--mode", "50"], ["--imagenet-dir", "a", "--save-dir", "b", "--mode", "50", "--link"]),
        VAL: (["--imagenet-dir", "a", "--save-dir", "b", "--mode", "50", "--workers", "0"],),
        "verify.py": (["--save", "a", "--mode", "50"],),
        "datapreparation_anno.py": (["--save-dir", "a", "--mode", "all", "--archive", "b.zip"],),
    }.items():
        for given in arguments:
            assert "usage: " in run(script, *given, env=env, cwd=tmp_path, status=2).stderr
    assert not any(tmp_path.iterdir())


def test_data_preparation_stops_at_the_first_failure(tmp_path, env, toy):
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", toy)
    (imagenet / "train/n00001000/n00001000_0.JPEG").unlink()
    result = run("data_preparation.sh", imagenet, tmp_path / "save", "50", "true", env=env, status=1)
    assert "n00001000_0.JPEG: No such file" in result.stderr
    made = {path.name for path in (tmp_path / "save/ImageNetS50").iterdir()}
    assert made == {"train", "validation", "test"}
    assert not (tmp_path / "save/ImageNetS50/train/n00001000").is_symlink()


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


def killed_after(arguments, env, seconds):
    """Start a script, kill it (SIGKILL) after some time; True when it was still at work."""
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("script", "options"), [(VAL, []), (TRAIN, ["--copy"])], ids=["val", "train"])
@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_killed_at_random_moments(tmp_path, lists, layout, script, options):
    many = write_toy_lists(tmp_path / "lists", images=12)
    images = needed(many, ["50"], train_images=20)
    imagenet = write_imagenet(tmp_path / "imagenet", layout, images)
    env = environment(IMAGENETS_LISTS=many)
    begin = time.perf_counter()
    step(script, imagenet, tmp_path / "undisturbed", *options, env=env)
    whole = time.perf_counter() - begin
    wanted = snapshot(tmp_path / "undisturbed")
    save = tmp_path / "save"
    generator = random.Random(script + layout)
    arguments = command(script, "--imagenet-dir", imagenet, "--save-dir", save, "--mode", "50", *options)
    kills = 0
    for _ in range(10):
        if killed_after(arguments, env, generator.uniform(0.1, 1.0) * whole):
            kills += 1
        else:
            shutil.rmtree(save)  # it was done before; the next one begins anew
    assert kills
    for place, content in snapshot(save).items() if save.exists() else ():
        if preparation.STAGING not in place and place != preparation.LOCK:
            assert content == wanted[place]  # under their final names, files are whole
    step(script, imagenet, save, *options, env=env)
    assert snapshot(save) == wanted


@pytest.mark.parametrize("partly", [False, True], ids=["new folders", "folders there"])
@pytest.mark.parametrize("moment", [1, 2, 49, 50])
def test_killed_between_two_renames(tmp_path, env, imagenet, moment, partly):
    """Every state that a kill can leave between copying and renaming ends in the same set."""
    step(SEMI, imagenet, tmp_path / "undisturbed", env=env)
    if partly:
        shutil.copytree(tmp_path / "undisturbed", tmp_path / "save")
        for path in sorted((tmp_path / "save").rglob("*.JPEG"))[::2]:
            path.unlink()
    program = f"""
import os, signal, sys
rename, count = os.rename, 0
def counting(*arguments):
    global count
    count += 1
    if count == {moment}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*arguments)
os.rename = counting
import runpy
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    python, *arguments = command(
        SEMI, "--imagenet-dir", imagenet, "--save-dir", tmp_path / "save", "--mode", "50"
    )
    died = subprocess.run([python, "-c", program, *arguments], env=env, stdout=subprocess.DEVNULL)
    assert died.returncode == -signal.SIGKILL
    step(SEMI, imagenet, tmp_path / "save", env=env)
    assert snapshot(tmp_path / "save") == snapshot(tmp_path / "undisturbed")


@pytest.mark.parametrize("partly", [False, True], ids=["new folders", "folders there"])
def test_killed_in_the_middle_of_a_file(tmp_path, env, imagenet, partly):
    """What is half written has no final name: the next run would take it for the user's."""
    step(SEMI, imagenet, tmp_path / "undisturbed", env=env)
    if partly:
        shutil.copytree(tmp_path / "undisturbed", tmp_path / "save")
        for path in sorted((tmp_path / "save").rglob("*.JPEG"))[::2]:
            path.unlink()
    program = """
import os, runpy, signal, sys
count = 0
def dying(source, target, size, offset, at):
    global count
    count += 1
    if count == 30:
        os.pwrite(target, os.pread(source, size // 2, offset), at)
        os.kill(os.getpid(), signal.SIGKILL)
    return os.pwrite(target, os.pread(source, size, offset), at)
os.copy_file_range = dying
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    arguments = ("--imagenet-dir", imagenet, "--save-dir", tmp_path / "save", "--mode", "50")
    python, *arguments = command(SEMI, *arguments)
    died = subprocess.run([python, "-c", program, *arguments], env=env, stdout=subprocess.DEVNULL)
    assert died.returncode == -signal.SIGKILL
    step(SEMI, imagenet, tmp_path / "save", env=env)
    assert snapshot(tmp_path / "save") == snapshot(tmp_path / "undisturbed")


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


def test_a_file_in_place_of_the_lock_is_kept(tmp_path, env, imagenet):
    mine = tmp_path / "save" / preparation.LOCK
    mine.parent.mkdir()
    mine.write_text("mine")
    result = step(VAL, imagenet, tmp_path / "save", env=env, status=1)
    assert f"{mine}: no lock file" in result.stderr
    assert mine.read_text() == "mine"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path, env, imagenet):
    (tmp_path / "save").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "save" / preparation.LOCK).symlink_to(tmp_path / "mine")
    step(VAL, imagenet, tmp_path / "save", env=env, status=1)
    assert (tmp_path / "mine").read_text() == "mine"


def test_merged_classes_only_where_they_are_no_classes_themselves():
    assert merged_into("919", ["n04355933"], "n04355933") == ["n04356056"]
    assert merged_into("919", ["n04355933", "n04356056"], "n04355933") == []
    assert merged_into("300", ["n04355933"], "n04355933") == []


def test_two_images_for_one_place(tmp_path):
    write_images(tmp_path / "train", ["n04355933/a.JPEG", "n04356056/a.JPEG"])
    with pytest.raises(InputError, match=r"a second image for ImageNetS919/train/n04355933/a\.JPEG"):
        plan_train("919", ["n04355933"], find_train(tmp_path), copy=True)
