"""One training step of PASS's pre-training and of its attention, and the watch over collapse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from imagenets.learning.networks.precision import Normalisation, run_network
from imagenets.learning.pass_method.attention import AttentionNetwork, AttentionOutputs
from imagenets.learning.pass_method.crops import MEAN, STD, shared_grids, views
from imagenets.learning.pass_method.heads import PassNetwork, PassOutputs, normalize_prototypes
from imagenets.learning.pass_method.losses import deep_to_shallow, image_to_image, pass_loss, pixel_to_pixel
from imagenets.learning.pass_method.recipes import Pretraining
from imagenets.learning.pass_method.sinkhorn import FeatureQueue, assignments_of_views
from imagenets.learning.processes import Processes
from imagenets.learning.training.order import StepIndex, TrainingBatch

# Below these a run has collapsed: all pictures look alike to it.
COLLAPSED_SPREAD = 0.01
COLLAPSED_SHARE = 0.01  # of the prototypes that any crop is nearest to


class CollapseWatch:
    """Counts over an epoch how many prototypes are in use, and how far the backbone's features spread.

    A prototype is in use when it is the nearest to a large crop. The spread is the root of the variance of
    pooled features of length 1, of all large crops: 0 where all pictures look alike to the backbone, 1 at
    most. (Behind the image head it would say nothing: its last batch norm spreads whatever comes.)
    """

    def __init__(self, prototypes: int, processes: Processes, warn: Callable[[str], None]) -> None:
        """Watch over ``prototypes``; the first process calls ``warn`` for a run that has collapsed."""
        self.counts = torch.zeros(prototypes, dtype=torch.int64, device=processes.device)
        self.sum = torch.zeros(0, dtype=torch.float64, device=processes.device)  # of features, (C,)
        self.processes = processes
        self.warn = warn

    @torch.no_grad()
    def look(self, pooled: torch.Tensor, scores: torch.Tensor) -> None:
        """Count one step's large crops: ``pooled`` (n, C) of length 1, ``scores`` (n, K)."""
        nearest = scores.argmax(1)
        self.counts.scatter_add_(0, nearest, torch.ones_like(nearest))  # bincount would wait for the device
        added = pooled.double().sum(0)
        self.sum = self.sum + added if self.sum.numel() else added

    def scores(self, epoch: int) -> dict[str, float]:
        """End an epoch: ``prototypes_in_use`` and ``spread``; all processes must call it."""
        counts, total = self._of_all()
        self.counts.zero_()
        self.sum.zero_()
        in_use = int((counts > 0).sum())
        # Of unit vectors, the variance is one minus the squared length of the mean.
        variance = 1 - float((total / counts.sum()).square().sum())
        spread = max(variance, 0.0) ** 0.5
        if self.processes.first and (
            spread < COLLAPSED_SPREAD or in_use <= max(1, COLLAPSED_SHARE * counts.numel())
        ):
            self.warn(
                f"epoch {epoch}: this run has collapsed, all pictures look alike to it: {in_use} of "
                f"{counts.numel()} prototypes are in use, features spread {spread:.3f} of 1; lower the "
                "learning rate, or take a larger batch"
            )
        return {"prototypes_in_use": in_use, "spread": spread}

    def state_dict(self) -> dict[str, Any]:
        """Return what all processes have counted in this epoch."""
        counts, total = self._of_all()
        return {"counts": counts.cpu(), "sum": total.cpu()}

    def _of_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.processes.sum(self.counts.clone()), self.processes.sum(self.sum.clone())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, in the first process."""
        share = 1 if self.processes.first else 0
        self.counts.copy_(state["counts"] * share)
        self.sum = state["sum"].to(self.counts.device) * share


class _Step:
    """What both steps have in common."""

    def __init__(
        self,
        network: AttentionNetwork | PassNetwork,
        joined: nn.Module,
        queue: FeatureQueue,
        watch: CollapseWatch,
        precision: str,
    ) -> None:
        """Train ``network``, through ``joined``, which adds the gradients of all processes up."""
        self.prototypes, self.queue, self.watch = network.prototypes, queue, watch
        self.run = partial(run_network, joined, precision=precision)
        self.normalised = Normalisation(MEAN, STD, watch.processes.device)


class AttentionStep(_Step):
    """What the training loop asks of step 2: the image loss of two crops."""

    def loss_of(self, batch: TrainingBatch, at: StepIndex) -> dict[str, torch.Tensor]:
        """Loss of this process's share, ``loss``."""
        _, large = batch.tensors
        normalize_prototypes(self.prototypes)
        outputs: AttentionOutputs = self.run(self.normalised(views(large)))
        scores = outputs.scores.chunk(2)
        assignments = assignments_of_views(outputs.features, scores, self.queue, self.prototypes.weight)
        self.watch.look(outputs.pooled, outputs.scores)
        return {"loss": image_to_image(assignments, scores)}

    def before_update(self, at: StepIndex) -> None:
        """Let all gradients pass: attention and prototypes are trained from the first step on."""


class PretrainingStep(_Step):
    """What the training loop asks of step 1: a batch's losses, and prototypes that are frozen at first."""

    def __init__(
        self,
        network: PassNetwork,
        joined: nn.Module,
        recipe: Pretraining,
        queue: FeatureQueue,
        watch: CollapseWatch,
        precision: str,
    ) -> None:
        """Train ``network``, through ``joined``, by ``recipe``."""
        super().__init__(network, joined, queue, watch, precision)
        self.recipe = recipe

    def loss_of(self, batch: TrainingBatch, at: StepIndex) -> dict[str, torch.Tensor]:
        """Losses of this process's share: ``loss``, and its parts ``image``, ``shallow`` and ``pixel``."""
        rectangles, large, *small = batch.tensors
        normalize_prototypes(self.prototypes)
        grids = torch.cat(shared_grids(rectangles[:, 0], rectangles[:, 1]))
        crops = [self.normalised(views(crops)) for crops in (large, *small)]
        outputs: PassOutputs = self.run(crops[0], crops[1:], grids)
        queue = self.queue if at.epoch >= self.recipe.queue_from else None
        scores = torch.split(outputs.scores, len(large))
        assignments = assignments_of_views(outputs.features, scores[:2], queue, self.prototypes.weight)
        self.watch.look(outputs.pooled, outputs.scores[: 2 * len(large)])
        image = image_to_image(assignments, scores)
        shallow = deep_to_shallow(assignments, outputs.shallow.chunk(2))
        pixel = pixel_to_pixel(outputs.prediction, outputs.projection)
        loss = pass_loss(image, shallow, pixel, self.recipe.weights)
        return {"loss": loss, "image": image, "shallow": shallow, "pixel": pixel}

    def before_update(self, at: StepIndex) -> None:
        """Drop the gradient of the prototypes while they are frozen; they neither decay nor gain momentum."""
        if at.update < self.recipe.frozen_steps:
            self.prototypes.weight.grad = None
