"""The benchmark's scores in a training loop: from batches of label tensors to the scores of evaluator.py."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from imagenets.class_ids import ModeName
from imagenets.classes import IGNORE, MAX_LABEL, Mode, find_mode
from imagenets.masks import boundary_distance, labels_to_rgb
from imagenets.scoring.contingency import ROW_TYPES, ContingencyTable, Rows, count_pair, make_table
from imagenets.scoring.matching import Matching
from imagenets.scoring.metrics import BOUNDARY_SCORES, SCORES, evaluate
from imagenets.scoring.run_length import LabelRuns, label_runs

# PyTorch cannot calculate with bool and with the unsigned types except uint8.
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Labels = torch.Tensor | np.ndarray
Matched = Matching | Mapping[int, int] | Sequence[int] | np.ndarray | torch.Tensor | None


class SegmentationScores(Metric):
    """All scores of evaluator.py (docs/benchmark.md), from batches of predictions; a torchmetrics Metric.

    Every image is counted into a contingency table by the functions that evaluator.py uses, so the scores
    are the same to the last digit, whatever the order and the batches: pixels of all images are pooled
    before a ratio is taken; only FMeasure and Acc are means over images.

    >>> scores = SegmentationScores("50")
    >>> scores.update(torch.tensor([[0, 7, 7]]), torch.tensor([[0, 7, 1000]]))
    >>> float(scores.compute()["Acc"])
    100.0

    What has been counted is part of ``state_dict``, unless ``persistent(False)`` is called.

    Under an initialised ``torch.distributed``, ``compute``, ``compute_classes`` and ``table`` gather the
    images of all ranks, so all ranks must call them, and no image may go to two ranks.
    ``DistributedSampler`` does that: it repeats images until the ranks have equally many.
    ``Subset(dataset, range(rank, len(dataset), world_size))`` does not.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    settings: torch.Tensor
    images: list[torch.Tensor] | torch.Tensor
    rows: list[torch.Tensor] | torch.Tensor

    def __init__(
        self,
        classes: ModeName,
        ignore_index: int = IGNORE,
        boundary: bool = True,
        clusters: int | None = None,
        **kwargs: Any,  # noqa: ANN401 - torchmetrics' own, as they are
    ) -> None:
        """Count for a mode, or for a number of classes without background: ``"50"`` and 50 are the same.

        A mode may be the path of a class list (docs/own_data.md).

        ``ignore_index`` is the target label of ignored pixels. Without ``boundary`` the scores of
        boundaries are nan, and a little time is saved. ``clusters`` is the largest label of a prediction
        (None: as many as there are classes). ``kwargs`` are torchmetrics' own.

        Raises ValueError for an unknown mode, less than one class or too many, an ``ignore_index`` that is a
        class, or a ``clusters`` that is not a label.
        """
        # Scores depend on the matching, so results of compute are never kept.
        super().__init__(**{"dist_sync_fn": _gather, **kwargs, "compute_with_cache": False})
        if isinstance(classes, str | Path | Mode):
            classes = find_mode(classes).classes
        number = operator.index(classes)
        ignore_index = operator.index(ignore_index)
        if not 1 <= number < MAX_LABEL:
            raise ValueError(f"{number} classes; give 1..{MAX_LABEL - 1}, without the background")
        if 0 <= ignore_index <= number:
            raise ValueError(f"ignore_index {ignore_index} is one of the labels 0..{number}")
        if clusters is not None and not 1 <= operator.index(clusters) <= MAX_LABEL:
            raise ValueError(f"{clusters} clusters; give 1..{MAX_LABEL}, without the background")
        self.classes = number
        self.ignore_index = ignore_index
        self.boundary = boundary
        self.clusters = None if clusters is None else operator.index(clusters)
        self._ignore_label = ignore_index if 0 <= ignore_index <= MAX_LABEL else number + 1
        settings = torch.tensor([number, ignore_index, boundary, clusters or 0])
        # As a state, so that metrics with other settings are never merged.
        self.add_state("settings", settings, _the_same, persistent=True)
        # A row (n, 2) int64: labels and boundaries in one number, see _packed; pixels. An image (n, 2) int64:
        # the largest label of its prediction; its number of rows.
        self.add_state("images", [], "cat", persistent=True)
        self.add_state("rows", [], "cat", persistent=True)

    def update(self, prediction: Labels | Sequence[Labels], target: Labels | Sequence[Labels]) -> None:
        """Count a batch: labels (B, H, W), or (H, W) of one image; integers, on any device; arrays too.

        Pass images of different sizes as two lists of labels (H, W). ``prediction`` holds classes 0..N, or
        clusters 0..K if there are more, ``target`` the ground truth 0..N or ``ignore_index``.

        Raises ValueError for other types, shapes or labels, also for a type of 8 bits that cannot hold all
        labels; then nothing of the batch is counted.
        """
        images: list[tuple[int, int]] = []
        rows: list[torch.Tensor] = []
        largest_allowed = self.clusters or self.classes
        for predictions, targets in _batches(prediction, target, largest_allowed, self.classes):
            if self._ignore_label != self.ignore_index:
                targets = self._with_ignore_label(targets, len(images))
            distance = boundary_distance(*targets.shape[1:]) if self.boundary else None
            for one_prediction, one_target in zip(predictions, targets, strict=True):
                picture = f"picture {len(images)} of the batch"
                guess = _runs(one_prediction, f"prediction of {picture}")
                truth = _runs(one_target, f"target of {picture}")
                labels = truth.palette[truth.palette != self._ignore_label]
                self._refuse_outside(labels[labels > self.classes], picture)
                largest = int(guess.palette.max())
                if largest > largest_allowed:
                    cure = "" if self.clusters else "; if they are clusters, pass their number: clusters="
                    raise ValueError(
                        f"prediction of {picture} has label {largest}, there are 0..{largest_allowed}{cure}"
                    )
                counted = _packed(count_pair(truth, guess, 0, distance, self._ignore_label))
                images.append((largest, len(counted)))
                rows.append(counted)
        if images:
            self.images, self.rows = _listed(self.images), _listed(self.rows)
            self.images.append(torch.tensor(images, device=self.device))
            self.rows.append(torch.cat(rows).to(self.device))

    def _with_ignore_label(self, targets: np.ndarray, first: int) -> np.ndarray:
        """Replace an ``ignore_index`` that is no label by one that is; picture ``first`` is the first."""
        ignored = targets == self.ignore_index
        for number, outside in enumerate(~ignored & (targets > self.classes), start=first):
            self._refuse_outside(targets[number - first][outside], f"picture {number} of the batch")
        return np.where(ignored, self._ignore_label, targets.astype(np.int64))

    def _refuse_outside(self, outside: np.ndarray, picture: str) -> None:
        if outside.size:
            raise ValueError(
                f"target of {picture} has label {outside[0]}, which is neither in 0..{self.classes} "
                f"nor ignore_index {self.ignore_index}"
            )

    def __repr__(self) -> str:
        """Show what is counted, and how many images so far."""
        images = sum(len(part) for part in _listed(self.images))
        return (
            f"SegmentationScores({self.classes} classes, ignore_index={self.ignore_index}, "
            f"boundary={self.boundary}, clusters={self.clusters}; {images} images counted)"
        )

    def forward(
        self, prediction: Labels | Sequence[Labels], target: Labels | Sequence[Labels]
    ) -> dict[str, torch.Tensor]:
        """Count a batch as ``update`` does, and return its scores as ``compute`` does.

        Raises ValueError as they do; then nothing of the batch is counted, and what was counted stays.
        """
        before, count = self._copy_state_dict(), self._update_count
        try:
            scores: dict[str, torch.Tensor] = super().forward(prediction, target)
        except BaseException:
            for name, value in before.items():
                setattr(self, name, value)
            self._update_count, self._is_synced = count, False
            self._to_sync, self._should_unsync, self._enable_grad = self.sync_on_compute, True, False
            raise
        return scores

    def table(self) -> ContingencyTable:
        """Return the contingency table of all images, of all ranks; what ``find_matching`` needs.

        Images are numbered in the order of the updates, rank after rank.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=not self._is_synced):
            return self._own_table()

    def compute(self, match: Matched = None) -> dict[str, torch.Tensor]:
        """Compute the scores of all images so far, of all ranks: percentages, nan if one does not exist.

        Values are float64 tensors () by the names of evaluator.py. ``match`` holds the class of each cluster:
        what ``find_matching(scores.table(), ...)`` returns, a mapping, or a sequence that is indexed by
        cluster. Without it, predictions are classes. Without any image every score is nan.

        Raises ValueError when a predicted label is no class, or has none in ``match``.
        """
        table = self._own_table()
        scores = dict.fromkeys(SCORES, math.nan)
        if table.names:
            scores = dict(evaluate(table, self.classes, self._matching(table, match)).scores)
        if not self.boundary:
            scores.update(dict.fromkeys(BOUNDARY_SCORES, math.nan))
        return {name: self._tensor(score) for name, score in scores.items()}

    def compute_classes(self, match: Matched = None) -> dict[str, torch.Tensor]:
        """Compute ``IoU`` and ``BIoU`` of each label 0..N as ``compute`` does: float64 (N + 1,), percentages.

        Without any image they are nan, and without ``boundary`` the latter.
        """
        table = self.table()
        nothing = np.full(self.classes + 1, math.nan)
        if not table.names:
            return {"IoU": self._tensor(nothing), "BIoU": self._tensor(nothing)}
        found = evaluate(table, self.classes, self._matching(table, match))
        boundary_iou = found.boundary_iou if self.boundary else nothing
        return {"IoU": self._tensor(found.iou), "BIoU": self._tensor(boundary_iou)}

    def _tensor(self, values: float | np.ndarray) -> torch.Tensor:
        device = "cpu" if self.device.type == "mps" else self.device  # which has no float64
        return torch.tensor(values, dtype=torch.float64, device=device)

    def _matching(self, table: ContingencyTable, match: Matched) -> np.ndarray | None:
        """Check the predicted labels, and lay the matching out as an array indexed by them."""
        if match is None:
            largest = int(table.largest_prediction.max())
            if largest > self.classes:
                raise ValueError(
                    f"prediction {largest} is no class in 0..{self.classes}; clusters need a matching, match="
                )
            return None
        used = set(np.unique(table.prediction).tolist())
        given = {cluster: label for cluster, label in _entries(match) if cluster in used}
        for cluster, label in given.items():
            if label != int(label) or not 0 <= label <= self.classes:
                raise ValueError(f"cluster {cluster}: {label!r} is no class in 0..{self.classes}")
        matching = Matching.of(given)
        lacking = matching.lacking(table.prediction)
        if lacking:
            raise ValueError(f"the matching lacks {len(lacking)} predicted clusters, {lacking[0]} for one")
        return matching.classes

    def _own_table(self) -> ContingencyTable:
        """Table of the images that the states hold: this rank's, or all ranks' where they are gathered."""
        self._join()
        images = _listed(self.images)[0].cpu().numpy()
        rows = _unpacked(_listed(self.rows)[0].cpu().numpy(), images[:, 1])
        return make_table([str(i) for i in range(len(images))], images[:, 0], [rows])

    def _join(self) -> None:
        """Hold each state as one tensor: quicker to gather, and of the right type even if empty."""
        for name in ("images", "rows"):
            parts = _listed(getattr(self, name))
            empty = torch.zeros((0, 2), dtype=torch.int64, device=self.device)
            setattr(self, name, [torch.cat(parts) if parts else empty])

    def sync(self, *arguments: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as torchmetrics has it
        """Gather the states of all ranks, as torchmetrics does."""
        self._join()
        super().sync(*arguments, **kwargs)

    @contextmanager
    def sync_context(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,  # noqa: ANN401 - as torchmetrics has it
        should_sync: bool = True,
        should_unsync: bool = True,
        distributed_available: Callable[..., bool] | None = None,
    ) -> Iterator[None]:
        """Gather the states of all ranks temporarily; afterwards, or after an error, each rank has its own
        again."""
        self.sync(dist_sync_fn, process_group, should_sync, distributed_available)
        try:
            yield
        finally:
            self.unsync(should_unsync=self._is_synced and should_unsync)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the images that another object, or its ``state_dict``, has counted.

        Raises ValueError if it has other settings (classes, ignore_index, boundary, clusters).
        """
        super().merge_state(incoming_state)
        self._update_count = max(self._update_count, 1)

    def _copy_state_dict(self) -> dict[str, torch.Tensor | list[Any]]:
        """Copy the states; tensors are never changed in place, and so are shared."""
        return {name: list(v) if isinstance(v, list) else v for name, v in self.metric_state.items()}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *arguments: Any,  # noqa: ANN401 - PyTorch's own
    ) -> None:
        """Replace the counts by others, unless these were counted with other settings."""
        settings = state_dict.get(f"{prefix}settings")
        if settings is not None:
            _the_same(torch.stack([self.settings.cpu(), settings.cpu()]))
            self._update_count = max(self._update_count, 1)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def set_dtype(self, dst_type: str | torch.dtype) -> SegmentationScores:
        """Change nothing: counts are 64-bit integers."""
        return self


def _entries(match: Any) -> list[tuple[int, Any]]:  # noqa: ANN401 - Matched, but not None
    """Return cluster and class of each entry of a matching, in whichever form."""
    if isinstance(match, Matching):
        match = match.held()
    if isinstance(match, Mapping):
        return [(int(cluster), label) for cluster, label in match.items()]
    labels = match.cpu().numpy() if isinstance(match, torch.Tensor) else np.asarray(match)
    return list(enumerate(labels.tolist()))


def _the_same(settings: torch.Tensor) -> torch.Tensor:
    """Reduce the settings (n, 4) of merged metrics; ValueError if they differ."""
    if not bool((settings == settings[0]).all()):
        given = " and ".join(sorted({str(tuple(one)) for one in settings.tolist()}))
        raise ValueError(
            f"these metrics have other settings: (classes, ignore_index, boundary, clusters) is {given}"
        )
    return settings[0]


def _gather(state: torch.Tensor, group: Any | None = None) -> list[torch.Tensor]:  # noqa: ANN401
    """Gather a state of all ranks, also with NCCL and states on the CPU."""
    if torch.distributed.get_backend(group) == "nccl" and not state.is_cuda:
        return [part.cpu() for part in gather_all_tensors(state.cuda(), group)]
    return list(gather_all_tensors(state, group))


def _listed(state: list[torch.Tensor] | torch.Tensor) -> list[torch.Tensor]:
    """Return a state as torchmetrics leaves it, a list or, gathered, a tensor, as a list."""
    return [state] if isinstance(state, torch.Tensor) else state


def _packed(rows: Rows) -> torch.Tensor:
    """Put rows into a tensor (n, 2) int64: both labels and both boundaries in one number; pixels."""
    code = rows.ground_truth.astype(np.int64) | rows.prediction.astype(np.int64) << 16
    code |= rows.on_gt_boundary.astype(np.int64) << 32 | rows.on_prediction_boundary.astype(np.int64) << 33
    return torch.from_numpy(np.stack([code, rows.pixels], axis=1))


def _unpacked(packed: np.ndarray, lengths: np.ndarray) -> Rows:
    """Return rows (n, 2) back, numbered by images that have so many rows each, (images,) int64."""
    code, pixels = packed.T
    image = np.repeat(np.arange(lengths.size), lengths)
    columns = (image, code & 0xFFFF, code >> 16 & 0xFFFF, code >> 32 & 1, code >> 33 & 1, pixels)
    return Rows(*(column.astype(dtype) for column, dtype in zip(columns, ROW_TYPES, strict=True)))


def _batches(
    prediction: Labels | Sequence[Labels],
    target: Labels | Sequence[Labels],
    largest_prediction: int,
    largest_target: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return arrays (B, H, W), of a batch or of each image of a list; ValueError for types too small."""
    lists = [isinstance(labels, list | tuple) for labels in (prediction, target)]
    if any(lists) and not (all(lists) and len(prediction) == len(target)):
        raise ValueError("prediction and target must both be lists, of as many images")
    for one, other in zip(prediction, target, strict=True) if all(lists) else [(prediction, target)]:
        yield _on_cpu(
            _tensor(one, "prediction", largest_prediction), _tensor(other, "target", largest_target)
        )


def _tensor(labels: Any, what: str, largest: int) -> torch.Tensor:  # noqa: ANN401 - refused unless labels
    """Take labels as a tensor of a type that PyTorch calculates with.

    ValueError if they are no integers, or of an 8-bit type that does not hold 0..``largest``: larger labels
    were cut off.
    """
    most = {"int8": 127, "uint8": 255}.get(str(getattr(labels, "dtype", "")).removeprefix("torch."))
    if most is not None and most < largest:
        raise ValueError(
            f"{what} is of type {labels.dtype}, which holds labels up to {most}, and there are {largest}: "
            "larger ones were cut off; use a wider type where the labels are made"
        )
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return torch.from_numpy(labels.astype(np.int64))
    if isinstance(labels, torch.Tensor) and labels.dtype == getattr(torch, "uint16", None):
        return labels.to(torch.int64)
    if not isinstance(labels, torch.Tensor) or labels.dtype not in _INTEGERS:
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise ValueError(f"{what} is of type {kind}; pass integer labels (logits need an argmax first)")
    return labels


def _on_cpu(prediction: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Check the shapes of a batch; return it as arrays (B, H, W), moved to the CPU in one transfer if
    necessary.

    Tensors on the CPU are not touched: starting PyTorch's threads would take longer than the work.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}; "
            "resize the prediction (nearest neighbour, or its logits) to the target"
        )
    if prediction.ndim not in (2, 3) or 0 in prediction.shape[-2:]:
        raise ValueError(f"labels have shape {tuple(prediction.shape)}; pass (B, H, W) or (H, W)")
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
