"""From patch and text embeddings to label maps, and the threshold below which a pixel is background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from imagenets.classes import BACKGROUND, IGNORE
from imagenets.learning.engine.full_size import label_map_and_confidence, reduced_size
from imagenets.learning.engine.inference import ENGINE, ArrayStep, Batch, LabelStep
from imagenets.learning.engine.label_files import enlarged
from imagenets.learning.engine.threshold_sweep import Sweep
from imagenets.learning.networks.precision import run_network
from imagenets.learning.zero_shot.vision_language import SIGLIP_DENSE, VisionLanguage

# Raised by hand whenever labels change.
CODE = f"{ENGINE}, zero-shot 1"
# Of hundreds of classes the most probable one often has a few percent: steps are finer there.
THRESHOLDS = (*(step / 1000 for step in range(100)), *(step / 100 for step in range(10, 100)))
LONGEST = 1000  # pixels; larger images are labelled at this size, as in every prediction of logits


@dataclass(frozen=True)
class Namer:
    """A model, its dense features, and its class names' embeddings (N, E), on the model's device."""

    model: VisionLanguage
    text: torch.Tensor
    dense: str

    def labels_and_confidence(self, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Label each picture's pixels 1..N with their probability: (H, W) int32 and float32.

        They have the image's size, or the reduced one of large images. Cosines are enlarged, not
        probabilities. Source: docs/zero_shot.md.
        """
        patches = run_network(
            self.model.patch_embeddings, batch.pictures, self.dense, precision=batch.precision
        )
        cosines = torch.einsum("behw,ne->bnhw", patches, self.text)
        scale, offset = self.model.probability_scale(self.dense)
        found = []
        for of_one, size in zip(cosines, batch.sizes, strict=True):
            labels, confidence = label_map_and_confidence(
                of_one * scale + offset, reduced_size(size, LONGEST), sigmoid=self.dense == SIGLIP_DENSE
            )
            found.append((labels + 1, confidence))
        return found


def label_step(namer: Namer, threshold: float) -> LabelStep:
    """Label pixels with the class of their most probable name, or 0 where that is below a threshold."""

    def step(batch: Batch) -> Sequence[torch.Tensor]:
        return [
            torch.where(confidence < threshold, 0, labels)
            for labels, confidence in namer.labels_and_confidence(batch)
        ]

    return step


def sweep_step(namer: Namer) -> ArrayStep:
    """Count each picture's pixels for all thresholds; ``sweep`` scores the counts."""

    def step(batch: Batch) -> Sequence[Mapping[str, torch.Tensor]]:
        found = namer.labels_and_confidence(batch)
        return [
            count_labels(mask, labels, confidence)
            for mask, (labels, confidence) in zip(batch.masks, found, strict=True)
        ]

    return step


def count_labels(mask: np.ndarray, labels: torch.Tensor, confidence: torch.Tensor) -> dict[str, torch.Tensor]:
    """Count the pixels of one image, ground truth ``mask`` (H, W); those to be ignored (1000) are left out.

    ``labels`` (h, w) integers and ``confidence`` (h, w) float32 are brought to the mask's size by the nearest
    neighbour, as label maps are. Returns ``truth`` (R, 2) int64: label, pixels; and ``predicted`` (R, 5):
    label, number of THRESHOLDS that the confidence reaches, pixels, and how many of these have that label, or
    background, in the ground truth.
    """
    labels = torch.from_numpy(enlarged(labels.cpu().numpy(), *mask.shape)).flatten().long()
    confidence = torch.from_numpy(enlarged(confidence.cpu().numpy(), *mask.shape)).flatten()
    truth = torch.from_numpy(mask.astype(np.int64)).flatten()
    counted = truth != IGNORE
    truth, labels, confidence = truth[counted], labels[counted], confidence[counted]
    levels = torch.tensor(THRESHOLDS, dtype=torch.float32)
    steps = torch.bucketize(confidence, levels, right=True)
    choices = len(THRESHOLDS) + 1
    keys, places = torch.unique(labels * choices + steps, return_inverse=True)
    pixels, hits, ground = (
        torch.bincount(places[of], minlength=len(keys))
        for of in (slice(None), labels == truth, truth == BACKGROUND)
    )
    found, number = torch.unique(truth, return_counts=True)
    return {
        "truth": torch.stack((found, number), 1),
        "predicted": torch.stack((keys // choices, keys % choices, pixels, hits, ground), 1),
    }


def sweep(truth: np.ndarray, predicted: np.ndarray, classes: int) -> Sweep:
    """Score all thresholds from the rows of all images, without a matching: labels are class ids.

    Equal to writing label maps for each threshold (0 where the confidence is below it) and evaluating them.
    The rows are ``count_labels``'.
    """
    labelled = np.bincount(truth[:, 0], truth[:, 1], classes + 1)[:, None]
    pixels, hits, ground = (_reaching(predicted, column, classes) for column in (2, 3, 4))
    pixels[BACKGROUND] = labelled.sum() - pixels.sum(0)
    hits[BACKGROUND] = labelled[BACKGROUND] - ground.sum(0)
    union = pixels + labelled - hits
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)
    return Sweep(THRESHOLDS, (100 * iou.mean(0)).tolist())


def _reaching(predicted: np.ndarray, column: int, classes: int) -> np.ndarray:
    """Sum a column over the pixels of each label that reach each threshold: (N + 1, thresholds) float64."""
    choices = len(THRESHOLDS) + 1
    keys = predicted[:, 0] * choices + predicted[:, 1]
    by_step = np.bincount(keys, predicted[:, column], (classes + 1) * choices).reshape(-1, choices)
    return by_step[:, :0:-1].cumsum(1)[:, ::-1]
