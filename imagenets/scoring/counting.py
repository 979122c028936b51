"""From a request to a contingency table: list the masks, count them, check their labels, refuse bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenets.class_ids import find_wnids
from imagenets.classes import BACKGROUND, IGNORE, MODES, Mode
from imagenets.common.errors import InputError, quantity, refuse
from imagenets.common.folders import files_by_class, subfolders
from imagenets.common.progress import Show, Warn, no_bar, no_warning
from imagenets.lists import categories_at_hand, own_lists
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.pairs import Pairs, check_predict_dir, find_pairs, read_names, stray_masks
from imagenets.scoring.plausibility import cause_of_labels, ground_truth_cause, refuse_swapped_folders
from imagenets.scoring.table_cache import cached_table

_FEW = 20  # one prediction of so many, or fewer, is an odd one out
_SWAPPED = f"{IGNORE} is the ground truth's label for ignored pixels: are the two folders swapped?"


class LabelLimit(NamedTuple):
    """The largest label that a prediction may have, and what to do if one is larger."""

    largest: int
    cure: str

    @classmethod
    def of(cls, mode: Mode, clusters: int | None) -> LabelLimit:
        """Limit predictions to clusters 0..``clusters``, or (None) to the mode's class ids."""
        if clusters is None:
            return cls(mode.classes, "cluster ids need a matching: run match.py and pass its name")
        return cls(clusters, "pass the number of clusters")

    def problem(self, label: int) -> str | None:
        """Say what is wrong with a prediction's largest label; None if nothing is."""
        return None if label <= self.largest else f"label {label} is outside 0..{self.largest}; {self.cure}"


@dataclass(frozen=True)
class CountRequest:
    """The masks to count, and how to count them.

    ``clusters`` K: the predictions hold cluster ids 0..K; None: they hold the mode's class ids. ``names`` is
    a file that lists the masks (None: all of ``gt_dir``), ``cache`` the folder of counts kept (None: neither
    read nor written), ``workers`` a number of processes (0: this one).
    """

    gt_dir: Path
    predict_dir: Path
    mode: Mode
    clusters: int | None = None
    names: Path | None = None
    cache: Path | None = None
    workers: int = 0

    @property
    def limit(self) -> LabelLimit:
        """The largest label that a prediction may have."""
        return LabelLimit.of(self.mode, self.clusters)


def count_masks(request: CountRequest, show: Show = no_bar, warn: Warn = no_warning) -> ContingencyTable:
    """Count the masks of a request, or take the counts from its cache.

    ``show`` opens a progress bar, ``warn`` is called for unusual but usable input.

    Raises InputError for folders or a list that cannot be right, and for all masks that cannot be used,
    together.
    """
    return count_all([request], show, warn)[0]


def count_all(
    requests: Sequence[CountRequest],
    show: Show = no_bar,
    warn: Warn = no_warning,
) -> list[ContingencyTable]:
    """Count the masks of several requests, of the same ground truth, as ``count_masks`` does.

    Problems with the masks of all of them are reported together.
    """
    listed = [_list_pairs(request) for request in requests]
    first = requests[0]
    refuse_other_mode(first.gt_dir, first.mode)
    if first.names is None:
        warn_of_number(first.gt_dir, len(listed[0].names), first.mode, warn)
        stray = stray_masks(first.gt_dir)
        if stray:
            warn(f"{first.gt_dir}: {quantity(stray, 'mask')} not in <gt-dir>/<wnid>/<name>.png: not scored")
    tables: list[ContingencyTable] = []
    problems: list[str] = []
    for request, pairs in zip(requests, listed, strict=True):
        table, bad_files = cached_table(pairs, request.cache, request.workers, show, warn)
        tables.append(table)
        problems += [*bad_files, *_bad_labels(request, table)]
    refuse(list(dict.fromkeys(problems)))  # a bad ground truth is one problem, although every pass meets it
    for request, table in zip(requests, tables, strict=True):
        wnids = find_wnids(request.mode, request.gt_dir) or ()
        ids = {wnid: class_id for class_id, wnid in enumerate(wnids, start=1)}
        of_folders = [ids.get(name.partition("/")[0], BACKGROUND) for name in table.names]
        refuse_swapped_folders(table, of_folders, request.gt_dir, request.predict_dir)
    return tables


def _list_pairs(request: CountRequest) -> Pairs:
    names = None if request.names is None else read_names(request.names)
    pairs = find_pairs(request.gt_dir, request.predict_dir, names)
    if names is None:
        check_predict_dir(pairs)
    return pairs


def refuse_other_mode(gt_dir: Path, mode: Mode) -> None:
    """Raise InputError if the folders of the ground truth are exactly another mode's classes.

    If that mode's list is not on this machine, it is recognised by its numbers of folders and masks.
    """
    folders = subfolders(gt_dir) if mode.own is None else []
    for other in MODES.values():
        if other == mode or len(folders) != other.classes:
            continue
        wnids = categories_at_hand(other.name)
        if wnids is None:
            exactly = len(files_by_class(gt_dir, lambda name: name.endswith(".png"))) == other.validation
        else:
            exactly = set(folders) == set(wnids)
        if exactly:
            raise InputError(
                f"{gt_dir}: its folders are the classes of mode {other.name}, not of mode {mode.name}: take "
                f"mode {other.name}"
            )


def warn_of_number(gt_dir: Path, masks: int, mode: Mode, warn: Warn) -> None:
    """Warn if the number of ground truths differs from that of the official validation set."""
    if own_lists() is None and mode.validation not in (0, masks):
        others = [other.name for other in MODES.values() if other.validation == masks]
        warn(
            f"{gt_dir}: {masks} masks, but the validation set of mode {mode.name} has {mode.validation}"
            + "".join(f"; is this mode {other}?" for other in others)
        )


def _bad_labels(request: CountRequest, table: ContingencyTable) -> list[str]:
    """List ground truths with a label that is not a class, and predictions with one above the largest."""
    classes, limit = request.mode.classes, request.limit
    outside = table.ground_truth > classes
    in_ground_truth = dict(
        zip(table.image[outside].tolist(), table.ground_truth[outside].tolist(), strict=True)
    )
    why = ground_truth_cause(table.ground_truth[outside])
    problems = [
        f"{request.gt_dir / table.names[image]}: label {label} is neither in 0..{classes} nor {IGNORE}; {why}"
        for image, label in in_ground_truth.items()
    ]
    images = np.flatnonzero(table.largest_prediction > limit.largest)
    limit = limit._replace(cure=_cure(table, images, request))
    swapped = limit._replace(cure=_SWAPPED)
    for image in images.tolist():
        label = int(table.largest_prediction[image])
        problem = (swapped if label == IGNORE else limit).problem(label)
        problems.append(f"{request.predict_dir / table.names[image]}: {problem}")
    return problems


def _cure(table: ContingencyTable, images: np.ndarray, request: CountRequest) -> str:
    """Say what to do about the predictions ``images`` with labels out of range, by their likely cause."""
    labels = np.concatenate([table.prediction, table.largest_prediction])
    outside = labels[labels > request.limit.largest]
    cause = cause_of_labels(outside, labels, request.mode.classes)
    if cause is None and 0 < _FEW * images.size <= len(table.names):
        few = f"{images.size} of {len(table.names)} predictions"
        cause = f"such labels in only {few}: are they of another run?"
    return cause or request.limit.cure
