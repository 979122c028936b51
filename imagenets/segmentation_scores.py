"""The benchmark's scores inside a training loop: batches of label tensors in, evaluator.py's scores out."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed

from imagenets.classes import IGNORE, MAX_LABEL, MODES
from imagenets.masks import boundary_distance, labels_to_rgb
from imagenets.scoring.contingency import ROW_TYPES, ContingencyTable, Rows, count_pair, make_table
from imagenets.scoring.metrics import BOUNDARY_SCORES, SCORES, evaluate
from imagenets.scoring.run_length import LabelRuns, label_runs

# bool and the unsigned types apart from uint8 are no labels that PyTorch can calculate with.
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class SegmentationScores:
    """All scores of evaluator.py (docs/benchmark.md), from predictions as they come; the methods of a metric.

    Every image is counted into a contingency table by the functions that evaluator.py uses, so the scores
    are the same to the last digit, whatever the order and the batches: pixels of all images are pooled
    before a ratio is taken, but for FMeasure and Acc, which are means over images.

    >>> scores = SegmentationScores("50")
    >>> scores.update(torch.tensor([[0, 7, 7]]), torch.tensor([[0, 7, 1000]]))
    >>> scores.compute()["Acc"]
    100.0

    Under an initialised ``torch.distributed``, ``compute`` and ``table`` gather the images of all ranks, so
    all ranks must call them, and no image may be given to two ranks. ``DistributedSampler`` does that: it
    repeats images until the ranks have equally many. ``Subset(dataset, range(rank, len(dataset),
    world_size))`` does not.
    """

    def __init__(self, classes: str | int, ignore_index: int = IGNORE, boundary: bool = True) -> None:
        """Count for a mode (``"50"``) or for a number of classes without background (50 is the same).

        ``ignore_index`` is the target label of pixels that count nowhere. Without ``boundary`` the scores of
        boundaries are nan, and a little time is saved.

        Raises ValueError for an unknown mode, less than one class or too many, or an ``ignore_index`` that
        is a class.
        """
        if isinstance(classes, str) and classes not in MODES:
            raise ValueError(f"no such mode: {classes!r}; there are {', '.join(MODES)}")
        number = MODES[classes].classes if isinstance(classes, str) else operator.index(classes)
        ignore_index = operator.index(ignore_index)
        if not 1 <= number < MAX_LABEL:
            raise ValueError(f"{number} classes; give 1..{MAX_LABEL - 1}, the background aside")
        if 0 <= ignore_index <= number:
            raise ValueError(f"ignore_index {ignore_index} is one of the labels 0..{number}")
        self.classes = number
        self.ignore_index = ignore_index
        self.boundary = boundary
        self._ignore_label = ignore_index if 0 <= ignore_index <= MAX_LABEL else number + 1
        self._rows: list[Rows] = []
        self._largest: list[int] = []

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch: labels (B, H, W), or (H, W) of one image; integers, on any device; arrays too.

        ``prediction`` holds classes or clusters 0..65535, ``target`` the ground truth 0..N or
        ``ignore_index``.

        Raises ValueError for other types, shapes or labels; then nothing of the batch is counted.
        """
        predictions, targets = _on_cpu(_tensor(prediction, "prediction"), _tensor(target, "target"))
        if self._ignore_label != self.ignore_index:
            targets = self._with_ignore_label(targets)
        distance = boundary_distance(*targets.shape[1:]) if self.boundary else None
        rows: list[Rows] = []
        largest: list[int] = []
        for one_prediction, one_target in zip(predictions, targets, strict=True):
            guess, truth = _runs(one_prediction, "prediction"), _runs(one_target, "target")
            labels = truth.palette
            self._refuse_outside(labels[(labels > self.classes) & (labels != self._ignore_label)])
            image = len(self._largest) + len(largest)
            rows.append(count_pair(truth, guess, image, distance, self._ignore_label))
            largest.append(int(guess.palette.max()))
        self._rows += rows
        self._largest += largest

    def _with_ignore_label(self, targets: np.ndarray) -> np.ndarray:
        """Replace an ``ignore_index`` that is no label by one that is."""
        ignored = targets == self.ignore_index
        self._refuse_outside(targets[~ignored & (targets > self.classes)])
        return np.where(ignored, self._ignore_label, targets.astype(np.int64))

    def _refuse_outside(self, outside: np.ndarray) -> None:
        if outside.size:
            raise ValueError(
                f"target has label {outside[0]}, which is neither in 0..{self.classes} nor ignore_index "
                f"{self.ignore_index}"
            )

    def table(self) -> ContingencyTable:
        """Give the contingency table of all images, of all ranks; what ``find_matching`` needs.

        Images are numbered in the order of the updates, rank after rank.
        """
        largest, rows = self._gathered()
        return make_table([str(i) for i in range(largest.size)], largest, [rows])

    def compute(
        self, match: Mapping[int, int] | Sequence[int] | np.ndarray | None = None
    ) -> dict[str, float]:
        """Compute the scores of all images so far, of all ranks: percentages, nan where one does not exist.

        ``match`` gives the class of each cluster: a mapping, or a sequence that is indexed by cluster, like
        ``find_matching(scores.table(), ...).classes``. Without it, predictions are classes. Without any
        image every score is nan.

        Raises ValueError when a predicted label is no class, or has none in ``match``.
        """
        table = self.table()
        if not table.names:
            return dict.fromkeys(SCORES, math.nan)
        scores = dict(evaluate(table, self.classes, self._matching(table, match)).scores)
        return scores if self.boundary else {**scores, **dict.fromkeys(BOUNDARY_SCORES, math.nan)}

    def _matching(
        self, table: ContingencyTable, match: Mapping[int, int] | Sequence[int] | np.ndarray | None
    ) -> np.ndarray | None:
        """Check the predicted labels, and lay the matching out as an array indexed by them."""
        if match is None:
            largest = int(table.largest_prediction.max())
            if largest > self.classes:
                raise ValueError(
                    f"prediction {largest} is no class in 0..{self.classes}; clusters need a matching, match="
                )
            return None
        pairs = match.items() if isinstance(match, Mapping) else enumerate(np.asarray(match).tolist())
        given = {int(cluster): label for cluster, label in pairs}
        used = np.unique(table.prediction).tolist()
        missing = [cluster for cluster in used if cluster not in given]
        if missing:
            raise ValueError(f"the matching lacks {len(missing)} predicted clusters, {missing[0]} for one")
        laid_out = np.zeros(max(used, default=0) + 1, np.int64)
        for cluster in used:
            if given[cluster] != int(given[cluster]) or not 0 <= given[cluster] <= self.classes:
                raise ValueError(f"cluster {cluster}: {given[cluster]!r} is no class in 0..{self.classes}")
            laid_out[cluster] = given[cluster]
        return laid_out

    def _gathered(self) -> tuple[np.ndarray, Rows]:
        """Join the images of all ranks: the largest prediction of each, and their rows."""
        own = self._joined()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return own
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self._settings(), own))
        if len({settings for settings, _ in parts}) > 1:
            raise ValueError("the ranks count with different classes, ignore_index or boundary")
        return _concatenated([part for _, part in parts])

    def _joined(self) -> tuple[np.ndarray, Rows]:
        """Join the rows of this process, and keep them joined."""
        table = make_table([""] * len(self._largest), self._largest, self._rows)
        rows = Rows(*(getattr(table, name) for name in Rows._fields))
        self._rows = [rows]
        return table.largest_prediction, rows

    def _settings(self) -> tuple[int, int, bool]:
        return self.classes, self.ignore_index, self.boundary

    def merge_state(self, other: SegmentationScores | Mapping[str, Any]) -> None:
        """Add the images that another object, or its ``state_dict``, has counted.

        Raises ValueError when that one counts otherwise (classes, ignore_index, boundary).
        """
        state = other.state_dict() if isinstance(other, SegmentationScores) else other
        settings = (int(state["classes"]), int(state["ignore_index"]), bool(state["boundary"]))
        if settings != self._settings():
            raise ValueError(
                f"the state is of (classes, ignore_index, boundary) = {settings}, this is {self._settings()}"
            )
        rows = Rows(
            *(state[name].cpu().numpy().astype(t) for name, t in zip(Rows._fields, ROW_TYPES, strict=True))
        )
        self._rows.append(rows._replace(image=rows.image + np.int32(len(self._largest))))
        self._largest.extend(state["largest_prediction"].tolist())

    def reset(self) -> None:
        """Forget all images."""
        self._rows, self._largest = [], []

    def state_dict(self) -> dict[str, Any]:
        """Give what has been counted in this process, as tensors and numbers for ``torch.save``."""
        largest, rows = self._joined()
        # Labels as int32: files with uint16 tensors are not read by every version of PyTorch.
        columns = {
            name: torch.from_numpy(column.astype(np.int32) if column.dtype == np.uint16 else column.copy())
            for name, column in zip(Rows._fields, rows, strict=True)
        }
        return {
            "classes": self.classes,
            "ignore_index": self.ignore_index,
            "boundary": self.boundary,
            "largest_prediction": torch.from_numpy(largest.copy()),
            **columns,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a ``state_dict`` in place of what has been counted; ValueError as in ``merge_state``."""
        fresh = SegmentationScores(*self._settings())
        fresh.merge_state(state)
        self._rows, self._largest = fresh._rows, fresh._largest


def _tensor(labels: torch.Tensor, what: str) -> torch.Tensor:
    """Take labels as a tensor of a type that PyTorch calculates with; ValueError if they are no integers."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return torch.from_numpy(labels.astype(np.int64))
    if isinstance(labels, torch.Tensor) and labels.dtype == getattr(torch, "uint16", None):
        return labels.to(torch.int64)
    if not isinstance(labels, torch.Tensor) or labels.dtype not in _INTEGERS:
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise ValueError(f"{what} is of type {kind}; give integer labels (logits need an argmax first)")
    return labels


def _on_cpu(prediction: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Check the shapes of a batch; give it as arrays (B, H, W), moved to the CPU in one transfer if need be.

    What is on the CPU is not touched: PyTorch's threads would be slower than the work is long.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}; "
            "resize the prediction (nearest neighbour, or its logits) to the target"
        )
    if prediction.ndim not in (2, 3) or 0 in prediction.shape[-2:]:
        raise ValueError(f"labels have shape {tuple(prediction.shape)}; give (B, H, W) or (H, W)")
    if prediction.is_cuda and target.is_cuda:
        dtype = torch.promote_types(prediction.dtype, target.dtype)
        both = torch.stack((prediction.to(dtype), target.to(prediction.device, dtype))).cpu()
        prediction, target = both[0], both[1]
    batch = (-1, *prediction.shape[-2:])
    return prediction.cpu().numpy().reshape(batch), target.cpu().numpy().reshape(batch)


def _runs(labels: np.ndarray, what: str) -> LabelRuns:
    try:
        return label_runs(labels_to_rgb(labels))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _concatenated(parts: Sequence[tuple[np.ndarray, Rows]]) -> tuple[np.ndarray, Rows]:
    """Join the images of several ranks, numbering them on."""
    before = np.cumsum([0, *(largest.size for largest, _ in parts)])
    shifted = [
        rows._replace(image=rows.image + np.int32(offset))
        for offset, (_, rows) in zip(before[:-1], parts, strict=True)
    ]
    columns = [np.concatenate(column) for column in zip(*shifted, strict=True)]
    return np.concatenate([largest for largest, _ in parts]), Rows(*columns)
