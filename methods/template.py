#!/usr/bin/env python3
"""A method of your own: copy this file, and write your network and label maps into its two functions.

Writes OUTPUT/<split>/<wnid>/<name>.png for match.py and evaluator.py; docs/own_method.md walks through it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.networks import listed_images, method_arguments, precision_of, run_method

# isort: split
import torch
from torch import nn

from imagenets.learning.engine.segmentation import Batch, Method, Reading, network_method

VERSION = 1  # raise it when label_maps changes, so that a folder does not mix both
READING = Reading(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), side=224)


def make_network() -> nn.Module:
    """Make the network and load its weights: any module from pictures (B, 3, H, W) to tensors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.Conv2d(16, 51, 1))


def label_maps(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Label maps (B, h, w) of a batch, integers: 0 is background; of any size, they are enlarged."""
    return batch.through(network).argmax(1)


def prepare(arguments: argparse.Namespace) -> Method:
    """Say what is segmented by which network; the settings keep results of other settings apart."""
    settings = {"version": VERSION, "precision": precision_of(arguments)}
    return network_method("template", make_network(), label_maps, listed_images(arguments), READING, settings)


def main() -> None:
    """Parse, and segment on all processes of torchrun."""
    run_method(method_arguments(__doc__ or ""), prepare)


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
