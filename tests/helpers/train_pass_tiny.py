"""PASS's two trainings on pictures of a few pixels: FOLDER IMAGES CHECKPOINT, also under torchrun."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from command_line.startup import run
from imagenets.common.progress import no_bar
from imagenets.learning.pass_method import runs
from imagenets.learning.pass_method.crops import CropSettings
from imagenets.learning.pass_method.recipes import SMALL_ATTENTION, SMALL_PRETRAINING
from imagenets.learning.pass_method.runs import PassRequest, pretrain, train_attention
from imagenets.learning.processes import started
from imagenets.learning.training.augmentation import PUBLISHED_COLOURS

BACKBONE = "timm/test_resnet"
# Three steps an epoch of 26 pictures; queue and prototypes are at work from the second epoch on.
PRETRAINING = replace(
    SMALL_PRETRAINING,
    backbone=BACKBONE,
    epochs=2,
    batch=8,
    large=CropSettings(2, 32, (0.14, 1)),
    small=CropSettings(2, 32, (0.05, 0.14)),
    hidden=32,
    prototypes=12,
    queue=16,
    queue_from=0,
    frozen_steps=3,
    lr=0.6,
    colours=PUBLISHED_COLOURS,
)
ATTENTION = replace(SMALL_ATTENTION, epochs=2, batch=8, large=PRETRAINING.large, queue=8, lr=6.0)


def request(images, output):
    names = sorted(f"{path.parent.name}/{path.name}" for path in images.glob("*/*.JPEG"))
    return PassRequest("50", "small", images, names, output, workers=0, precision="float32")


def without_batch_norms(patch):
    """Have both trainings' networks use group norms: several processes on CPUs normalise their own images."""
    made, loaded = runs.PassNetwork, runs.attention_network

    def replaced(network):
        for parent in list(network.modules()):
            for name, part in list(parent.named_children()):
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    setattr(parent, name, nn.GroupNorm(1, part.num_features))
        return network

    def attention_network(*arguments):
        network, lines = loaded(*arguments)
        return replaced(network), lines

    patch(runs, "PassNetwork", lambda *arguments: replaced(made(*arguments)))
    patch(runs, "attention_network", attention_network)


def both(folder, images, processes, show=no_bar, log=print, checkpoint=None):
    pretrain(request(images, folder / "pretraining"), PRETRAINING, processes, show, log)
    checkpoint = checkpoint or folder / "pretraining/last.pth"
    asked = request(images, folder / "attention")
    train_attention(asked, ATTENTION, BACKBONE, checkpoint, processes, show, log)


def child(argv, environment):
    """A process of its own, with torchrun's variables, that prints nothing."""
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["train_pass_tiny.py", *map(str, argv)]
    run(main, on_all_ranks=True)


def main():
    torch.set_num_threads(1)
    without_batch_norms(setattr)
    with started("cpu") as processes:
        folder, images, checkpoint = map(Path, sys.argv[1:])
        both(folder, images, processes, checkpoint=checkpoint)
