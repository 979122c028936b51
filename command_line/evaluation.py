"""What the evaluation scripts share: arguments, and the way from them to a contingency table."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from command_line import path_argument
from imagenets.classes import MAX_LABEL, MODES, ClassInfo, class_table
from imagenets.common.errors import InputError
from imagenets.lists import categories_at_hand
from imagenets.scoring.contingency import Chunk, ContingencyTable, CountPairs, check_labels, refuse
from imagenets.scoring.matching_file import read_matching
from imagenets.scoring.pairs import Pairs, check_predict_dir, find_pairs, read_names, wnid_folders
from imagenets.scoring.table_cache import cached_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which masks are read, and how."""
    parser.add_argument(
        "--predict-dir",
        type=path_argument,
        required=True,
        help="predictions, <predict-dir>/<wnid>/<name>.png",
    )
    add_ground_truth_arguments(parser)


def add_ground_truth_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``add_arguments`` but for the predictions."""
    add_gt_dir_argument(parser)
    parser.add_argument("--mode", choices=MODES, required=True, help="number of classes")
    parser.add_argument(
        "--clusters",
        type=cluster_count,
        metavar="K",
        help="the predictions hold cluster ids 1..K (default: as many as the mode has classes)",
    )
    parser.add_argument(
        "--names", type=path_argument, metavar="FILE", help="only these: one <wnid>/<name>.png a line"
    )
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=default_workers(),
        help="processes that decode (default: one per core; 0: no extra process); under torchrun, for each "
        "of its processes (default: together one per core)",
    )
    parser.add_argument(
        "--results-dir",
        type=path_argument,
        default=Path("results"),
        help="matchings, and the cache of counted masks (default: results)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="count all masks again; leave no cache behind"
    )


def default_workers() -> int:
    """Cores for this process: its share, where torchrun started several on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def add_gt_dir_argument(parser: argparse.ArgumentParser) -> None:
    """Add --gt-dir."""
    parser.add_argument(
        "--gt-dir", type=path_argument, required=True, help="ground truth, <gt-dir>/<wnid>/<name>.png"
    )


def add_match_argument(parser: argparse.ArgumentParser) -> None:
    """Add --match."""
    parser.add_argument(
        "--match",
        metavar="NAME",
        help="the matching that match.py saved as --session-name NAME, or the path of a matching file; "
        "without it the predictions hold class ids",
    )


def add_bootstrap_arguments(parser: argparse.ArgumentParser, resamples: int | None) -> None:
    """Add --bootstrap, with ``resamples`` as its default, and --seed, whose default (0) is None here."""
    parser.add_argument(
        "--bootstrap",
        type=resample_count,
        default=resamples,
        metavar="B",
        help="95%% intervals from B resamples of the images; 1000 is usual (default: "
        + ("none)" if resamples is None else f"{resamples})"),
    )
    parser.add_argument("--seed", type=seed_number, help="of the resamples (default: 0)")


def cluster_count(text: str) -> int:
    """Argument type: a number of clusters."""
    return _whole_number(text, 1, MAX_LABEL)


def worker_count(text: str) -> int:
    """Argument type: a number of worker processes."""
    return _whole_number(text, 0, 1024)


def resample_count(text: str) -> int:
    """Argument type: a number of bootstrap resamples."""
    return _whole_number(text, 1, 1_000_000)


def seed_number(text: str) -> int:
    """Argument type: a seed of a random generator."""
    return _whole_number(text, 0, 2**63 - 1)


def _whole_number(text: str, lowest: int, highest: int) -> int:
    if not text.isascii() or not text.isdecimal() or not lowest <= int(text) <= highest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in {lowest}..{highest}")
    return int(text)


def matching_path(match: str, results_dir: Path) -> Path:
    """Path of the matching: ``match`` itself if it looks like one, else that name among the results."""
    if os.sep in match or match.endswith(".json"):
        return Path(match)
    return results_dir / f"{match}.json"


def read_matching_of(arguments: argparse.Namespace, match: str | None) -> dict[int, int] | None:
    """Read the matching that an argument names, None without one; InputError if it is not good."""
    if match is None:
        return None
    path = matching_path(match, arguments.results_dir)
    matching = read_matching(path, MODES[arguments.mode].classes)
    clusters, _ = label_limit(arguments, match)
    if max(matching) != clusters:
        warn(
            f"{path}: a matching of clusters 0..{max(matching)}, but the predictions are taken to hold "
            f"0..{clusters}; is it theirs?"
        )
    return matching


def label_limit(arguments: argparse.Namespace, match: str | None) -> tuple[int, str]:
    """Give the largest label that a prediction may have, and what to do where one is larger."""
    number_of_classes = MODES[arguments.mode].classes
    if match is None:
        return number_of_classes, "cluster ids need a matching: run match.py, then pass --match"
    return arguments.clusters or number_of_classes, "pass the number of clusters with --clusters"


def read_table(
    arguments: argparse.Namespace, clusters: int, hint: str, count: CountPairs | None = None
) -> ContingencyTable:
    """Count the masks that the arguments name, or take the counts from the cache; InputError if any is bad.

    ``clusters`` is the largest label that a prediction may have, ``hint`` what to do where one is larger,
    ``count`` what counts.
    """
    pairs = list_pairs(arguments, arguments.predict_dir)
    warn_of_count(arguments, pairs)
    table, problems = count_masks(arguments, pairs, clusters, hint, count)
    refuse(problems)
    return table


def list_pairs(arguments: argparse.Namespace, predict_dir: Path) -> Pairs:
    """List the pairs of masks that the arguments name, with the predictions in ``predict_dir``."""
    names = None if arguments.names is None else read_names(arguments.names)
    pairs = find_pairs(arguments.gt_dir, predict_dir, names)
    if names is None:
        check_predict_dir(pairs)
    return pairs


def warn_of_count(arguments: argparse.Namespace, pairs: Pairs) -> None:
    """Warn where the ground truth is not as many masks as the validation set has."""
    mode = MODES[arguments.mode]
    official = not os.environ.get("IMAGENETS_LISTS")  # lists of one's own have their own number of images
    if arguments.names is None and official and len(pairs.names) != mode.validation:
        others = [other.name for other in MODES.values() if other.validation == len(pairs.names)]
        warn(
            f"{arguments.gt_dir}: {len(pairs.names)} masks, but the validation set of mode {mode.name} "
            f"has {mode.validation}" + "".join(f"; is this --mode {other}?" for other in others)
        )


def count_masks(
    arguments: argparse.Namespace, pairs: Pairs, clusters: int, hint: str, count: CountPairs | None = None
) -> tuple[ContingencyTable, list[str]]:
    """Count masks as ``read_table`` does; returns the table and one message for each bad file."""
    cache = None if arguments.no_cache else arguments.results_dir / "cache"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        table, problems = cached_table(pairs, cache, arguments.workers, _with_bar, count)
    for warning in caught:
        warn(str(warning.message))
    return table, [*problems, *check_labels(table, pairs, MODES[arguments.mode].classes, clusters, hint)]


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
