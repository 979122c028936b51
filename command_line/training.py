"""What the scripts that train a network share: how the run uses the machine."""

from __future__ import annotations

import argparse

from command_line.arguments import whole_number
from command_line.networks import add_device, add_precision
from imagenets.common.workers import default_workers


def add_machine(parser: argparse._ActionsContainer) -> None:
    """Add device, precision and workers."""
    add_device(parser, "learns")
    add_precision(parser, "on CUDA bfloat16 where the card has it, else float16; float32 on CPUs")
    parser.add_argument(
        "--workers",
        type=whole_number(0, 1024),
        default=default_workers(most=8),
        metavar="N",
        help="processes that read images, for each of torchrun's processes (default: its share of this "
        "machine's cores, at most 8)",
    )
