"""Files of PASS's steps, ours and the published ones: backbone, image head, prototypes and attention."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.checkpoint_files import read_checkpoint
from imagenets.learning.networks.checkpoints import load_checkpoint
from imagenets.learning.pass_method.attention import AttentionNetwork, PixelAttention
from imagenets.learning.pass_method.heads import HeadSizes

Tensors = dict[str, torch.Tensor]


def attention_network(
    backbone_name: str, checkpoint: Path, branch: str | None = None
) -> tuple[AttentionNetwork, list[str]]:
    """Put a new attention on a pre-trained network, and return the lines that say what was loaded.

    Widths of head and prototypes are the file's; ``branch`` is the copy to take where it has several.
    Raises InputError, naming the file, when it is no file of PASS's pre-training (``pass*_pretrained``, or
    ``last.pth`` of pretrain.py), OSError when there is none.
    """
    backbone, tensors, line = _backbone(backbone_name, checkpoint, branch)
    head, prototypes = part_of(tensors, "projection_head."), part_of(tensors, "prototypes.")
    if "0.weight" not in head or "weight" not in prototypes:
        raise InputError(
            f"{checkpoint}: has no projection_head and prototypes, so it is no file of PASS's pre-training; "
            "make one with pretrain.py, or take the published pass*_pretrained.pth.tar"
        )
    sizes = HeadSizes(hidden=len(head["0.weight"]), prototypes=len(prototypes["weight"]))
    network = AttentionNetwork(backbone, sizes)
    load_part(network.projection_head, head, "projection_head", checkpoint)
    load_part(network.prototypes, prototypes, "prototypes", checkpoint)
    heads = f"image head of width {sizes.hidden} and {sizes.prototypes} prototypes"
    return network, [line, f"{heads} loaded from {checkpoint.name}"]


def attended_backbone(
    backbone_name: str, checkpoint: Path, branch: str | None = None
) -> tuple[Backbone, PixelAttention, list[str]]:
    """Load backbone and attention, in evaluation mode, and return the lines that say what was loaded.

    Raises InputError, naming the file, when it has no attention (``pass*_pixelatt``, or ``last.pth`` of
    pixel_attention.py, has one), OSError when it cannot be read.
    """
    backbone, tensors, line = _backbone(backbone_name, checkpoint, branch)
    part = part_of(tensors, "fbg.")
    if not part:
        raise InputError(
            f"{checkpoint}: has no attention (fbg.*); make one with pixel_attention.py, or take the "
            "published pass*_pixelatt.pth.tar"
        )
    attention = PixelAttention(backbone.channels)
    load_part(attention, part, "fbg", checkpoint)
    return backbone.eval(), attention.eval(), [line, f"attention loaded from {checkpoint.name}"]


def _backbone(name: str, checkpoint: Path, branch: str | None) -> tuple[Backbone, Tensors, str]:
    """Load a backbone; the file's tensors, and the line that says what was loaded."""
    file = read_checkpoint(checkpoint, branch)
    backbone = make_backbone(name)
    return backbone, file.tensors, load_checkpoint(backbone, file)


def part_of(tensors: Tensors, part: str) -> Tensors:
    """Select the tensors whose full names have ``part`` (with its dot) as a step: what stands behind it."""
    return {
        name.rpartition(f".{part}")[2].removeprefix(part): tensor
        for name, tensor in tensors.items()
        if f".{part}" in f".{name}"
    }


def load_part(module: nn.Module, tensors: Tensors, part: str, checkpoint: Path) -> None:
    """Load a module's tensors, all of them; InputError names the file and the first that do not fit."""
    wanted = module.state_dict()
    faults = [
        f"{part}.{name} is {'missing' if name not in tensors else f'{tuple(tensors[name].shape)}'}, "
        f"wanted {tuple(like.shape)}"
        for name, like in wanted.items()
        if not name.endswith("num_batches_tracked")
        and (name not in tensors or tensors[name].shape != like.shape)
    ]
    if faults:
        raise InputError(f"{checkpoint}: {len(faults)} tensors of PASS do not fit ({faults[0]})")
    module.load_state_dict({name: tensors.get(name, like) for name, like in wanted.items()})
