"""The benchmark's official lists and archives: their sources and contents (docs/benchmark.md).

No list is part of this project. They are downloaded on first use, checked and cached; or they come from a
mirror, checked in the same way; or from a folder of the user's own lists, which are not checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imagenets.classes import MODES
from imagenets.common.errors import InputError, listed, os_errors_named
from imagenets.common.progress import Show, Warn, no_bar, no_warning
from imagenets.common.whole_files import write_whole

LISTS_URL = (
    "https://raw.githubusercontent.com/LUSSeg/ImageNet-S/b2312ba7396151f883362bdc86d71469aa81066e/data"
)
ARCHIVES_URL = "https://github.com/LUSSeg/ImageNet-S/releases/download/ImageNet-S"

ARCHIVES = {
    "50": "ImageNetS50-a0fe9d82231f9bc4787ee76e304dfa51.zip",
    "300": "ImageNetS300-dd8e42e156bac415a35c3c239de297bf.zip",
    "919": "ImageNetS919-5f7f58ae1003d21da9409a8576bf7680.zip",
}


def categories_path(mode: str) -> str:
    """Relative path of a mode's list of classes."""
    return f"categories/ImageNetS_categories_im{mode}.txt"


def mapping_path(mode: str, split: str) -> str:
    """Relative path of a mode's list of ``validation`` or ``test`` images."""
    return f"mapping/ImageNetS_im{mode}_mapping_{split}.txt"


def train_semi_path(mode: str) -> str:
    """Relative path of a mode's list of ``train-semi`` images."""
    return f"names/ImageNetSemi_im{mode}_train.txt"


SHA256 = {
    categories_path("50"): "cba1701f5d94bf0dfbb40f2d529daab362dff552b9bfcea4bcdddbb5fcf762ad",
    categories_path("300"): "9327409a512019ff7be95354f33daf2735852c04fecd0ac261790ce23e4115ca",
    categories_path("919"): "b2ee89cf2d5def583dcea806b8cc99def3d9bb7355ae981fc4c986c6d8dec1da",
    mapping_path("50", "validation"): "d51e06461f83d3742527768a86e7cb2543adad64ba273cd22dfb27d57ea02458",
    mapping_path("50", "test"): "27b06a0b774f2a47b7660cee64187bf051ed98b734a0402f4b0c00e04f1dcbb4",
    mapping_path("300", "validation"): "d887652204f140a57775740f000ea7660f7e34a458d7bcfcf9b3898501351482",
    mapping_path("300", "test"): "94f26c4bc8c1acf4b2756138055c621df01b064094d863289cd3d6c81476cb64",
    mapping_path("919", "validation"): "52de0512c75cd04289f1b5be7fe2aad932a6f6e47288947d63e724985c5904b3",
    mapping_path("919", "test"): "b2e60b72dafe47c71ba3d912d912dce5d4b612aae60ee6dfbdd95d780133dd61",
    train_semi_path("50"): "830e654142938b28f8856951bc4b264018cc1c13bf577777bb1359cf37a7f969",
    train_semi_path("300"): "05f032374bd7a9a81213828940809e09e1eeedc5b43d78a4e41c1d64cb7e492a",
    train_semi_path("919"): "d8a33edfeda5ea6a302fbf5bfc41735dc6b8f3d525a7dfc09bc5cb39d6ec44db",
}

# Names are not hidden, have no separators, and lead nowhere else.
_NAME = re.compile(r"[^./\\\s\0][^/\\\s\0]*")
_PLACE = rf"(({_NAME.pattern})/{_NAME.pattern})"
_ROW = re.compile(f"{_PLACE} {_PLACE}")

WAYS_OUT = (
    "Without a network, name a copy: IMAGENETS_MIRROR, a URL or a folder with categories/, "
    "mapping/, names/ and the archives; or IMAGENETS_LISTS, a folder of your own lists"
)


@dataclass(frozen=True)
class Origin:
    """Where lists and archives come from.

    ``mirror``: a URL or a folder that replaces the official hosts, with the lists at their relative paths and
    the archives under their own names. ``lists``: a folder of lists that are not checked.
    """

    mirror: str | None = None
    lists: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a mirror."""
        if self.mirror and "://" in self.mirror and not _is_url(self.mirror):
            raise InputError(f"mirror {self.mirror}: neither a http(s) URL nor a folder")

    @classmethod
    def chosen(cls, mirror: str | None = None, lists: Path | None = None) -> Origin:
        """Return what is given, else ``$IMAGENETS_MIRROR`` and ``$IMAGENETS_LISTS``, else the official
        origin."""
        mirror = mirror or os.environ.get("IMAGENETS_MIRROR") or None
        return cls(mirror, lists or own_lists())

    @property
    def official(self) -> bool:
        """Are the lists the official ones, so that the official numbers apply?"""
        return self.lists is None

    def archive(self, mode: str) -> str | Path:
        """URL or path of a mode's annotation archive."""
        return self.place(ARCHIVES_URL, ARCHIVES[mode])

    def place(self, official_url: str, name: str) -> str | Path:
        """URL or path of what the official host has as ``name`` below ``official_url``."""
        if self.mirror and not _is_url(self.mirror):
            folder = Path(self.mirror)
            in_clone = folder / "data" / name  # a clone of the official repository
            return in_clone if in_clone.exists() and not (folder / name).exists() else folder / name
        return f"{(self.mirror or official_url).rstrip('/')}/{name}"


class MappedImage(NamedTuple):
    """An image of ImageNet's val, and its place in ``validation`` or ``test``: both ``<wnid>/<image>``."""

    source: str
    target: str


class SemiImage(NamedTuple):
    """An image of ``train-semi``, its mask, and its path in ImageNet's train: all ``<wnid>/<name>``."""

    source: str
    target: str
    mask: str


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/imagenets``, else ``~/.cache/imagenets``, else one in the temporary folder.

    A user unknown to the system, as in many containers, has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "imagenets"
    try:
        return Path.home() / ".cache" / "imagenets"
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"imagenets-{os.getuid()}"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder}: not yours; name a folder of your own for the lists: XDG_CACHE_HOME")
    return folder


def own_lists() -> Path | None:
    """Folder of the user's own lists, ``$IMAGENETS_LISTS``; None without it: the official ones are used."""
    folder = os.environ.get("IMAGENETS_LISTS")
    return Path(folder) if folder else None


def categories_at_hand(mode: str) -> list[str] | None:
    """Read a mode's wnids from ``own_lists`` or the user's cache; None when they are not there.

    Nothing is downloaded. Raises InputError if the user's own list has another number of classes than the
    mode.
    """
    path = (own_lists() or cache_folder()) / categories_path(mode)
    try:
        wnids = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError):
        return None
    if len(set(wnids)) == len(wnids) == MODES[mode].classes:
        return wnids
    if own_lists() is not None:
        raise InputError(_of_other_number(path, len(set(wnids)), mode))
    return None


def categories(mode: str, origin: Origin, show: Show = no_bar, warn: Warn = no_warning) -> list[str]:
    """List a mode's N wnids, sorted.

    Raises InputError if the list is not available, not the official one, or does not have N different wnids.
    """
    name = categories_path(mode)
    path, lines = _lines(name, origin, show, warn)
    wrong = [
        f"{path}:{number}: {line!r} is no class name" for number, line in lines if not _NAME.fullmatch(line)
    ]
    _refuse_lines(wrong)
    wnids = sorted({line for _, line in lines})
    if not len(wnids) == len(lines) == MODES[mode].classes:
        raise InputError(_of_other_number(path, len(wnids), mode))
    return wnids


def _of_other_number(path: Path | str, number: int, mode: str) -> str:
    return (
        f"{path}: {number} different classes, mode {mode} has {MODES[mode].classes}; a benchmark with other "
        "classes takes the path of its class list for a mode (docs/own_data.md)"
    )


def mapping(
    mode: str, split: str, wnids: Iterable[str], origin: Origin, show: Show = no_bar, warn: Warn = no_warning
) -> list[MappedImage]:
    """List the images of ``validation`` or ``test`` with the path of each in ImageNet's val.

    Raises InputError if the list is not available, not the official one, or has invalid lines.
    """
    rows = _rows(mapping_path(mode, split), wnids, origin, show, warn, target_group=3)
    return [MappedImage(left, right) for left, right in rows]


def mapping_at_hand(mode: str, split: str, wnids: Iterable[str]) -> list[MappedImage] | None:
    """Read the list of ``mapping`` in the places of ``categories_at_hand``; None if it is not there.

    Nothing is downloaded. Raises InputError if it has invalid lines.
    """
    folder = own_lists() or cache_folder()
    if not (folder / mapping_path(mode, split)).exists():
        return None
    return mapping(mode, split, wnids, Origin(lists=folder))


def train_semi(
    mode: str, wnids: Iterable[str], origin: Origin, show: Show = no_bar, warn: Warn = no_warning
) -> list[SemiImage]:
    """List the images of ``train-semi`` with mask and path in ImageNet's train.

    An image's class folder there is the part of its file name before ``_`` (for merged classes
    it is another: docs/benchmark.md, Official lists). Raises InputError as ``mapping`` does.
    """
    rows = _rows(train_semi_path(mode), wnids, origin, show, warn, target_group=1)
    return [SemiImage(_train_source(image), image, mask) for image, mask in rows]


def mask_of(image: str) -> str:
    """Relative path of an image's mask: ``n01/a.JPEG`` → ``n01/a.png``."""
    return image.rpartition(".")[0] + ".png"


def _train_source(image: str) -> str:
    folder, name = image.split("/")
    before, underscore, _ = name.partition("_")
    return f"{before if underscore else folder}/{name}"


def _rows(
    name: str, wnids: Iterable[str], origin: Origin, show: Show, warn: Warn, target_group: int
) -> list[tuple[str, str]]:
    """Read a list with two paths per line; the target, a group of _ROW, is unique and of a known class."""
    known = set(wnids)
    path, lines = _lines(name, origin, show, warn)
    rows: dict[str, tuple[str, str]] = {}
    wrong = []
    for number, line in lines:
        match = _ROW.fullmatch(line)
        if match is None:
            wrong.append(f"{path}:{number}: {line!r} is not two paths <wnid>/<name> with one space between")
            continue
        target, wnid = match.group(target_group, target_group + 1)
        if target in rows:
            wrong.append(f"{path}:{number}: {target} is listed twice")
        elif wnid not in known:
            wrong.append(f"{path}:{number}: {wnid} is no class of this mode")
        else:
            rows[target] = (match[1], match[3])
    _refuse_lines(wrong)
    return list(rows.values())


def _refuse_lines(wrong: list[str]) -> None:
    if wrong:
        raise InputError(f"{len(wrong)} lines of a list cannot be used:\n{listed(wrong)}")


def _lines(name: str, origin: Origin, show: Show, warn: Warn) -> tuple[str, list[tuple[int, str]]]:
    """Path or URL for messages, and the numbered lines that are not empty."""
    place, content = _content(name, origin, show, warn)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: no UTF-8 text ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    return place, [(number, line) for number, line in lines if line]


def _content(name: str, origin: Origin, show: Show, warn: Warn) -> tuple[str, bytes]:
    if origin.lists is not None:
        return str(origin.lists / name), _read(origin.lists / name, _way_out(origin.lists, name))
    cached = cache_folder() / name
    if _is_official(cached, name):
        return str(cached), cached.read_bytes()
    place = origin.place(LISTS_URL, name)
    if isinstance(place, Path):
        content = _read(place, WAYS_OUT)
        _refuse_other(content, name, place)
        with suppress(OSError):  # the cache helps here, but is not needed
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_whole(cached, content)
        return str(place), content
    from imagenets.common.locks import locked  # not at the top: with it, scoring would start 0.1 s later

    folder = cache_folder()
    if folder.parent == Path(tempfile.gettempdir()) and not folder.exists():
        warn(f"no home folder is known: the lists are kept in {folder}; XDG_CACHE_HOME names another place")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with locked(cached.with_name(f".{cached.name}.lock"), wait=True):
            if not _is_official(cached, name):  # another run may have downloaded it meanwhile
                _fetch(name, cached, place, show, warn)
        return str(cached), cached.read_bytes()
    except OSError as error:
        raise InputError(
            f"{error.filename or cached.parent}: {error.strerror}. Lists are kept there; "
            "choose another folder with XDG_CACHE_HOME"
        ) from error


def _fetch(name: str, cached: Path, place: str, show: Show, warn: Warn) -> None:
    """Download an official list into the cache."""
    from imagenets.common.download import discard, download

    fresh = cached.with_name(f".{cached.name}.download")
    try:
        download(place, fresh, show=show, warn=warn)
    except InputError as error:
        raise InputError(f"{error}.\n{WAYS_OUT}.") from error
    try:
        _refuse_other(fresh.read_bytes(), name, place)
        fresh.replace(cached)
    finally:
        discard(fresh)


def _refuse_other(content: bytes, name: str, place: str | Path) -> None:
    if content.lstrip().startswith(b"<"):
        raise InputError(f"{place} is a web page, not the list. {WAYS_OUT}")
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise InputError(
            f"{place} is not the official list: its SHA-256 is {found}, that of the list {SHA256[name]}. "
            "For your own lists use IMAGENETS_LISTS"
        )


def _is_official(path: Path, name: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name]
    except OSError:
        return False


def _way_out(folder: Path, name: str) -> str:
    """Describe the folder of the user's own lists, and its modes if the one of ``name`` is missing."""
    there = [mode for mode in MODES if (folder / categories_path(mode)).is_file()]
    if there and not any(f"_im{mode}" in name for mode in there):
        return (
            f"{folder}, which IMAGENETS_LISTS names, has lists of mode {' and '.join(there)} only: "
            "take that mode, or leave IMAGENETS_LISTS out, for the official lists"
        )
    return (
        "IMAGENETS_LISTS names a folder with categories/, mapping/ and names/, which hold lists of the "
        "official names"
    )


def _read(path: Path, way_out: str) -> bytes:
    with os_errors_named(path, f". {way_out}"):
        return path.read_bytes()


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))
