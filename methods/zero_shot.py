#!/usr/bin/env python3
"""Segment with CLIP or SigLIP by the names of the classes, without training (protocol: free).

Writes OUTPUT/<split>/<wnid>/<name>.png, predictions in class ids for evaluator.py; no matching is needed.
The same command resumes a stopped run. Under torchrun every process takes a share. See docs/zero_shot.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument, threshold_argument, whole_number
from command_line.networks import (
    add_running,
    add_source,
    check_source,
    listed_images,
    precision_of,
    run_method,
    validation_images,
)
from command_line.progress import bar, warn
from imagenets.class_ids import mode_table
from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import LabelStep, Running, load_arrays
from imagenets.learning.engine.segmentation import Method
from imagenets.learning.engine.threshold_sweep import CHART, PARTS, SCORES, Sweep, best_threshold
from imagenets.learning.images import Images, Reading, digest
from imagenets.learning.networks.precision import on_device
from imagenets.learning.processes import Processes
from imagenets.learning.run_folder import Record, made_by
from imagenets.learning.zero_shot.dense_features import LAST_BLOCKS
from imagenets.learning.zero_shot.labels import CODE, Namer, label_step, sweep, sweep_step
from imagenets.learning.zero_shot.text_embeddings import (
    NAME_SOURCES,
    TEMPLATE_COUNTS,
    class_names,
    embed_names,
    embeddings_file,
    load_embeddings,
    save_embeddings,
    tied_names,
)
from imagenets.learning.zero_shot.vision_language import SIGLIP_DENSE, VisionLanguage, load_vision_language
from imagenets.lists import cache_folder

SIZE = 336  # pixels, as SCLIP and NACLIP evaluate


def names_argument(text: str) -> str | Path:
    """Argument type: the name of a list, or the path of one."""
    return text if text in NAME_SOURCES else path_argument(text)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_source(parser)
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="output folder of this run alone"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a model of open_clip, by name; not needed if --checkpoint is a folder",
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="weights: a file of open_clip or OpenAI, or a folder with open_clip_config.json",
    )
    parser.add_argument(
        "--dense",
        choices=[*LAST_BLOCKS, SIGLIP_DENSE],
        help=f"how the last block treats the patches (default: naclip; for SigLIP {SIGLIP_DENSE})",
    )
    parser.add_argument(
        "--threshold",
        type=threshold_argument,
        metavar="T",
        default=None,
        help="pixels whose most probable class has a probability (0..1) below T are background (default: "
        "auto, the best on validation, using its masks)",
    )
    parser.add_argument(
        "--names",
        type=names_argument,
        metavar="LIST",
        help="class names: openai, toolbox, or a text file, one per line in the order of class ids (default: "
        "openai; with your own class list, its names)",
    )
    parser.add_argument(
        "--templates",
        type=int,
        choices=TEMPLATE_COUNTS,
        default=80,
        help="number of prompt templates: 1, OpenAI's 80, or 85, which adds 5 for scenes (default: 80)",
    )
    parser.add_argument(
        "--size",
        type=whole_number(32, 4096),
        default=SIZE,
        metavar="N",
        help=f"shorter side of the network's input in pixels; both sides are then rounded to whole "
        f"patches (default: {SIZE})",
    )
    add_running(parser, batch_size=8)
    parser.add_argument("--overlays", action="store_true", help="also draw the labels over the images")
    arguments = parse(parser)
    check_source(parser, arguments)
    if arguments.mode is None:
        parser.error("--mode says which classes are looked for: 50, 300, 919 or the path of a class list")
    if arguments.images is not None and arguments.threshold is None:
        parser.error("--images needs --threshold: only validation has masks to choose one with")
    return arguments


@dataclass(frozen=True)
class Job:
    """All that the command line names, read and checked."""

    arguments: argparse.Namespace
    model: VisionLanguage
    dense: str
    names: list[str]

    @property
    def reading(self) -> Reading:
        """How images become pictures."""
        return Reading(self.model.mean, self.model.std, side=self.arguments.size, multiple=self.model.patch)


def prepare(arguments: argparse.Namespace) -> Method:
    """Read and check all that the command line names."""
    images = listed_images(arguments)
    source = arguments.names or ("openai" if arguments.mode.own is None else "toolbox")
    names = class_names(source, mode_table(arguments.mode))
    model = load_vision_language(arguments.model, arguments.checkpoint)
    dense = arguments.dense or (SIGLIP_DENSE if model.is_siglip else "naclip")
    if (dense == SIGLIP_DENSE) != model.is_siglip:
        kind = "a SigLIP tower" if model.is_siglip else "CLIP's ViT"
        raise InputError(f"{model.name} is {kind}, for which --dense {dense} is not defined")
    settings = {
        "model": model.name,
        "checkpoint": model.digest,
        "dense": dense,
        "threshold": "auto" if arguments.threshold is None else arguments.threshold,
        "names": digest(names),
        "templates": arguments.templates,
        "size": arguments.size,
        "mode": arguments.mode.identity,
        "precision": precision_of(arguments),
        "code": made_by(CODE),
    }
    job = Job(arguments, model, dense, names)
    return Method(
        partial(namer_step, job),
        images,
        job.reading,
        settings,
        "zero_shot.json",
        loaded=model.lines,
        owned=(SCORES, CHART, PARTS),
        names=["background", *names],
    )


def text_embeddings(job: Job, processes: Processes) -> Path:
    """Make the class names' embeddings where they are not kept yet; called in the first process."""
    path = embeddings_file(cache_folder(), job.names, job.arguments.templates, job.model.digest)
    if not path.exists():
        embedded = embed_names(
            job.model.model, job.model.tokenizer, job.names, job.arguments.templates, processes.device, bar
        )
        save_embeddings(path, embedded)
    for group in tied_names(job.names, job.model.tokenizer):
        warn(f"{', '.join(group)}: one text to the model, so the first of them always wins; see --names")
    return path


def chosen_threshold(job: Job, namer: Namer, running: Running, record: Record) -> float:
    """Return the threshold of the command line, or the best on validation; called on all processes."""
    arguments = job.arguments
    if arguments.threshold is not None:
        return float(arguments.threshold)

    def score(images: Images, files: list[Path]) -> Sweep:
        return sweep(load_arrays(files, "truth"), load_arrays(files, "predicted"), arguments.mode.classes)

    best = best_threshold(
        arguments.output_dir,
        record.identity(),
        partial(validation_images, arguments),
        sweep_step(namer),
        score,
        "the largest class probability",
        job.reading,
        running,
    )
    if running.processes.first:
        path = arguments.output_dir / SCORES
        print(f"threshold {best:g}: the best on validation, whose masks were used to choose it; {path}")
    return best


def namer_step(job: Job, running: Running, record: Record) -> LabelStep:
    """Embed the names, and choose the threshold; called on all processes."""
    processes = running.processes
    on_device(job.model.model, processes.device)
    path = processes.from_first(partial(text_embeddings, job, processes))
    text = processes.together(partial(load_embeddings, path)).to(processes.device)
    namer = Namer(job.model, text, job.dense)
    return label_step(namer, chosen_threshold(job, namer, running, record))


def main() -> None:
    """Parse, and segment on all processes of torchrun."""
    run_method(parse_arguments(), prepare)


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
