"""Compare a prepared ImageNet-S with its lists; exit with 0 if all splits that exist are right."""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.preparation import modes_of, new_parser, origin_of, parse
from command_line.progress import bar, warn
from imagenets.classes import MODES
from imagenets.common.errors import InputError, listed
from imagenets.lists import Origin, categories, mapping, train_semi
from imagenets.preparation.verification import SetLists, SetReport, SplitReport, verify_set

COLUMNS = ("split", "expected", "found", "missing", "unexpected", "unreadable", "wrong size")


def main() -> None:
    """Parse, verify, print a table for each set, end with 1 if one is not right."""
    warnings.filterwarnings("ignore", module="PIL")  # about EXIF that Pillow cannot read, which is not an
    # error of the set
    parser = new_parser(
        "Compare ImageNetS* with its lists, split by split. The exit status is 0 if at least one split\n"
        "exists and all existing splits are right; missing ones are named. The lists name no train images,\n"
        "so only the class folders of train and the number of its images are compared. Nothing is written."
    )
    parser.add_argument(
        "--deep", action="store_true", help="decode every mask, instead of reading only the headers"
    )
    arguments = parse(parser)
    refuse_wrong_folder(arguments.save_dir)
    origin = origin_of(arguments)
    lists = [read_lists(mode, origin) for mode in modes_of(arguments)]
    reports = [verify_set(arguments.save_dir, of_mode, arguments.deep, bar) for of_mode in lists]
    for report in reports:
        print_report(report)
    if not all(report.right for report in reports):
        sys.stdout.flush()
        sys.exit(1)


def refuse_wrong_folder(save: Path) -> None:
    """Raise InputError if this cannot be the folder of the prepared sets."""
    if not save.is_dir():
        raise InputError(
            f"{save}: no such folder; --save-dir is the folder that holds {MODES['50'].folder} and so on"
        )
    if save.absolute().name in {mode.folder for mode in MODES.values()}:
        raise InputError(f"{save} is a set itself: name its parent, {save.absolute().parent}")


def read_lists(mode: str, origin: Origin) -> SetLists:
    """Read all lists of a mode; the official total of train holds only for the official lists."""
    wnids = categories(mode, origin, bar, warn)
    return SetLists(
        mode,
        wnids,
        MODES[mode].train if origin.official else None,
        train_semi(mode, wnids, origin, bar, warn),
        mapping(mode, "validation", wnids, origin, bar, warn),
        mapping(mode, "test", wnids, origin, bar, warn),
    )


def print_report(report: SetReport) -> None:
    """Print a set's table, what is wrong, and the verdict."""
    rows = [COLUMNS, *(row(split) for split in report.splits)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(COLUMNS))]
    print(report.folder)
    for name, *cells in rows:
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print(f"  {name.ljust(widths[0])}  {line}".rstrip())
    for split in report.splits:
        print_faults(split)
    print(f"{report.folder.name}: {verdict(report)}")
    for cure in cures(report):
        print(f"  {cure}")
    print()


def row(split: SplitReport) -> tuple[str, ...]:
    """Write one line of the table."""
    expected = "-" if split.expected is None else str(split.expected)
    if split.absent:
        return (split.name, expected, "absent", "", "", "", "")
    counts = (
        split.found,
        len(split.missing) + split.lacking,
        len(split.unexpected) + split.surplus,
        len(split.unreadable) + len(split.dangling),
        len(split.misfits),
    )
    return (split.name, expected, *map(str, counts))


def print_faults(split: SplitReport) -> None:
    """List the problems of a split, the first ten of each kind."""
    kinds = {
        "missing": split.missing,
        "unexpected": split.unexpected,
        "unreadable or empty": split.unreadable,
        "broken links": split.dangling,
        "wrong size": split.misfits,
        "hidden, and ignored": split.ignored,
    }
    for kind, things in kinds.items():
        if things:
            print(f"{split.name}: {len(things)} {kind}\n{listed(things)}")


def cures(report: SetReport) -> list[str]:
    """Say what to do about the problems."""
    faulty = [split for split in report.splits if not split.right]
    train = [split for split in faulty if split.name.startswith("train (")]
    dangling = any(split.dangling for split in faulty)
    masks = [split for split in report.splits if split.name.endswith("-segmentation")]
    misfits = sum(len(split.misfits) for split in masks)
    resized = 2 * misfits > sum(split.found for split in masks)
    advice = {
        "missing: run data_preparation.sh again, which makes what is missing": any(s.missing for s in faulty),
        "broken links: mount the disk of ImageNet, or run data_preparation.sh with the folder where ImageNet "
        "is now, which makes them again": dangling,
        "train: is the copy of ImageNet complete?": any(
            (split.lacking and not dangling) or split.surplus or split.unreadable for split in train
        ),
        f"this ImageNet is a resized copy: {misfits} masks do not have their image's size; move the images "
        "away and prepare the set from the original ImageNet": resized,
        "unreadable, empty or of the wrong size: remove those files, then run data_preparation.sh again "
        "(only masks: datapreparation_anno.sh)": any(
            split.unreadable or (split.misfits and not resized) for split in faulty if split not in train
        ),
        "unexpected: move it away": any(split.unexpected for split in faulty),
    }
    return [cure for cure, needed in advice.items() if needed]


def verdict(report: SetReport) -> str:
    """Say in one line whether the set is right."""
    absent = report.absent
    needed = [name for name in absent if name != "train-full"]
    if all(split.absent for split in report.splits):
        return "nothing there"
    if not report.right:
        return "not right, see above" + (f"; absent: {', '.join(absent)}" if absent else "")
    if not needed:
        return "complete" + (" (train-full is absent, which is not an error)" if absent else "")
    return f"all existing splits are right; absent: {', '.join(absent)}"


if __name__ == "__main__":
    run(main)
