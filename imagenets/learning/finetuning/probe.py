"""The linear probe: one linear layer behind a batch norm, trained on the maps of a frozen network.

Source: DINOv2 (Oquab et al., 2023) and DINOv3 (Siméoni et al., 2025), whose probes differ from this one as
docs/frozen_features.md, Linear probe, says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from imagenets.classes import IGNORE
from imagenets.common.errors import InputError
from imagenets.common.progress import Log, Show, no_bar, no_log
from imagenets.learning.engine.inference import ENGINE, Running
from imagenets.learning.engine.label_grid import enlarged_maps, grid_size
from imagenets.learning.finetuning.run import FineTuneRequest
from imagenets.learning.finetuning.stored_maps import MapReader, StoredMaps, store_maps
from imagenets.learning.images import Images, Reading, annotated_images, digest
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.precision import on_device
from imagenets.learning.networks.segmentation_network import PROBE, SegmentationNetwork
from imagenets.learning.processes import Processes, described, join
from imagenets.learning.run_folder import made_by
from imagenets.learning.training.loop import TrainingJob, train
from imagenets.learning.training.optimisers import warm_up_and_cosine
from imagenets.learning.training.order import Plan, StepIndex, TrainingBatch
from imagenets.learning.training.run_files import RunFolder, Settings, opened_run, settings_text

CODE = f"{ENGINE}, stored maps 1"  # raised by hand whenever stored maps change
_EPOCHS, _FEWEST_STEPS = 100, 5_000
_HELD_OUT = 10  # every tenth picture, in the order of their paths
_SCORE = "held_out_mIoU"


@dataclass(frozen=True)
class Values:
    """What a probe trains with; ``batch`` counts the pictures of one update.

    ``epochs`` 0: 100, or as many as make 5,000 updates. Of several ``rates`` the best on pictures held out
    is taken.
    """

    epochs: int = 0
    batch: int = 16
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    weight_decay: float = 1e-3
    dropout: float = 0.1
    warm_up: float = 0.05  # share of the epochs
    seed: int = 0


class ProbeHead(nn.Module):
    """Batch norm, dropout of whole channels, 1x1 convolution, on maps enlarged to the grid of stride 8.

    The maps are frozen and enlarging is linear: so a batch's means and variances are found from stored sums,
    norm and dropout scale the layer's weights, and logits are enlarged in place of features. That is the same
    up to rounding for a fraction of the work.
    """

    def __init__(self, channels: int, labels: int, stride: int, dropout: float, processes: Processes) -> None:
        """Start as published: weights of N(0, 0.01), biases 0."""
        super().__init__()
        self.stride, self.dropout, self.processes = stride, dropout, processes
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Conv2d(channels, labels, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: torch.Tensor, grids: torch.Tensor, moments: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits (1, N + 1, H, W) of each picture of a batch, on its grid of stride 8.

        ``rows`` (B, R, C) are the places of the maps, ``grids`` (B, 2) their sizes, ``moments`` (B, 2, C) the
        sums of their enlarged channels and of the squares.
        """
        sizes = [(int(height), int(width)) for height, width in grids.tolist()]
        mean, variance = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        kept = torch.ones(len(rows), rows.shape[2], device=rows.device)
        if self.training:
            mean, variance = self._batch_statistics(moments, sizes)
            kept = nn.functional.dropout(kept, self.dropout)
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        shift = self.norm.bias - mean * scale
        weight, bias = self.head.weight.flatten(1), self.head.bias
        found = []
        for of_one, of_channels, (height, width) in zip(rows, kept, sizes, strict=True):
            folded = weight * (scale * of_channels)
            logits = linear(of_one[: height * width].float(), folded, bias + weight @ (shift * of_channels))
            maps = logits.T.reshape(1, -1, height, width)
            found.append(enlarged_maps(maps, self.stride))
        return found

    @torch.no_grad()
    def _batch_statistics(
        self, moments: torch.Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance (C,) over the batch of all processes; running values follow, as PyTorch's do."""
        places = sum(math.prod(grid_size(size, self.stride)) for size in sizes)
        totals = self.processes.sum(torch.cat((moments.sum(0), moments.new_full((2, 1), places)), 1))
        count = totals[0, -1]
        mean, square = totals[:, :-1] / count
        variance = (square - mean.square()).clamp_min(0)
        buffers = dict(self.norm.named_buffers())
        momentum = 0.1  # PyTorch's
        buffers["running_mean"].lerp_(mean.float(), momentum)
        buffers["running_var"].lerp_((variance * count / (count - 1)).float(), momentum)
        buffers["num_batches_tracked"].add_(1)
        return mean.float(), variance.float()


def train_probe(
    request: FineTuneRequest, processes: Processes, show: Show = no_bar, log: Log = no_log
) -> None:
    """Train a probe as requested, or resume it; called in all processes.

    Writes ``last.pth``, a network for ``predict.py``, and in folders beside it the maps and the trainings.
    ``log`` receives lines for the user, in the first process only.

    Raises InputError for what does not fit: the checkpoint, images, masks, the settings of an earlier run in
    the same folder; for a loss that is not finite.
    """
    if not processes.first:
        show, log = no_bar, no_log
    backbone = processes.together(partial(_load, request, log))
    images = processes.together(partial(annotated_images, request.save_dir, request.mode))
    values = chosen_values(request.replaced, len(images.names))
    reading = backbone.reading(request.size)
    settings = _settings(request, values, images, reading)
    log(f"settings:\n{settings_text(settings)}")
    log(f"{len(images.names)} images; {described(processes)}")
    running = Running(processes, request.workers, precision=request.precision, show=show)
    with opened_run(request.output, settings, processes) as run:
        on_device(backbone, processes.device)
        stored = store_maps(
            backbone, images, reading, request.output, f"{settings['network']}, {settings['size']}", running
        )
        trainer = _Trainer(request, values, stored, images.names, run, show)
        head, records = trainer.train("probe", trainer.best_rate(log), np.arange(len(images.names)))
        network = SegmentationNetwork(backbone, request.mode.classes, PROBE)
        network.take_probe(head.norm, head.head)
        about = {**request.about(backbone), "layers": request.layers, "size": request.size}
        run.save({**about, "model": network.weights()}, records, last=True)


def _load(request: FineTuneRequest, log: Log) -> Backbone:
    torch.manual_seed(request.replaced.get("seed", Values.seed))
    backbone = make_backbone(request.backbone, output_stride=request.output_stride, layers=request.layers)
    if request.checkpoint is None:
        log(f"{request.backbone}: random weights, no checkpoint was given")
    else:
        log(load_backbone(backbone, request.checkpoint, request.weights))
    return backbone


def chosen_values(given: Mapping[str, Any], images: int) -> Values:
    """Values for so many images; ``given`` ones replace ours, and ``lr`` all rates."""
    rates = (given["lr"],) if "lr" in given else Values.rates
    values = Values(rates=rates, **{name: value for name, value in given.items() if name != "lr"})
    if values.epochs:
        return values
    steps = -(-images // values.batch)
    return replace(values, epochs=max(_EPOCHS, -(-_FEWEST_STEPS // steps)))


def _settings(request: FineTuneRequest, values: Values, images: Images, reading: Reading) -> Settings:
    """All that decides the weights, except for the number of processes and the machine."""
    network = (
        request.backbone,
        weights_digest(request.checkpoint, request.weights) if request.checkpoint else "random",
        f"output stride {request.output_stride or 'its own'}",
        f"{request.layers} layers",
        request.precision,
        made_by(CODE),
    )
    return {
        "recipe": PROBE,
        "mode": request.mode.identity,
        "network": ", ".join(network),
        "size": reading.size_text,
        **asdict(values),
        "rates": ", ".join(f"{rate:g}" for rate in values.rates),
        "accumulate": request.accumulate,
        "images": len(images.names),
        "names": digest(images.names),
    }


@dataclass(frozen=True)
class _Trainer:
    """Trains probes on stored maps, each in a folder of its own in the run's."""

    request: FineTuneRequest
    values: Values
    stored: StoredMaps
    names: Sequence[str]
    run: RunFolder
    show: Show

    def best_rate(self, log: Log) -> float:
        """Choose the rate whose probe is best on every tenth picture, trained on the others."""
        if len(self.values.rates) == 1:
            return self.values.rates[0]
        numbers = np.arange(len(self.names))
        held_out = numbers % _HELD_OUT == _HELD_OUT - 1
        if not held_out.any():
            raise InputError(f"{len(numbers)} pictures are too few to choose a learning rate; name one")
        scores = {}
        for rate in self.values.rates:
            _, records = self.train(f"rate-{rate:g}", rate, numbers[~held_out], numbers[held_out])
            scores[rate] = float(records[-1][_SCORE])
            log(f"rate {rate:g}: mIoU {scores[rate]:.2f} on {held_out.sum()} pictures held out")
        best = max(scores, key=lambda rate: scores[rate])
        log(f"rate {best:g} is taken, and the probe trained on all pictures")
        return best

    def train(
        self, name: str, rate: float, pictures: np.ndarray, held_out: np.ndarray | None = None
    ) -> tuple[ProbeHead, list[dict[str, Any]]]:
        """Train on some pictures, or resume; returns head and log, which has the score on those held out."""
        request, values, processes = self.request, self.values, self.run.processes
        plan = processes.together(
            lambda: Plan(
                len(pictures), values.batch, values.epochs, values.seed, True, request.accumulate,
                processes.rank, processes.number,
            )
        )  # fmt: skip
        torch.manual_seed(values.seed)
        labels = request.mode.classes + 1
        head = ProbeHead(self.stored.channels, labels, self.stored.stride, values.dropout, processes)
        head.to(processes.device)
        joined = join(head, processes)

        def loss_of(batch: TrainingBatch, at: StepIndex) -> dict[str, torch.Tensor]:
            rows, labels, grids, moments = batch.tensors
            return {"loss": probe_loss(joined(rows, grids, moments), labels, processes)}

        def score(epoch: int) -> dict[str, float]:
            if held_out is None or epoch < plan.epochs:
                return {}
            return {_SCORE: processes.from_first(lambda: held_out_score(head, reader, held_out))}

        def rate_at(at: StepIndex) -> float:
            epoch, warm_up = at.epoch + at.step / plan.steps, values.warm_up * plan.epochs
            return warm_up_and_cosine(epoch, plan.epochs, warm_up, rate, 0.0)

        optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=values.weight_decay)
        reader = MapReader(self.stored, self.names, pictures, values.seed)
        job = TrainingJob(
            joined, optimiser, loss_of, rate_at, head.state_dict,
            head.load_state_dict, {"recipe": PROBE}, scores=score,
        )  # fmt: skip
        settings = {**self.run.settings, "rate": rate, "pictures": len(pictures)}
        with opened_run(self.run.path / name, settings, processes) as run:
            records = train(job, reader, plan, run, workers=request.workers, show=self.show)
        return head, records


def probe_loss(logits: Sequence[torch.Tensor], labels: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Cross-entropy of each picture's logits (1, N + 1, H, W) with its labels, the first of (B, L).

    1000 is left out. The mean is over the labelled places in the batches of all processes together; this
    process's share of it, such that the mean over the processes is the mean over the places.
    """
    total = torch.zeros((), device=labels.device)
    for of_one, row in zip(logits, labels, strict=True):
        targets = row[: of_one[0, 0].numel()].reshape(1, *of_one.shape[2:]).long()
        total = total + cross_entropy(of_one, targets, ignore_index=IGNORE, reduction="sum")
    return total * processes.number / processes.sum((labels != IGNORE).sum()).clamp(min=1)


@torch.no_grad()
def held_out_score(head: ProbeHead, reader: MapReader, pictures: np.ndarray) -> float:
    """Mean IoU, in percent, on the grids of stride 8 of some pictures, over the labels that occur there."""
    head.eval()
    labels, device = head.head.out_channels, head.head.weight.device
    counts = torch.zeros(labels * labels, dtype=torch.int64)
    for picture in pictures.tolist():
        rows, of_places, grid, moments = (tensor[None].to(device) for tensor in reader.view(picture, 0))
        (logits,) = head(rows, grid, moments)
        found = logits.argmax(1).flatten()
        truth = of_places.flatten()[: len(found)].long()
        counted = truth != IGNORE
        keys = truth[counted] * labels + found[counted]
        counts += keys.bincount(minlength=labels * labels).cpu()
    head.train()
    table = counts.reshape(labels, labels).double()
    hits, truth_pixels = table.diag(), table.sum(1)
    ious = (hits / (truth_pixels + table.sum(0) - hits))[truth_pixels > 0]
    return 100 * float(ious.mean()) if len(ious) else 0.0
