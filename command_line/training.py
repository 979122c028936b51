"""What the scripts that train a network share: how the run uses the machine."""

from __future__ import annotations

import argparse

from command_line.arguments import whole_number
from command_line.networks import add_device
from imagenets.common.workers import available_cores


def add_machine(parser: argparse._ActionsContainer) -> None:
    """Add device, precision and workers."""
    add_device(parser, "learns")
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="mixed precision (default: on CUDA, and only there)",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0, 1024),
        default=min(8, available_cores()),
        metavar="N",
        help="processes that read images, in each of torchrun's processes (default: one per core, at most 8)",
    )
