"""What the evaluation scripts share: arguments, and the request for a contingency table that they make."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from command_line.arguments import add_mode_argument, add_path, path_argument, whole_number
from command_line.progress import warn
from imagenets.class_ids import find_wnids
from imagenets.classes import MAX_LABEL, ClassInfo, Mode, class_table
from imagenets.common.errors import InputError
from imagenets.common.progress import Warn
from imagenets.common.whole_files import write_whole
from imagenets.common.workers import default_workers
from imagenets.images import check_image_dir
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.counting import CountRequest
from imagenets.scoring.matching import Matching, read_matching
from imagenets.scoring.matching_record import made_of_others, with_method


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which masks are read, and how."""
    parser.add_argument(
        "--predict-dir",
        type=path_argument,
        required=True,
        help="predictions, <predict-dir>/<wnid>/<name>.png",
    )
    add_ground_truth_arguments(parser)


def add_workers_argument(parser: argparse.ArgumentParser, work: str) -> None:
    """Add --workers, the processes that do ``work``."""
    parser.add_argument(
        "--workers",
        type=whole_number(0, 1024),
        default=default_workers(),
        help=f"processes that {work} (default: one per core; 0: only this process)",
    )


def add_results_dir_argument(parser: argparse.ArgumentParser, holds: str = "folder of the matchings") -> None:
    """Add --results-dir, which ``holds`` what scripts keep."""
    parser.add_argument(
        "--results-dir", type=path_argument, default=Path("results"), help=f"{holds} (default: results)"
    )


def add_ground_truth_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``add_arguments`` except the predictions."""
    add_gt_dir_argument(parser)
    add_mode_argument(parser, "classes")
    parser.add_argument(
        "--clusters",
        type=cluster_count,
        metavar="K",
        help="predictions hold cluster ids 1..K (default: the number of classes)",
    )
    add_path(parser, "--names", "FILE", "use only the masks listed in FILE, one <wnid>/<name>.png per line")
    add_workers_argument(parser, "decode")
    add_results_dir_argument(parser, "folder of the matchings and the cache of counted masks")
    add_problems_argument(parser)
    parser.add_argument(
        "--no-cache", action="store_true", help="neither read nor write the cache of counted masks"
    )


def add_problems_argument(parser: argparse.ArgumentParser) -> None:
    """Add --problems, for ``problems_kept``."""
    add_path(
        parser,
        "--problems",
        "FILE",
        "list all unusable files in FILE, one per line (an error message shows only ten)",
    )


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
        help="matching: the --session-name given to match.py, or the path of its file (default: none, "
        "predictions hold class ids)",
    )


def add_bootstrap_arguments(parser: argparse.ArgumentParser, resamples: int | None) -> None:
    """Add --bootstrap, with ``resamples`` as its default, and --seed, whose default (0) is None here."""
    parser.add_argument(
        "--bootstrap",
        type=resample_count,
        default=resamples,
        metavar="B",
        help="number of bootstrap resamples of the images for 95%% intervals (default: "
        + ("no intervals; 1000 is usual)" if resamples is None else f"{resamples})"),
    )
    parser.add_argument("--seed", type=seed_number, help="random seed of the resamples (default: 0)")


def add_report_arguments(parser: argparse.ArgumentParser, shows: str, images: str) -> None:
    """Add --report, a page that ``shows`` something, and --image-dir with what is said of its ``images``."""
    add_path(parser, "--report", "FILE.html", f"write an HTML page with {shows}")
    add_path(parser, "--image-dir", "DIR", f"images for the report, <image-dir>/<wnid>/<name>.JPEG{images}")


def check_suffixes(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, **suffixes: tuple[str, ...]
) -> None:
    """End with wrong usage if a file to write, by the name of its argument, has none of its suffixes."""
    for option, allowed in suffixes.items():
        path = getattr(arguments, option)
        if path and path.suffix not in allowed:
            parser.error(f"--{option.replace('_', '-')} {path}: must end in {' or '.join(allowed)}")


cluster_count = whole_number(1, MAX_LABEL)
resample_count = whole_number(1, 1_000_000)
seed_number = whole_number(0, 2**63 - 1)


def matching_path(match: str, results_dir: Path) -> Path:
    """Path of the matching: ``match`` itself if it looks like one, else that name among the results."""
    if os.sep in match or match.endswith(".json"):
        among_results = results_dir / match
        return among_results if among_results.is_file() and not Path(match).exists() else Path(match)
    return results_dir / f"{match}.json"


def read_match(arguments: argparse.Namespace, match: str | None, fewer: bool = False) -> Matching | None:
    """Read the matching that an argument names, None without one; InputError if it is not good.

    It must be of as many clusters as the predictions are taken to hold, or of ``fewer``.
    """
    if match is None:
        return None
    classes = arguments.mode.classes
    matching = with_method(read_matching(matching_path(match, arguments.results_dir), classes))
    matching.check_clusters(arguments.clusters or classes, fewer)
    return matching


def warn_of_others(matching: Matching | None, table: ContingencyTable, say: Warn = warn) -> None:
    """Warn where a matching is known to be made of other masks."""
    message = None if matching is None else made_of_others(matching, table)
    if message:
        say(message)


@contextmanager
def problems_kept(path: Path | None) -> Iterator[None]:
    """Write all problems of a refusal, of which messages show ten, to a file: a line each."""
    if path is not None:
        check_output(path)
    try:
        yield
    except InputError as error:
        if path is None or not error.problems:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{problem}\n" for problem in error.problems))
        raise InputError(f"{error}\nall {len(error.problems)}: {path}", error.problems) from error


def request_of(arguments: argparse.Namespace, predict_dir: Path, matched: bool) -> CountRequest:
    """Put the arguments into one request; predictions that are ``matched`` hold cluster ids."""
    mode: Mode = arguments.mode
    return CountRequest(
        gt_dir=arguments.gt_dir,
        predict_dir=predict_dir,
        mode=mode,
        clusters=(arguments.clusters or mode.classes) if matched else None,
        names=arguments.names,
        cache=None if arguments.no_cache else arguments.results_dir / "cache",
        workers=arguments.workers,
    )


def read_classes(mode: Mode, gt_dir: Path) -> list[ClassInfo]:
    """Name the mode's classes: by its list, else by the folders of --gt-dir, else only by id."""
    return class_table(mode, find_wnids(mode, gt_dir))


def today() -> str:
    """Today's date, or that of $SOURCE_DATE_EPOCH, with which a page has the same bytes on any day."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now().astimezone().date().isoformat()
    return datetime.fromtimestamp(int(epoch), timezone.utc).date().isoformat()


def save_results(contents: Mapping[Path, str | bytes]) -> None:
    """Write result files, whole, and say so."""
    if contents:
        print()
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        print(f"saved: {path}")


def check_files(outputs: Iterable[Path | None], image_dir: Path | None) -> None:
    """Refuse result files that could not be written, and a folder of images that is none, before the work."""
    for path in filter(None, outputs):
        check_output(path)
    if image_dir:
        check_image_dir(image_dir)


def check_output(path: Path) -> None:
    """Refuse a result file that could not be written, before the long work rather than after it."""
    if path.is_dir():
        raise InputError(f"{path}: a folder is in the way; name a file")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written, because {folder} is no folder that you may write to")
