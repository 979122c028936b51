"""One fine-tuning run, from the network and the pairs to ``last.pth``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imagenets.classes import Mode
from imagenets.common.errors import InputError
from imagenets.common.progress import Log, Show, no_bar, no_log
from imagenets.learning.finetuning.losses import annotated_loss, label_map_loss, object_loss
from imagenets.learning.finetuning.pairs import Augmented, list_pairs, masks_digest
from imagenets.learning.finetuning.prediction import Validation
from imagenets.learning.finetuning.recipes import Values, values_of
from imagenets.learning.images import digest
from imagenets.learning.networks.backbones import Backbone, Size, make_backbone
from imagenets.learning.networks.checkpoint_files import read_checkpoint, weights_digest
from imagenets.learning.networks.checkpoints import load_checkpoint
from imagenets.learning.networks.precision import Normalisation, on_device, run_network, training_precision
from imagenets.learning.networks.segmentation_network import (
    PASS,
    SELF,
    SEMI,
    SegmentationNetwork,
    fresh_norm,
    kind_of,
)
from imagenets.learning.processes import Processes, described, join
from imagenets.learning.training.loop import TrainingJob, train
from imagenets.learning.training.optimisers import Lars, layer_decay_groups, warm_up_and_cosine
from imagenets.learning.training.order import Plan, StepIndex, TrainingBatch
from imagenets.learning.training.run_files import opened_run, settings_text

_LOSSES = {SEMI: annotated_loss, PASS: label_map_loss, SELF: object_loss}


@dataclass(frozen=True)
class FineTuneRequest:
    """What the user asks for; ``given`` are values of the recipe that are replaced, by their names.

    ``checkpoint`` None starts at random; ``weights`` is the copy in it, where it has several. ``masks`` are
    the label maps of the recipes of ON_CLUSTERS. ``precision`` is a name of PyTorch's, or ``auto`` (not for
    a probe). ``evaluate_every`` counts epochs; 0 never. Only a probe joins the maps of the last ``layers``
    blocks, and has a ``size``, that of ``Backbone.reading``.
    """

    save_dir: Path | None
    mode: Mode
    recipe: str
    backbone: str
    checkpoint: Path | None
    output: Path
    given: Mapping[str, float | None]
    weights: str | None = None
    masks: Path | None = None
    output_stride: int | None = None
    accumulate: int = 1
    workers: int = 0
    precision: str = "auto"
    evaluate_every: int = 0
    layers: int = 1
    size: Size = None

    @property
    def replaced(self) -> dict[str, Any]:
        """The values of ``given`` that are not None."""
        return {name: value for name, value in self.given.items() if value is not None}

    def about(self, backbone: Backbone) -> dict[str, Any]:
        """What ``predict.py`` has to know beside the weights."""
        return {
            "backbone": self.backbone,
            "output_stride": self.output_stride,
            "mode": self.mode.name,
            "classes": self.mode.classes,
            "recipe": self.recipe,
            "positions": backbone.positions,
        }


def fine_tune(request: FineTuneRequest, processes: Processes, show: Show = no_bar, log: Log = no_log) -> None:
    """Fine-tune as requested, or resume it; called in all processes.

    Writes ``last.pth``, ``log.jsonl``, ``curves.png`` and ``settings.json`` in ``request.output``. ``log``
    receives lines for the user, in the first process only.

    Raises InputError for what does not fit: the checkpoint, the masks, the settings of an earlier run in the
    same folder; for a loss that is not finite; in the other processes SystemExit.
    """
    if not processes.first:
        show, log = no_bar, no_log
    mode = request.mode
    values = processes.together(partial(chosen_values, request))
    network = processes.together(partial(build_network, request, values, log))
    pairs = processes.from_first(partial(list_pairs, request.save_dir, mode, request.recipe, request.masks))
    labels = processes.from_first(partial(masks_digest, pairs))
    validation = processes.together(
        partial(Validation.of, request.save_dir, mode, request.evaluate_every, show)
    )
    precision = training_precision(request.precision, processes.device)
    plan = processes.together(
        lambda: Plan(
            len(pairs), values.batch, values.epochs, values.seed, request.recipe == SEMI, request.accumulate,
            processes.rank, processes.number,
        )
    )  # fmt: skip
    # All that decides the weights, except for the number of processes and the machine.
    settings = {
        "recipe": request.recipe,
        "mode": mode.identity,
        "backbone": request.backbone,
        "output_stride": request.output_stride,
        "checkpoint": weights_digest(request.checkpoint, request.weights) if request.checkpoint else None,
        **{name: value for name, value in asdict(values).items() if name != "published"},
        "accumulate": request.accumulate,
        "precision": precision,
        "images": len(pairs),
        "names": digest(map(bytes, pairs.names)),
        "labels": labels,
    }
    log(f"settings ({'published' if values.published else 'ours'}, except for what was set):")
    log(settings_text(settings))
    log(
        f"{len(pairs)} images, {plan.steps} steps an epoch; {described(processes)}, "
        f"{values.batch // plan.shares_of_batch} images at a time in each"
    )
    on_device(network, processes.device).train()
    job = training_job(request, values, network, plan, validation, precision, processes)
    reader = Augmented(pairs, values.crop, values.smallest_crop, values.seed)
    with opened_run(request.output, settings, processes) as run:
        train(job, reader, plan, run, workers=request.workers, show=show, log=log)


def chosen_values(request: FineTuneRequest) -> Values:
    """Return the recipe's values, replaced by what was given; InputError for what the backbone cannot do."""
    backbone = make_backbone(request.backbone, output_stride=request.output_stride)
    values = values_of(
        request.recipe, request.backbone, kind_of(backbone), backbone.stride, request.mode.name
    )
    given = request.replaced
    if "batch" in given and "lr" not in given:
        given["lr"] = values.lr * given["batch"] / values.batch  # in proportion
    if "epochs" in given and values.warm_up:
        given["warm_up"] = values.warm_up * given["epochs"] / values.epochs
    if "lr" in given and request.recipe == PASS:
        given["final_lr"] = values.final_lr * given["lr"] / values.lr
    values = replace(values, **given)
    if values.layer_decay != 1 and kind_of(backbone) == "other":
        raise InputError(
            f"layer decay: the layers of {request.backbone} are not known; take 1, which is none"
        )
    if backbone.fixed_size and (values.crop, values.crop) != backbone.fixed_size:
        raise InputError(f"crop {values.crop}: {request.backbone} takes only {backbone.fixed_size[0]}")
    if values.crop % backbone.stride:
        raise InputError(f"crop {values.crop}: take a multiple of {backbone.stride}, the backbone's stride")
    return values


def build_network(request: FineTuneRequest, values: Values, log: Log) -> SegmentationNetwork:
    """Make the network with a fresh head, the checkpoint loaded into its backbone."""
    torch.manual_seed(values.seed)
    backbone = make_backbone(
        request.backbone, output_stride=request.output_stride, drop_path=values.drop_path
    )
    if request.checkpoint is None:
        log(f"{request.backbone}: starts from random weights, no checkpoint was given")
        return SegmentationNetwork(backbone, request.mode.classes, request.recipe)
    checkpoint = read_checkpoint(request.checkpoint, request.weights)
    log(load_checkpoint(backbone, checkpoint, own_grid=True))
    network = SegmentationNetwork(backbone, request.mode.classes, request.recipe)
    if network.kind == "vit":
        fresh = fresh_norm(network, checkpoint.tensors)
        log(f"the norm before the head {'starts anew' if fresh else 'is the fc_norm of the file'}")
    return network


def training_job(
    request: FineTuneRequest,
    values: Values,
    network: SegmentationNetwork,
    plan: Plan,
    validation: Validation,
    precision: str,
    processes: Processes,
) -> TrainingJob:
    """What the training loop needs, for a network that is on its device."""
    joined = join(network, processes, unused=network.kind == "other")
    normalised = Normalisation(network.backbone.mean, network.backbone.std, processes.device)
    optimiser: torch.optim.Optimizer
    if request.recipe == PASS:
        optimiser = Lars(network.parameters(), lr=values.lr, weight_decay=values.weight_decay)
    else:
        groups = layer_decay_groups(
            network, network.layer_of, network.layers, values.layer_decay, values.weight_decay
        )
        optimiser = torch.optim.AdamW(groups, lr=values.lr)

    def loss_of(batch: TrainingBatch, at: StepIndex) -> dict[str, torch.Tensor]:
        pictures, masks = batch.tensors
        logits = run_network(joined, normalised(pictures), precision=precision)
        return {"loss": _LOSSES[request.recipe](logits, masks, processes)}

    def rate(at: StepIndex) -> float:
        epoch = at.epoch + at.step / plan.steps
        return warm_up_and_cosine(epoch, values.epochs, values.warm_up, values.lr, values.final_lr)

    return TrainingJob(
        joined,
        optimiser,
        loss_of,
        rate,
        network.weights,
        partial(network.load_weights, path=request.output / "last.pth"),
        request.about(network.backbone),
        precision=precision,
        scores=partial(validation.scores, network, values.epochs, processes, request.workers, precision),
        scores_take_long=partial(validation.is_due, values.epochs),
    )
