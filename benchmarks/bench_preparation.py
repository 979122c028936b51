"""Compare the time to prepare validation and test of mode 919 with cp and shutil.copy of the same files.

The val folder of ImageNet is generated: the official 50,000 names as small files, in class folders. In each
round the three copy the same 39,842 files, and then the preparation runs again, with nothing left to do.

    python benchmarks/bench_preparation.py [--folder FOLDER] [--size BYTES] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from command_line.startup import run
from benchmarks.timing import seconds
from imagenets.lists import MappedImage, Origin, categories, mapping

VAL_IMAGES = 50_000


def main() -> None:
    """Generate, time, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to make a temporary folder, removed afterwards (default: the system's)",
    )
    parser.add_argument("--size", type=int, default=4000, help="bytes per file (default: 4000)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    arguments = parser.parse_args()
    origin = Origin.chosen()
    wnids = categories("919", origin)
    lists = {split: mapping("919", split, wnids, origin) for split in ("validation", "test")}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-preparation-") as folder:
        measure(Path(folder), lists, arguments.size, arguments.rounds)


def measure(folder: Path, lists: dict[str, list[MappedImage]], size: int, rounds: int) -> None:
    """Time all of them in turn, some rounds, and print the medians."""
    imagenet, tree = folder / "imagenet", folder / "tree"
    write_val(imagenet / "val", [image.source for images in lists.values() for image in images], size)
    link_tree(imagenet / "val", tree, lists)
    pairs = [(path, folder / "loop" / path.relative_to(tree)) for path in tree.rglob("*.JPEG")]
    save = folder / "save"
    script = CHECKOUT / "datapreparation/datapreparation_val.py"
    paths = [f"--imagenet-dir={imagenet}", f"--save-dir={save}"]
    prepare = [sys.executable, str(script), "--mode", "919", *paths]
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for folder_made in (save, folder / "cp", folder / "loop"):
            shutil.rmtree(folder_made, ignore_errors=True)
        for name, work in {
            "datapreparation_val.py": lambda: process(*prepare),
            "cp -r": lambda: process("cp", "-r", tree, folder / "cp"),
            "shutil.copy, one by one": lambda: copy_loop(pairs),
            "datapreparation_val.py again": lambda: process(*prepare),
        }.items():
            os.sync()
            times.setdefault(name, []).append(seconds(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{len(pairs)} files of {size} bytes, {os.cpu_count()} cores, median of {rounds} rounds")
    for name, median in medians.items():
        rounds_text = " ".join(f"{value:.2f}" for value in times[name])
        print(f"  {name:<30}{median:7.2f} s  {median / medians['cp -r']:5.2f} x cp   ({rounds_text})")


def write_val(folder: Path, needed: list[str], size: int) -> None:
    """Write the 50,000 names: those of the lists in their class folders, the others in the last one's."""
    names = {f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, VAL_IMAGES + 1)}
    rest = names - {place.split("/")[1] for place in needed}
    last = needed[-1].split("/")[0]
    content = os.urandom(size)
    for place in [*needed, *(f"{last}/{name}" for name in sorted(rest))]:
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def link_tree(val: Path, tree: Path, lists: dict[str, list[MappedImage]]) -> None:
    """Make what cp copies: hard links to the same files, in the folders in which they shall end."""
    for split, images in lists.items():
        for image in images:
            target = tree / split / image.target
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(val / image.source)


def process(*command: str | Path) -> None:
    """Run a command without its output."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def copy_loop(pairs: list[tuple[Path, Path]]) -> None:
    """Copy as a first script would."""
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


if __name__ == "__main__":
    run(main)
