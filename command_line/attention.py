"""What PASS's scripts share that use the attention it has learnt: arguments, and the network they name."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from command_line.arguments import add_mode_argument, add_save_dir_argument, path_argument
from command_line.networks import add_weights
from imagenets.learning.networks.backbones import Backbone
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.learning.networks.precision import on_device
from imagenets.learning.pass_method.attention import PixelAttention
from imagenets.learning.pass_method.published_files import attended_backbone
from imagenets.learning.pass_method.recipes import pretraining_recipe


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Add the prepared set, and the checkpoint of the attention."""
    add_save_dir_argument(parser)
    add_mode_argument(parser, "the prepared set")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="last.pth of pixel_attention.py, or the published pass*_pixelatt.pth.tar",
    )
    add_weights(parser)
    parser.add_argument(
        "--backbone", metavar="NAME", help="the checkpoint's ResNet (default: that of the mode's recipe)"
    )


@dataclass(frozen=True)
class AttendedNetwork:
    """A backbone with its attention; ``loaded`` says what came from the checkpoint."""

    backbone: Backbone
    attention: PixelAttention
    loaded: list[str]
    settings: dict[str, object]  # those that affect the result

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> AttendedNetwork:
        """Read what the command line names. Raises InputError."""
        name = arguments.backbone or pretraining_recipe("pass", arguments.mode.name).backbone
        backbone, attention, loaded = attended_backbone(name, arguments.checkpoint, arguments.weights)
        digest = weights_digest(arguments.checkpoint, arguments.weights)
        settings = {"mode": arguments.mode.identity, "backbone": name, "checkpoint": digest}
        return cls(backbone, attention, loaded, settings)

    def to(self, device: torch.device) -> None:
        """Move it to a device."""
        on_device(self.backbone, device)
        on_device(self.attention, device)
