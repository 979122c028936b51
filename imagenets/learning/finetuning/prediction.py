"""The benchmark's scores on validation while a network is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from imagenets.classes import Mode
from imagenets.common.errors import InputError
from imagenets.common.progress import Show, no_bar
from imagenets.learning.engine.full_size import label_map, reduced_size
from imagenets.learning.engine.inference import ENGINE, Batch, Running, visit
from imagenets.learning.engine.label_files import laid
from imagenets.learning.engine.sharpening import sharpened
from imagenets.learning.images import Images, split_images, where_masks_come_from
from imagenets.learning.networks.segmentation_network import SegmentationNetwork
from imagenets.learning.processes import Processes, same_buffers
from imagenets.segmentation_scores import SegmentationScores

# Raised by hand whenever label maps change.
CODE = f"{ENGINE}, prediction 1"
_POSSIBLE = 0.01  # probability that a label reaches somewhere in a picture, to be spread in it
LONGEST = 1000  # pixels; above its square labels are found at a smaller size


def predicted(
    network: SegmentationNetwork, batch: Batch, longest: int = LONGEST, sharpen: bool = False
) -> Sequence[torch.Tensor]:
    """Label what each picture of a batch shows of its image: (H, W) int32, at its size or a reduced one.

    ``sharpen`` spreads the probabilities of the labels that a picture may show along its edges.
    Source: docs/methods.md, Prediction.
    """
    logits = batch.through(network)
    sizes = [reduced_size(shown, longest) for shown in batch.shown]
    if not sharpen:
        return [label_map(of_one, size) for of_one, size in zip(logits, sizes, strict=True)]
    return [
        _sharp_labels(of_one, picture, network, size)
        for of_one, picture, size in zip(logits, batch.pictures, sizes, strict=True)
    ]


def _sharp_labels(
    logits: torch.Tensor, picture: torch.Tensor, network: SegmentationNetwork, size: tuple[int, int]
) -> torch.Tensor:
    probabilities = logits.softmax(0)
    highest = probabilities.flatten(1).amax(1)
    labels = (highest >= highest.max().clamp_max(_POSSIBLE)).nonzero()[:, 0]
    few = probabilities[labels]
    few = few / few.sum(0).clamp_min(torch.finfo(few.dtype).tiny)
    sharp = sharpened(few, picture, network.backbone.mean, network.backbone.std)
    return labels[label_map(sharp, size).long()].int()


@dataclass(frozen=True)
class Validation:
    """Scores a network after every ``every``-th epoch and the last; never without ``images``."""

    images: Images | None
    classes: int
    every: int
    show: Show = no_bar

    @staticmethod
    def of(save_dir: Path | None, mode: Mode, every: int, show: Show = no_bar) -> Validation:
        """List the images of validation. Raises InputError when they or their masks are not there."""
        if every == 0:
            return Validation(None, mode.classes, 0, show)
        try:
            images = split_images(save_dir, mode, "validation")
            if images.masks is None:
                cure = where_masks_come_from(save_dir, mode)
                raise InputError(f"{images.folder}-segmentation: no masks to score with; {cure}")
        except InputError as error:
            raise InputError(f"{error}; or train without evaluation on the way") from error
        return Validation(images, mode.classes, every, show)

    def is_due(self, epochs: int, epoch: int) -> bool:
        """Return whether the network is scored after ``epoch`` of ``epochs``."""
        return self.images is not None and (epoch % self.every == 0 or epoch == epochs)

    def scores(
        self,
        network: SegmentationNetwork,
        epochs: int,
        processes: Processes,
        workers: int,
        precision: str,
        epoch: int,
    ) -> dict[str, float]:
        """Return mIoU, FMeasure and Acc, percentages; {} after epochs that are not to be scored.

        Each image is seen once, by one of the processes, in the training's precision and in batches of the
        size that predict.py has. Called in all of them.
        """
        if self.images is None or not self.is_due(epochs, epoch):
            return {}
        images = self.images
        running_scores = SegmentationScores(self.classes, boundary=False)

        def count() -> None:
            running = Running(processes, workers=workers, precision=precision, show=self.show)
            step, reading = partial(predicted, network), network.backbone.reading(stretched=True)
            for batch, labels in visit(images, step, reading, running, with_masks=True):
                for of_one, shown, mask in zip(labels, batch.shown, batch.masks, strict=True):
                    whole = laid(of_one.numpy(), shown, mask.shape)
                    running_scores.update(torch.from_numpy(whole), torch.from_numpy(mask.astype("int32")))

        same_buffers(network, processes)
        network.eval()
        processes.together(count)
        network.train()
        scores = running_scores.compute()
        return {name: float(scores[name]) for name in ("mIoU", "FMeasure", "Acc")}
