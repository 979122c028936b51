"""PASS's two trainings from images to ``last.pth``: docs/pass.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imagenets.common.progress import Show
from imagenets.learning.images import digest
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.learning.networks.precision import on_device
from imagenets.learning.pass_method.crops import CropReader
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
from imagenets.learning.pass_method.steps import AttentionStep, CollapseWatch, PretrainingStep, QueueState
from imagenets.learning.processes import Processes, described, join
from imagenets.learning.training.loop import TrainingJob, train
from imagenets.learning.training.optimisers import Lars, cosine
from imagenets.learning.training.order import Plan, StepIndex
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


@dataclass(frozen=True)
class Talk:
    """How a run tells what it does: bars and lines, in the first process alone."""

    show: Show
    tell: Callable[[str], None]


def pretrain(request: PassRequest, recipe: Pretraining, processes: Processes, talk: Talk) -> None:
    """Do step 1 from where its folder stands to its end: ``last.pth``, ``log.jsonl``, ``curves.png``.

    Raises InputError when the backbone is no ResNet, the batch cannot be split, the folder holds another
    run, or as ``loop.train`` does.
    """
    torch.manual_seed(recipe.seed)
    network = PassNetwork(
        make_backbone(recipe.backbone), HeadSizes(hidden=recipe.hidden, prototypes=recipe.prototypes)
    )
    plan = _plan(request, recipe, processes)
    on_device(network, processes.device).train()
    joined = join(network, processes)
    queue = FeatureQueue(recipe.queue, recipe.batch, DIMENSIONS, processes.device)
    watch = CollapseWatch(recipe.prototypes, processes, talk.tell)
    step = PretrainingStep(network, joined, recipe, queue, watch, request.precision)
    job = _job(request, recipe, plan, step, recipe.backbone)
    reader = CropReader(
        request.folder, request.images, recipe.seed, recipe.large, recipe.small, recipe.colours
    )
    settings = {"step": "pretraining", **_settings(request, recipe)}
    _run(request, job, reader, plan, settings, processes, talk)


def train_attention(
    request: PassRequest,
    recipe: Attention,
    backbone: str,
    checkpoint: Path,
    processes: Processes,
    talk: Talk,
    weights: str | None = None,
) -> None:
    """Do step 2's training on a pre-trained ``checkpoint``; files and errors as those of ``pretrain``.

    ``weights`` is the copy to take where the checkpoint has several.
    """
    torch.manual_seed(recipe.seed)
    network, lines = processes.together(lambda: attention_network(backbone, checkpoint, weights))
    if processes.first:
        for line in lines:
            talk.tell(line)
    plan = _plan(request, recipe, processes)
    on_device(network, processes.device).train()
    joined = join(network, processes)
    queue = FeatureQueue(recipe.queue, recipe.batch, DIMENSIONS, processes.device)
    watch = CollapseWatch(network.prototypes.out_features, processes, talk.tell)
    step = AttentionStep(network, joined, queue, watch, request.precision)
    job = _job(request, recipe, plan, step, backbone)
    reader = CropReader(request.folder, request.images, recipe.seed, recipe.large, None, recipe.colours)
    settings = {
        "step": "attention",
        "backbone": backbone,
        "checkpoint": weights_digest(checkpoint, weights),
        **_settings(request, recipe),
    }
    _run(request, job, reader, plan, settings, processes, talk)


def _plan(request: PassRequest, recipe: Pretraining | Attention, processes: Processes) -> Plan:
    return Plan(
        images=len(request.images),
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=recipe.seed,
        keep_last=False,
        rank=processes.rank,
        processes=processes.number,
    )


def _job(
    request: PassRequest,
    recipe: Pretraining | Attention,
    plan: Plan,
    step: PretrainingStep | AttentionStep,
    backbone: str,
) -> TrainingJob:
    """Give what both trainings have in common: LARS, its rate, and what is saved."""
    updates = plan.epochs * plan.steps

    def rate(at: StepIndex) -> float:
        return cosine(at.update / updates, recipe.lr, recipe.final_lr)

    trained = (weight for weight in step.network.parameters() if weight.requires_grad)
    return TrainingJob(
        network=step.joined,
        optimiser=Lars(trained, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay),
        loss_of=step.loss_of,
        rate=rate,
        weights=lambda: library_state(step.network),
        load_weights=lambda state: load_library_state(step.network, state),
        about={"backbone": backbone, "mode": request.mode, "recipe": request.recipe_name},
        precision=request.precision,
        before_update=step.before_update,
        scores=step.watch.scores,
        more={"queue": QueueState(step.queue), "watch": step.watch},
    )


def _settings(request: PassRequest, recipe: Pretraining | Attention) -> Settings:
    return {
        "mode": request.mode,
        "recipe": request.recipe_name,
        **as_settings(recipe),
        "precision": request.precision,
        "images": len(request.images),
        "names of images": digest(request.images),
    }


def _run(
    request: PassRequest,
    job: TrainingJob,
    reader: CropReader,
    plan: Plan,
    settings: Settings,
    processes: Processes,
    talk: Talk,
) -> None:
    if processes.first:
        talk.tell(f"{len(request.images)} images, {plan.steps} steps an epoch; {described(processes)}")
    with opened_run(request.output, settings, processes) as run:
        train(job, reader, plan, run, workers=request.workers, show=talk.show, tell=talk.tell)
