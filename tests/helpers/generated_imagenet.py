"""ImageNet copies in all their layouts, lists and annotation archives, made of tiny files."""

from __future__ import annotations

import functools
import io
import os
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from masksets import SHARED
from PIL import Image

from imagenets.classes import MODES
from imagenets.lists import categories_path, mapping_path, train_semi_path

OFFICIAL_LISTS = SHARED / "official-lists"
LAYOUTS = ("folders", "flat", "kaggle", "tars", "zip", "parquet", "snapshot", "unpacked", "repeated")


@dataclass(frozen=True)
class Needed:
    """Relative paths, ``<wnid>/<image>``, that an ImageNet copy must hold."""

    train: list[str]
    val: list[str]


def size_of(place: str) -> tuple[int, int]:
    """Width and height of a generated image and its mask, by its file name."""
    name = place.rpartition("/")[2].rpartition(".")[0]
    number = sum(name.encode())
    return 4 + number % 5, 4 + number % 3


@functools.cache
def _jpeg(size: tuple[int, int], orientation: int) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.new("L", size, 128).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def jpeg(place: str, orientation: int = 1) -> bytes:
    """A tiny JPEG, no two alike: its name stands behind the end marker."""
    return _jpeg(size_of(place), orientation) + place.rpartition("/")[2].encode()


@functools.cache
def mask_png(size: tuple[int, int], label: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (label % 256, label // 256, 0)).save(stream, "PNG")
    return stream.getvalue()


def mask(place: str, label: int = 1) -> bytes:
    """The mask of an image, no two alike, of the image's size."""
    return mask_png(size_of(place), label) + place.rpartition("/")[2].rpartition(".")[0].encode()


def rows(lists: Path, name: str) -> list[tuple[str, str]]:
    pairs = [line.split() for line in (lists / name).read_text().splitlines()]
    return [(left, right) for left, right in pairs]


def needed(lists: Path, modes: Iterable[str], train_images: int = 2) -> Needed:
    """What the modes' lists need, with ``train_images`` more images in each class folder."""
    val, train = set(), set()
    for mode in modes:
        for split in ("validation", "test"):
            val |= {source for source, _ in rows(lists, mapping_path(mode, split))}
        for image, _ in rows(lists, train_semi_path(mode)):
            name = image.split("/")[1]
            train.add(f"{name.split('_')[0]}/{name}")
        wnids = set((lists / categories_path(mode)).read_text().split())
        wnids |= {place.split("/")[0] for place in train}
        train |= {f"{wnid}/{wnid}_{90000 + i}.JPEG" for wnid in wnids for i in range(train_images)}
    return Needed(sorted(train), sorted(val))


def write_imagenet(root: Path, layout: str, images: Needed) -> Path:
    """Write an ImageNet copy in one of LAYOUTS, and give its folder."""
    root.mkdir(parents=True)
    flat_val = [place.split("/")[1] for place in images.val]
    if layout == "tars":
        _write_train_tar(root / "ILSVRC2012_img_train.tar", images.train)
        with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
            for name in flat_val:
                _add(tar, name, jpeg(name))
    elif layout == "zip":
        with zipfile.ZipFile(root / "imagenet-object-localization-challenge.zip", "w") as archive:
            for part, places in (("train", images.train), ("val", flat_val), ("test", ["n1/a.JPEG"])):
                for i, place in enumerate(places):
                    packed = zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED
                    archive.writestr(f"ILSVRC/Data/CLS-LOC/{part}/{place}", jpeg(place), packed)
    elif layout in ("parquet", "snapshot"):
        _write_parquet_copy(root, layout, images)
    elif layout == "repeated":  # Hugging Face's archives, unpacked into class folders
        write_images(root / "train", images.train, named=repeated)
        write_images(root / "val", images.val, named=repeated)
    elif layout == "unpacked":  # and flat, into a folder each
        for part in range(3):
            names = images.train[part::3]
            write_images(root / f"train_images_{part}", names, named=lambda p: repeated(p).split("/")[1])
        write_images(root / "val_images", images.val, named=lambda p: repeated(p).split("/")[1])
    else:
        inner = root / "ILSVRC/Data/CLS-LOC" if layout == "kaggle" else root
        write_images(inner / "train", images.train)
        write_images(inner / "val", images.val if layout == "folders" else flat_val)
    return root


def repeated(place: str) -> str:
    """``<wnid>/<name>`` with the class once more in the name, as Hugging Face's copies have it."""
    wnid, name = place.split("/")
    stem, _, suffix = name.rpartition(".")
    return f"{wnid}/{stem}_{wnid}.{suffix}"


def _write_parquet_copy(root: Path, layout: str, images: Needed) -> None:
    """Shards in data/, or links to them as in Hugging Face's cache; images shuffled."""
    for split, places, shards in (("train", images.train, 3), ("validation", images.val, 2)):
        shards = 1 if layout == "snapshot" else shards
        shuffled = random.Random(split).sample(places, len(places))
        for i in range(shards):
            path = root / "data" / f"{split}-{i:05d}-of-{shards:05d}.parquet"
            write_shard(path, shuffled[i::shards])
    if layout == "snapshot":
        blobs = (root / "data").rename(root / "blobs")
        data = root / "snapshots/49e2ee26f3810fb5a7536bbf732a7b07389a47b5/data"
        data.mkdir(parents=True)
        for blob in blobs.iterdir():
            (data / blob.name).symlink_to(os.path.relpath(blob, data))


def write_shard(path: Path, places: Iterable[str], row_group: int = 100) -> Path:
    """A parquet shard as Hugging Face writes them."""
    import pyarrow
    import pyarrow.parquet

    places = list(places)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pyarrow.StructArray.from_arrays(
        [
            pyarrow.array([jpeg(place) for place in places], pyarrow.binary()),
            pyarrow.array([repeated(place).split("/")[1] for place in places], pyarrow.string()),
        ],
        ["bytes", "path"],
    )
    table = pyarrow.table({"image": image, "label": pyarrow.array([0] * len(places), pyarrow.int64())})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group)
    return path


def write_images(
    folder: Path, places: Iterable[str], named: Callable[[str], str] = lambda place: place
) -> None:
    made = set()
    for place in places:
        path = folder / named(place)
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(jpeg(place))


def _write_train_tar(path: Path, places: list[str]) -> None:
    by_class: dict[str, list[str]] = {}
    for place in places:
        by_class.setdefault(place.split("/")[0], []).append(place)
    with tarfile.open(path, "w") as outer:
        for wnid, of_class in by_class.items():
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as inner:
                for place in of_class:
                    _add(inner, place.split("/")[1], jpeg(place))
            _add(outer, f"{wnid}.tar", stream.getvalue())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_toy_lists(folder: Path, modes: Iterable[str] = ("50",), images: int = 3) -> Path:
    """Write lists of a benchmark that nobody has: every fourth validation image changes its class folder."""
    for mode in modes:
        wnids = [f"n{1000 + i:08d}" for i in range(MODES[mode].classes)]
        for name in (categories_path(mode), mapping_path(mode, "test"), train_semi_path(mode)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / categories_path(mode)).write_text("\n".join(wnids))
        for split, first in (("validation", 0), ("test", 500_000)):
            lines = []
            for i in range(len(wnids) * images):
                name = f"ILSVRC2012_val_{first + i:08d}.JPEG"
                source = wnids[i % len(wnids)]
                target = wnids[(i + (i % 4 == 0)) % len(wnids)]
                lines.append(f"{source}/{name} {target}/{name}")
            (folder / mapping_path(mode, split)).write_text("\n".join(lines))
        semi = [f"{w}/{w}_{i}.JPEG {w}/{w}_{i}.png" for w in wnids for i in range(images)]
        (folder / train_semi_path(mode)).write_text("\n".join(semi))
    return folder


def masks_of(lists: Path, mode: str) -> dict[str, bytes]:
    """Members of a mode's annotation archive: name below the prefix, and content."""
    wnids = sorted((lists / categories_path(mode)).read_text().split())
    members = {}
    for _, target in rows(lists, mapping_path(mode, "validation")):
        name = f"validation-segmentation/{target.rpartition('.')[0]}.png"
        members[name] = mask(target, 1 + wnids.index(target.split("/")[0]))
    for _, place in rows(lists, train_semi_path(mode)):
        members[f"train-semi-segmentation/{place}"] = mask(place, 1000)
    return members


def write_archive(path: Path, members: dict[str, bytes], prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(prefix + name, content)
    return path


def snapshot(folder: Path) -> dict[str, str | bytes]:
    """Everything below a folder: content of files, ``-> target`` of links, ``/`` for folders."""
    found: dict[str, str | bytes] = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            else:
                found[key] = "/" if path.is_dir() else path.read_bytes()
    return found
