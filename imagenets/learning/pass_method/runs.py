"""PASS's two trainings from images to ``last.pth``: docs/pass.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imagenets.common.progress import Log, Show, no_bar, no_log
from imagenets.learning.images import digest
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.learning.networks.precision import on_device
from imagenets.learning.pass_method.attention import AttentionNetwork
from imagenets.learning.pass_method.crops import CropReader, CropSettings
from imagenets.learning.pass_method.heads import (
    DIMENSIONS,
    HeadSizes,
    PassNetwork,
    library_state,
    load_library_state,
)
from imagenets.learning.pass_method.published_files import attention_network
from imagenets.learning.pass_method.recipes import Attention, Pretraining, as_settings
from imagenets.learning.pass_method.sinkhorn import FeatureQueue
from imagenets.learning.pass_method.steps import AttentionStep, CollapseWatch, PretrainingStep
from imagenets.learning.processes import Processes, described, join
from imagenets.learning.training.loop import TrainingJob, train
from imagenets.learning.training.optimisers import Lars, cosine
from imagenets.learning.training.order import Plan
from imagenets.learning.training.run_files import Settings, opened_run


@dataclass(frozen=True)
class PassRequest:
    """Which images are trained on, and where the run lies.

    ``images`` are ``<wnid>/<file>`` in ``folder``. ``precision`` is a name of PyTorch's, the network's.
    """

    mode: str
    recipe_name: str
    folder: Path
    images: Sequence[str]
    output: Path
    workers: int
    precision: str


def pretrain(
    request: PassRequest, recipe: Pretraining, processes: Processes, show: Show = no_bar, log: Log = no_log
) -> None:
    """Do step 1 from where its folder stands to its end: ``last.pth``, ``log.jsonl``, ``curves.png``.

    ``show`` opens a bar, ``log`` receives lines for the user, both in the first process only.
    Raises InputError when the backbone is no ResNet, the batch cannot be split, the folder holds another
    run, or as ``loop.train`` does.
    """
    torch.manual_seed(recipe.seed)
    network = PassNetwork(
        make_backbone(recipe.backbone), HeadSizes(hidden=recipe.hidden, prototypes=recipe.prototypes)
    )
    run = _Run(request, recipe, recipe.backbone, network, processes, log)
    step = PretrainingStep(network, run.joined, recipe, run.queue, run.watch, request.precision)
    run.train(step, recipe.small, {"step": "pretraining"}, show)


def train_attention(
    request: PassRequest,
    recipe: Attention,
    backbone: str,
    checkpoint: Path,
    processes: Processes,
    show: Show = no_bar,
    log: Log = no_log,
    weights: str | None = None,
) -> None:
    """Do step 2's training on a pre-trained ``checkpoint``; files and errors as those of ``pretrain``.

    ``weights`` is the copy to take where the checkpoint has several.
    """
    torch.manual_seed(recipe.seed)
    network, lines = processes.together(lambda: attention_network(backbone, checkpoint, weights))
    if processes.first:
        for line in lines:
            log(line)
    run = _Run(request, recipe, backbone, network, processes, log)
    step = AttentionStep(network, run.joined, run.queue, run.watch, request.precision)
    origin = {"backbone": backbone, "checkpoint": weights_digest(checkpoint, weights)}
    run.train(step, None, {"step": "attention", **origin}, show)


class _Run:
    """What both trainings have in common: plan, network on its device, queue, optimiser and folder."""

    def __init__(
        self,
        request: PassRequest,
        recipe: Pretraining | Attention,
        backbone: str,
        network: PassNetwork | AttentionNetwork,
        processes: Processes,
        log: Log,
    ) -> None:
        self.request, self.recipe, self.backbone = request, recipe, backbone
        self.network, self.processes, self.log = network, processes, log
        self.plan = Plan(
            images=len(request.images),
            batch=recipe.batch,
            epochs=recipe.epochs,
            seed=recipe.seed,
            keep_last=False,
            rank=processes.rank,
            processes=processes.number,
        )
        on_device(network, processes.device).train()
        self.joined = join(network, processes)
        self.queue = FeatureQueue(recipe.queue, recipe.batch, DIMENSIONS, processes.device)
        self.watch = CollapseWatch(network.prototypes.out_features, processes, log)

    def train(
        self,
        step: PretrainingStep | AttentionStep,
        small: CropSettings | None,
        settings: Settings,
        show: Show,
    ) -> None:
        """Train to the end; ``settings`` are those that the other training has not."""
        request, recipe = self.request, self.recipe
        if self.processes.first:
            self.log(
                f"{len(request.images)} images, {self.plan.steps} steps an epoch; {described(self.processes)}"
            )
        reader = CropReader(request.folder, request.images, recipe.seed, recipe.large, small, recipe.colours)
        settings = {
            **settings,
            "mode": request.mode,
            "recipe": request.recipe_name,
            **as_settings(recipe),
            "precision": request.precision,
            "images": len(request.images),
            "names of images": digest(request.images),
        }
        with opened_run(request.output, settings, self.processes) as run:
            train(self._job(step), reader, self.plan, run, workers=request.workers, show=show, log=self.log)

    def _job(self, step: PretrainingStep | AttentionStep) -> TrainingJob:
        request, recipe, network = self.request, self.recipe, self.network
        trained = (weight for weight in network.parameters() if weight.requires_grad)
        updates = self.plan.epochs * self.plan.steps
        return TrainingJob(
            network=self.joined,
            optimiser=Lars(trained, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay),
            loss_of=step.loss_of,
            rate=lambda at: cosine(at.update / updates, recipe.lr, recipe.final_lr),
            weights=lambda: library_state(network),
            load_weights=lambda state: load_library_state(network, state),
            about={"backbone": self.backbone, "mode": request.mode, "recipe": request.recipe_name},
            precision=request.precision,
            before_update=step.before_update,
            scores=self.watch.scores,
            more={"queue": self.queue, "watch": self.watch},
        )
