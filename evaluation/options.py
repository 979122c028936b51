"""What the evaluation scripts share: arguments, and the way from them to a contingency table."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from imagenets.classes import MAX_LABEL, MODES, ClassInfo, class_table
from imagenets.contingency import Chunk, ContingencyTable, CountPairs, check_labels, count_pairs, refuse
from imagenets.errors import InputError
from imagenets.lists import categories_at_hand
from imagenets.pairs import find_pairs, read_names, wnid_folders
from imagenets.table_cache import cached_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which masks are read, and how."""
    parser.add_argument(
        "--predict-dir", type=Path, required=True, help="predictions, <predict-dir>/<wnid>/<name>.png"
    )
    parser.add_argument("--gt-dir", type=Path, required=True, help="ground truth, <gt-dir>/<wnid>/<name>.png")
    parser.add_argument("--mode", choices=MODES, required=True, help="number of classes")
    parser.add_argument(
        "--clusters",
        type=_cluster_count,
        metavar="K",
        help="the predictions hold cluster ids 1..K (default: as many as the mode has classes)",
    )
    parser.add_argument("--names", type=Path, metavar="FILE", help="only these: one <wnid>/<name>.png a line")
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=default_workers(),
        help="processes that decode (default: one per core; 0: no extra process); under torchrun, for each "
        "of its processes (default: together one per core)",
    )
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=Path("results"),
        help="matchings, and the cache of counted masks (default: results)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="count all masks again; leave no cache behind"
    )


def default_workers() -> int:
    """Cores for this process: its share, where torchrun started several on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cluster_count(text: str) -> int:
    return _whole_number(text, 1, MAX_LABEL)


def worker_count(text: str) -> int:
    """Read a number of worker processes; argparse's error for anything else."""
    return _whole_number(text, 0, 1024)


def _whole_number(text: str, lowest: int, highest: int) -> int:
    if not text.isascii() or not text.isdecimal() or not lowest <= int(text) <= highest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in {lowest}..{highest}")
    return int(text)


def read_table(
    arguments: argparse.Namespace, clusters: int, hint: str, count: CountPairs = count_pairs
) -> ContingencyTable:
    """Count the masks that the arguments name, or take the counts from the cache; InputError if any is bad.

    ``clusters`` is the largest label that a prediction may have, ``hint`` what to do where one is larger,
    ``count`` what counts.
    """
    names = None if arguments.names is None else read_names(arguments.names)
    pairs = find_pairs(arguments.gt_dir, arguments.predict_dir, names)
    mode = MODES[arguments.mode]
    if names is None and len(pairs.names) != mode.validation:
        warn(
            f"{arguments.gt_dir}: {len(pairs.names)} masks, but the validation set of mode {mode.name} "
            f"has {mode.validation}"
        )
    cache = None if arguments.no_cache else arguments.results_dir / "cache"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        table, problems = cached_table(pairs, cache, arguments.workers, _with_bar, count)
    for warning in caught:
        warn(str(warning.message))
    refuse([*problems, *check_labels(table, pairs, mode.classes, clusters, hint)])
    return table


def read_classes(arguments: argparse.Namespace) -> list[ClassInfo]:
    """Name the mode's classes: by the folders of --gt-dir, else by the official list, else by id alone."""
    mode = MODES[arguments.mode]
    folders = wnid_folders(arguments.gt_dir)
    wnids = folders if len(folders) == mode.classes else categories_at_hand(mode.name)
    return class_table(mode.classes, wnids)


def check_output(path: Path) -> None:
    """Refuse a result file that could not be written, before the long work rather than after it."""
    if path.is_dir():
        raise InputError(f"{path}: a folder is in the way; name a file")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written, because {folder} is no folder that you may write to")


def warn(message: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {message}", file=sys.stderr)


def _with_bar(chunks: Iterable[Chunk], images: int) -> Iterator[Chunk]:
    with tqdm(total=images, unit="pair", disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk.largest_prediction))
