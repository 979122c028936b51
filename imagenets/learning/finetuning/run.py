"""One fine-tuning run, from the network and the pairs to ``last.pth``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from imagenets.classes import Mode
from imagenets.common.errors import InputError
from imagenets.common.progress import Log, Show, no_bar, no_log
from imagenets.learning.finetuning.losses import annotated_loss, label_map_loss, object_loss
from imagenets.learning.finetuning.pairs import Augmented, image_names, list_pairs, masks_digest
from imagenets.learning.finetuning.prediction import Validation
from imagenets.learning.finetuning.recipes import Values, values_of
from imagenets.learning.images import digest
from imagenets.learning.networks.backbones import make_backbone
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
from imagenets.learning.training.run_files import Settings, opened_run, settings_text

_LOSSES = {SEMI: annotated_loss, PASS: label_map_loss, SELF: object_loss}


@dataclass(frozen=True)
class FineTuneRequest:
    """What the user asks for; ``given`` are values of the recipe that are replaced, by their names.

    ``checkpoint`` None starts at random; ``weights`` is the copy in it, where it has several. ``masks`` are
    the label maps of the recipes of ON_CLUSTERS. ``precision`` is a name of PyTorch's, or ``auto``.
    ``evaluate_every`` counts epochs; 0 never.
    """

    save_dir: Path | None
    mode: Mode
    recipe: str
    backbone: str
    checkpoint: Path | None
    output: Path
    given: Mapping[str, float]
    weights: str | None = None
    masks: Path | None = None
    output_stride: int | None = None
    accumulate: int = 1
    workers: int = 0
    precision: str = "auto"
    evaluate_every: int = 0


def fine_tune(request: FineTuneRequest, processes: Processes, show: Show = no_bar, log: Log = no_log) -> None:
    """Fine-tune as requested, or resume it; called in all processes.

    Writes ``last.pth``, ``log.jsonl``, ``curves.png`` and ``settings.json`` in ``request.output``. ``log``
    receives lines for the user, in the first process only.

    Raises InputError for what does not fit: the checkpoint, the masks, the settings of an earlier run in the
    same folder; for a loss that is not finite; in the other processes SystemExit.
    """
    if not processes.first:
        show, log = no_bar, no_log
    run = _Run(request, processes, show, log)
    log(f"settings ({'published' if run.values.published else 'ours'}, except for what was set):")
    settings = run.settings()
    log(settings_text(settings))
    log(
        f"{len(run.pairs)} images, {run.plan.steps} steps an epoch; {described(processes)}, "
        f"{run.values.batch // run.plan.shares_of_batch} images at a time in each"
    )
    with opened_run(request.output, settings, processes) as folder:
        reader = Augmented(run.pairs, run.values.crop, run.values.smallest_crop, run.values.seed)
        train(run.job(), reader, run.plan, folder, workers=request.workers, show=show, log=log)


def chosen_values(request: FineTuneRequest) -> Values:
    """Return the recipe's values, replaced by what was given; InputError for what the backbone cannot do."""
    backbone = make_backbone(request.backbone, output_stride=request.output_stride)
    values = values_of(
        request.recipe, request.backbone, kind_of(backbone), backbone.stride, request.mode.name
    )
    given = {name: value for name, value in request.given.items() if value is not None}
    if "batch" in given and "lr" not in given:
        given["lr"] = values.lr * given["batch"] / values.batch  # in proportion
    if "epochs" in given and values.warm_up:
        given["warm_up"] = values.warm_up * given["epochs"] / values.epochs
    if "lr" in given and request.recipe == PASS:
        given["final_lr"] = values.final_lr * given["lr"] / values.lr
    values = replace(values, **given)  # type: ignore[arg-type]
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


class _Run:
    """A request that was read and checked: values, images, plan, and the network on its device."""

    def __init__(self, request: FineTuneRequest, processes: Processes, show: Show, log: Log) -> None:
        self.request, self.processes = request, processes
        self.values = values = processes.together(partial(chosen_values, request))
        self.network = processes.together(partial(build_network, request, values, log))
        self.pairs = pairs = processes.from_first(
            partial(list_pairs, request.save_dir, request.mode, request.recipe, request.masks)
        )
        self.labels = processes.from_first(partial(masks_digest, pairs))
        self.validation = processes.together(
            partial(Validation.of, request.save_dir, request.mode, request.evaluate_every, show)
        )
        self.precision = training_precision(request.precision, processes.device)
        self.plan = processes.together(
            lambda: Plan(
                len(pairs),
                values.batch,
                values.epochs,
                values.seed,
                keep_last=request.recipe == SEMI,
                accumulate=request.accumulate,
                rank=processes.rank,
                processes=processes.number,
            )
        )
        on_device(self.network, processes.device).train()
        self.joined = join(self.network, processes, unused=self.network.kind == "other")
        backbone = self.network.backbone
        self.normalised = Normalisation(backbone.mean, backbone.std, processes.device)

    def settings(self) -> Settings:
        """All that decides the weights, except for the number of processes and the machine."""
        request = self.request
        return {
            "recipe": request.recipe,
            "mode": request.mode.identity,
            "backbone": request.backbone,
            "output_stride": request.output_stride,
            "checkpoint": weights_digest(request.checkpoint, request.weights) if request.checkpoint else None,
            **{name: value for name, value in asdict(self.values).items() if name != "published"},
            "accumulate": request.accumulate,
            "precision": self.precision,
            "images": len(self.pairs),
            "names": digest(image_names(self.pairs)),
            "labels": self.labels,
        }

    def job(self) -> TrainingJob:
        """What the training loop needs."""
        request, network, epochs = self.request, self.network, self.values.epochs
        about = {
            "backbone": request.backbone,
            "output_stride": request.output_stride,
            "mode": request.mode.name,
            "classes": request.mode.classes,
            "recipe": request.recipe,
            "positions": network.backbone.positions,
        }
        score = partial(
            self.validation.scores, network, epochs, self.processes, request.workers, self.precision
        )
        return TrainingJob(
            self.joined,
            self.optimiser(),
            self.loss_of,
            self.rate,
            network.weights,
            partial(network.load_weights, path=request.output / "last.pth"),
            about,
            precision=self.precision,
            scores=score,
            scores_take_long=partial(self.validation.is_due, epochs),
        )

    def optimiser(self) -> torch.optim.Optimizer:
        network, values = self.network, self.values
        if self.request.recipe == PASS:
            return Lars(network.parameters(), lr=values.lr, weight_decay=values.weight_decay)
        groups = layer_decay_groups(
            network, network.layer_of, network.layers, values.layer_decay, values.weight_decay
        )
        return torch.optim.AdamW(groups, lr=values.lr)

    def loss_of(self, batch: TrainingBatch, at: StepIndex) -> dict[str, torch.Tensor]:
        pictures, masks = batch.tensors
        logits = run_network(self.joined, self.normalised(pictures), precision=self.precision)
        return {"loss": _LOSSES[self.request.recipe](logits, masks, self.processes)}

    def rate(self, at: StepIndex) -> float:
        values, epoch = self.values, at.epoch + at.step / self.plan.steps
        return warm_up_and_cosine(epoch, values.epochs, values.warm_up, values.lr, values.final_lr)
