"""What the scripts share that run a network over images: its arguments, and how it uses the machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from command_line.arguments import (
    add_mode_argument,
    add_save_dir_argument,
    check_save_dir,
    parse,
    path_argument,
    whole_number,
)
from command_line.progress import bar, warn
from imagenets.common.errors import InputError
from imagenets.common.progress import no_bar
from imagenets.common.workers import default_workers

if TYPE_CHECKING:  # PyTorch takes seconds to load
    from imagenets.learning.engine.inference import Running
    from imagenets.learning.engine.segmentation import Method
    from imagenets.learning.images import Images
    from imagenets.learning.processes import Processes

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
SPLITS = ("validation", "test")


def add_source(parser: argparse.ArgumentParser, splits: Sequence[str] = SPLITS) -> None:
    """Add where images come from: a prepared set with its mode and ``splits``, or any folder."""
    source = parser.add_mutually_exclusive_group()
    add_save_dir_argument(source)
    source.add_argument(
        "--images",
        type=path_argument,
        metavar="DIR",
        help="instead of a prepared set: a folder of any images, searched with all its subfolders",
    )
    add_mode_argument(parser, "the prepared set, or with --images only the classes", required=False)
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=splits,
        help="splits to segment (default: validation and test, if they exist)",
    )


def add_weights(parser: argparse._ActionsContainer) -> None:
    """Add which weights of a checkpoint are meant, where it has several copies of the network."""
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="if a checkpoint holds several copies of the weights, the one with NAME in its tensors' names "
        "(default: EMA, teacher or target encoder; the choice is printed)",
    )


def check_source(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with wrong usage where source, mode and splits do not go together."""
    if arguments.images is not None:
        if arguments.splits:
            parser.error("--splits are those of a prepared set")
        return
    if arguments.mode is None:
        parser.error("name a set by --mode (and --save-dir), or pictures by --images")
    check_save_dir(parser, arguments)


def add_sharpen(parser: argparse.ArgumentParser) -> None:
    """Add --sharpen."""
    parser.add_argument(
        "--sharpen",
        action="store_true",
        help="make outlines follow the edges of the image (joint bilateral upsampling); not part of the "
        "published protocols",
    )


def _add_machine(
    parser: argparse._ActionsContainer, does: str, auto: str, workers: str, most: int | None
) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"where the network {does} (default: auto, CUDA if available)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help=f"precision of the network; everything else is float32 (default: auto, {auto})",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0, 1024),
        metavar="N",
        default=default_workers(most),
        help=f"processes that read images, {workers}",
    )


def precision_of(arguments: argparse.Namespace) -> str:
    """Precision of a network that is run, not trained: auto is float32."""
    precision: str = arguments.precision
    return "float32" if precision == "auto" else precision


def add_running(parser: argparse.ArgumentParser, batch_size: int = 16) -> None:
    """Add how a network is run; results do not depend on it except for rounding."""
    workers = (
        "and as many that write (default: one per core, divided among torchrun's processes; 0: none, this "
        "process does it)"
    )
    _add_machine(parser, "runs", "which is float32", workers, None)
    parser.add_argument(
        "--batch-size",
        type=whole_number(1, 100_000),
        metavar="B",
        default=batch_size,
        help=f"images per batch (default: {batch_size}); lower it if memory runs out",
    )


def add_machine(parser: argparse._ActionsContainer) -> None:
    """Add how a training uses the machine: device, precision and workers."""
    auto = "bfloat16 on GPUs that support it, float16 on others, float32 on CPUs"
    workers = "per process of torchrun (default: one per core of its share, at most 8)"
    _add_machine(parser, "is trained", auto, workers, 8)


def add_size(parser: argparse._ActionsContainer) -> None:
    """Add the size at which a network sees the images."""
    parser.add_argument(
        "--size",
        type=lambda text: text if text == "native" else whole_number(32, 4096)(text),
        metavar="N",
        help="shorter side of the network's input in pixels, or native for the network's own; both sides are "
        "then rounded to whole patches (default: 256, not rounded)",
    )


def chosen_splits(root: Path, splits: Sequence[str] | None) -> list[str]:
    """Return the splits that were asked for, or else those that exist."""
    chosen = list(splits or [split for split in SPLITS if (root / split).is_dir()])
    if not chosen:
        raise InputError(f"{root}: neither validation nor test there")
    return chosen


def listed_images(arguments: argparse.Namespace) -> dict[str, Images]:
    """Images to segment, by the folder of OUTPUT that their label maps go to."""
    from imagenets.learning.images import images_below, split_images

    if arguments.images is not None:
        return {"images": images_below(arguments.images, arguments.output_dir, warn)}
    mode = arguments.mode
    splits = chosen_splits(mode.set_folder(arguments.save_dir), arguments.splits)
    return {split: split_images(arguments.save_dir, mode, split) for split in splits}


def validation_images(arguments: argparse.Namespace) -> Images:
    """List validation, whose masks the choice of a threshold needs. Raises InputError where it has none."""
    from imagenets.learning.images import split_images, where_masks_come_from

    images = split_images(arguments.save_dir, arguments.mode, "validation")
    if images.masks is None:
        raise InputError(
            f"{images.folder}: has no masks beside it, which --threshold auto needs; "
            f"{where_masks_come_from(arguments.save_dir, arguments.mode)}; or set a threshold"
        )
    return images


def running_of(arguments: argparse.Namespace, processes: Processes) -> Running:
    """How the command line wants a network to be run."""
    from imagenets.learning.engine.inference import Running

    return Running(
        processes,
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        precision=precision_of(arguments),
        show=bar if processes.first else no_bar,
    )


def method_arguments(description: str) -> argparse.Namespace:
    """Parse the command line of a method that takes images, and nothing of its own."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add_source(parser)
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="output folder of this run alone"
    )
    add_running(parser)
    parser.add_argument("--overlays", action="store_true", help="also draw the labels over the images")
    arguments = parse(parser)
    check_source(parser, arguments)
    return arguments


def run_method(arguments: argparse.Namespace, prepare: Callable[[argparse.Namespace], Method]) -> None:
    """Segment images on all processes of torchrun with the method that ``prepare`` reads and checks."""
    from imagenets.learning.engine.segmentation import segment
    from imagenets.learning.processes import started

    with started(arguments.device) as processes:
        method = processes.together(lambda: prepare(arguments))
        if processes.first and method.loaded:
            print("\n".join(method.loaded))
        overlays = getattr(arguments, "overlays", False)
        segment(method, arguments.output_dir, running_of(arguments, processes), print, overlays)
