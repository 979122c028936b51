"""Hugging Face's copies: parquet shards and unpacked archives, whole, damaged and nearly recognised."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from helpers.generated_imagenet import (
    Needed,
    jpeg,
    needed,
    repeated,
    snapshot,
    write_imagenet,
    write_images,
    write_shard,
)
from helpers.scripts import CHECKOUT, killed_at, run

from imagenets.common.errors import InputError
from imagenets.preparation import image_folders, parquet
from imagenets.preparation.image_folders import prepare
from imagenets.preparation.layouts import find_train, find_val
from imagenets.preparation.plans import plan_train
from imagenets.preparation.source_images import MissingError, class_of_name, plain_name

PLACES = [f"n0000{1000 + i % 4}/n0000{1000 + i % 4}_{i}.JPEG" for i in range(60)]
WNIDS = [f"n0000{1000 + i}" for i in range(4)]


EVERY = {place: jpeg(place) for place in PLACES}


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "imagenet/data/train-00000-of-00001.parquet", PLACES, row_group=7)


@pytest.fixture
def prepared(tmp_path, shard):
    """Prepare sets of these modes from the shard; returns what was done."""

    def prepared(*modes, workers=2):
        plans = [plan_of(shard.parents[1], mode) for mode in modes or ("50",)]
        return prepare(plans, shard.parents[1], tmp_path / "save", workers)

    return prepared


def plan_of(imagenet, mode="50"):
    return plan_train(mode, WNIDS, find_train(imagenet), copy=False)


def made_in(save, mode="50"):
    folder = save / f"ImageNetS{mode}/train"
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.rglob("*.JPEG")}


def test_names():
    assert plain_name("n01440764_10026_n01440764.JPEG") == ("n01440764_10026.JPEG", "n01440764")
    assert plain_name("ILSVRC2012_val_00000293_n01440764.JPEG") == (
        "ILSVRC2012_val_00000293.JPEG",
        "n01440764",
    )
    for plain in ("n01440764_10026.JPEG", "ILSVRC2012_val_00000293.JPEG"):
        assert plain_name(plain) == (plain, None)
    assert class_of_name("n01440764_10026.JPEG") == "n01440764"
    assert class_of_name("ILSVRC2012_val_00000293.JPEG") is None


def test_a_row_is_read_once_for_all_sets_and_never_again(tmp_path, prepared, monkeypatch):
    asked = []

    def counting(path, rows):
        asked.extend(rows)
        return parquet.read_rows(path, rows)

    monkeypatch.setattr(image_folders, "read_rows", counting)
    modes = ("50", "300", "919")
    prepared(*modes, workers=3)
    assert sorted(asked) == list(range(60))
    for mode in modes:
        assert made_in(tmp_path / "save", mode) == EVERY
    before = snapshot(tmp_path / "save")
    for place in (11, 40):
        (tmp_path / "save/ImageNetS300/train" / PLACES[place]).unlink()
    asked.clear()
    assert sum(folder.made for folder in prepared(*modes)) == 2
    assert asked == [11, 40]
    prepared(*modes)
    assert asked == [11, 40]
    assert snapshot(tmp_path / "save") == before


def test_a_second_run_reads_no_image(tmp_path, shard, prepared):
    """Not one byte of the images' column: they are overwritten by then."""
    prepared()
    meta = pyarrow.parquet.ParquetFile(shard).metadata
    content = bytearray(shard.read_bytes())
    for group in range(meta.num_row_groups):
        column = meta.row_group(group).column(0)
        assert column.path_in_schema == "image.bytes"
        begin = column.dictionary_page_offset or column.data_page_offset
        content[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    shard.write_bytes(content)
    prepared()
    (tmp_path / "save/ImageNetS50/train" / PLACES[0]).unlink()
    with pytest.raises(InputError, match=f"{shard}: damaged or truncated"):
        prepared()
    assert list((tmp_path / "save").iterdir()) == [tmp_path / "save/ImageNetS50"]
    assert [path.name for path in (tmp_path / "save/ImageNetS50").iterdir()] == ["train"]


def test_a_giant_row_group_takes_little_memory(tmp_path):
    """300 MB of images in one row group: read as a whole, they would be in memory."""
    path = tmp_path / "train-00000-of-00001.parquet"
    files = pyarrow.array([bytes([i]) * 100_000 for i in range(100)], pyarrow.binary())
    chunks = [
        pyarrow.StructArray.from_arrays(
            [files, pyarrow.array([f"n00001000_{100 * chunk + i}_n00001000.JPEG" for i in range(100)])],
            ["bytes", "path"],
        )
        for chunk in range(30)
    ]
    table = pyarrow.table({"image": pyarrow.chunked_array(chunks)})
    pyarrow.parquet.write_table(table, path, row_group_size=3000, compression="none", use_dictionary=False)
    assert pyarrow.parquet.ParquetFile(path).metadata.num_row_groups == 1
    program = f"""
import re
from pathlib import Path
from imagenets.preparation.parquet import read_rows
got = [(row, content == bytes([row % 100]) * 100_000) for row, content in read_rows({str(path)!r}, [5, 2999])]
assert got == [(5, True), (2999, True)], got
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 280_000, "kB"


# What is damaged or missing is told, and nothing is made.


def refused(imagenet, message, find=find_train):
    with pytest.raises(InputError, match=message):
        plan_train("50", WNIDS, find(imagenet), copy=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["00000-of-00004", "00003-of-00004"], r"(?s)data: not all 4 shards .*-00001-of-.*-00002-of-"),
        (["00000-of-00004", "00001-of-00002"], "with different totals, -of-00002 and -of-00004"),
        (["00000-of-00001", "00000-of-00001-0a1b2c"], "are the same shard; keep one"),
        ([f"0000{i}-of-00002" for i in range(3)], "train-00002-of-00002.parquet announces more shards than"),
    ],
)
def test_missing_shards_are_told(tmp_path, names, message):
    for name in names:
        write_shard(tmp_path / f"imagenet/data/train-{name}.parquet", PLACES)
    refused(tmp_path / "imagenet", message)


@pytest.mark.parametrize("cut", [0, 3, 500, -1])
def test_a_cut_shard_is_told(shard, cut):
    os.truncate(shard, cut % shard.stat().st_size)
    refused(shard.parents[1], f"{shard}: damaged or truncated")


def test_what_is_no_shard_is_told(shard):
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(shard.parents[1], f"{shard}: a pointer of Git LFS")
    shard.unlink()
    shard.symlink_to("../blobs/gone")
    refused(shard.parents[1], f"{shard}: No such file or directory; does the link lead to nothing?")
    shard.unlink()
    pyarrow.parquet.write_table(pyarrow.table({"img": [b"x"], "label": [1]}), shard)
    refused(shard.parents[1], f"{shard}: no column image with bytes and path, but img, label")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": None}, "row 7 has no name in image.path"),
        ({"path": ""}, "row 7 has no name in image.path"),
        ({"path": "7.jpg"}, "row 7 is '7.jpg', which does not name a class"),
        ({"path": "n00001000_0_n00001000.JPEG"}, "row 7 is n00001000_0.JPEG, as is row 0 of"),
        ({"bytes": None}, "row 7 has a name but no image"),
        ({"bytes": b""}, "row 7 has a name but no image"),
        (None, "row 7 has no name in image.path"),
    ],
)
def test_rows_that_lack_something_are_told(tmp_path, shard, prepared, change, message):
    table = pyarrow.parquet.read_table(shard)
    images = table.column("image").to_pylist()
    images[7] = None if change is None else images[7] | change
    pyarrow.parquet.write_table(
        table.set_column(0, "image", pyarrow.array(images, table.schema.field("image").type)), shard
    )
    with pytest.raises(InputError, match=f"{shard}: {message}"):
        prepared(workers=1)
    assert not (tmp_path / "save/ImageNetS50" / image_folders.STAGING).exists()
    for place, content in made_in(tmp_path / "save").items():
        assert content == jpeg(place)


def test_missing_rows_are_told_together(tmp_path, lists, env):
    images = needed(lists, ["50"])
    imagenet = write_imagenet(tmp_path / "imagenet", "parquet", Needed(images.train, images.val[2:]))
    arguments = ("--imagenet-dir", imagenet, "--save-dir", tmp_path / "save", "--mode", "50")
    told = run("datapreparation_val.py", *arguments, env=env, status=1).stderr
    assert "lacks 2 needed images" in told
    name = images.val[0].split("/")[1]
    assert f"{imagenet}/data/validation-*.parquet (2 shards): no {name} in it (needed by 50)" in told
    assert not (tmp_path / "save").exists()


def test_without_pyarrow_its_name_is_told(shard, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(
        shard.parents[1], f"needs pyarrow, which this Python lacks: {sys.executable} -m pip install pyarrow"
    )


def test_the_disk_is_too_small(prepared, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(InputError, match=r"needs 245\.8 kB in .*, and only 100\.0 kB are free"):
        prepared()


def test_killed_again_and_again(tmp_path, prepared):
    for moment in (1, 30, 29):
        assert killed_at(moment, ["rename"], prepared)
        assert made_in(tmp_path / "save").items() <= EVERY.items()
    prepared()
    assert made_in(tmp_path / "save") == EVERY
    assert [path.name for path in (tmp_path / "save/ImageNetS50").iterdir()] == ["train"]


# What the user has.


def test_snapshots(tmp_path):
    for name in ("aaa", "bbb"):
        write_shard(tmp_path / "cache/snapshots" / name / "data/train-00000-of-00001.parquet", PLACES)
    refused(
        tmp_path / "cache", r"(?s)shards of train in 2 snapshots; name one of them:.*aaa/data\n.*bbb/data"
    )
    for place in ("cache/snapshots/aaa", "cache/snapshots/aaa/data"):
        assert len(plan_of(tmp_path / place).copies) == 60


def test_unpacked_archives_in_class_folders_and_in_data(tmp_path):
    for part in range(2):
        write_images(tmp_path / f"data/train_images_{part}", PLACES[part::2], named=repeated)
    plan = plan_of(tmp_path)
    assert {Path(link).name for link in plan.links.values()} == {Path(repeated(p)).name for p in PLACES}
    assert plan.links.keys() == {f"train/{place}" for place in PLACES}
    shutil.move(tmp_path / "data/train_images_0", tmp_path / "data/train_images_2")
    refused(tmp_path, "train_images_0 is missing or empty, train_images_2 is there: unpack it")


NEARLY = {
    "data/": (find_train, "data is there, but empty"),
    "data/val_images.tar.gz": (find_val, "is not unpacked: unpack it into a folder val_images"),
    "data/0000.parquet": (find_val, "0000.parquet is not named like train-00000-of-"),
    "train/n00001000/n00001000_0.JPEG": (
        find_val,
        r"looked there for .*\. Only the training images are there, class folders in .*train$",
    ),
    "val/n00001000/n00001000_0.JPEG": (find_train, "Only the validation images are there"),
    "train/train/n00001000/n00001000_0.JPEG": (
        find_train,
        "train: one level too deep, its class folders or images lie in .*train/train; move",
    ),
}


@pytest.mark.parametrize("place", NEARLY)
def test_what_is_nearly_a_copy_is_told_as_what_it_is(tmp_path, place):
    folder, _, name = place.rpartition("/")
    (tmp_path / folder).mkdir(parents=True)
    if name:
        (tmp_path / place).write_bytes(b"x")
    find, message = NEARLY[place]
    with pytest.raises(InputError, match=message):
        find(tmp_path)


@pytest.mark.parametrize("flat", [False, True])
def test_lower_case_suffixes_are_told(tmp_path, flat):
    write_images(
        tmp_path / "val", ["n00001000/a.jpeg"], named=(lambda p: "a.jpeg") if flat else (lambda p: p)
    )
    with pytest.raises(MissingError, match=r"a\.JPEG: it exists, but as \.jpeg; rename the files"):
        find_val(tmp_path).image("n00001000/a.JPEG")
