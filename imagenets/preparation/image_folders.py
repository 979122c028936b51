"""Make the image folders of ImageNet-S from a copy of ImageNet: check all plans, then write.

Carrying a plan out makes only what is not there yet, so that
a second run writes nothing and a run after a kill resumes. What is there and is not what the plan would make
is never touched: it stops the run before anything is written.
"""

# Paths are plain strings here: there are a million of them, and pathlib would take longer than the disk.
# ruff: noqa: PTH102, PTH104, PTH115

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imagenets.common.disk_space import check_room, on_disk
from imagenets.common.errors import InputError, listed, os_errors_named, quantity
from imagenets.common.locks import locked
from imagenets.common.progress import Show, no_bar
from imagenets.common.zip_files import BROKEN_ZIP, read_member
from imagenets.preparation.layouts import KAGGLE
from imagenets.preparation.links import is_dangling, link_text, make_link, wrong_link
from imagenets.preparation.parquet import largest_row_group, read_rows
from imagenets.preparation.plans import Plan, refuse_missing
from imagenets.preparation.source_images import SourceImage

LOCK = ".imagenets.lock"  # in the folder of all sets
STAGING = ".incomplete-images"  # in a set's folder: files while they are written
BATCH = 32  # files that a thread takes at a time, in an existing folder
ROW_GROUP_ROOM = 128 << 20  # bytes of row groups that threads may read at a time


@dataclass(frozen=True)
class Done:
    """What a run did in one folder of one set, ``ImageNetS50/validation``."""

    folder: str
    copies: int  # images that exist now
    links: int  # and links, to images or to folders
    made: int  # images and links made by this run


def prepare(
    plans: Sequence[Plan],
    imagenet: Path,
    save: Path,
    workers: int,
    show: Show = no_bar,
    absolute: bool = False,
) -> list[Done]:
    """Carry out plans, one per mode, in ``save``; return how much was there and how much was made.

    Links are ``absolute``, or relative if that can be (``links.link_text``). Nothing is written before all
    plans have been checked. Raises InputError if ImageNet lacks images, ``save`` lies in ``imagenet``,
    something else is in the place of a file, folder or link, the disk is too small, or another run is working
    in ``save``; NoLinksError if the disk has no symbolic links.
    """
    refuse_missing(plans, imagenet)
    for plan in plans:
        _refuse_nested(imagenet, save, plan.folder)
    todo = [_Todo.of(plan, save, absolute) for plan in plans]
    if any(work.anything for work in todo) or os.path.lexists(save / LOCK):
        todo.clear()  # a million images would be in memory twice
        save.mkdir(parents=True, exist_ok=True)
        with locked(save / LOCK):
            todo = [_Todo.of(plan, save, absolute) for plan in plans]  # it may have changed since the check
            check_room(save, sum(work.bytes for work in todo), "copying the images")
            for work in todo:
                work.do(workers, show)
            _copy_rows(todo, workers, show)
    return [done for work in todo for done in work.summary()]


def is_empty_file(path: Path | os.DirEntry[str]) -> bool:
    """Is this an empty real file? It can be replaced; a crash of the computer can leave one."""
    status = path.stat(follow_symlinks=False)
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _refuse_nested(imagenet: Path, save: Path, folder: str) -> None:
    """ImageNet is only read: nothing is written into it, nor around it within a set's own folder."""
    real_save, real_imagenet = save.resolve(), imagenet.resolve()
    parts = ("train", "val", f"{KAGGLE}/train", f"{KAGGLE}/val", "data")
    sources = {real_imagenet, *((imagenet / part).resolve() for part in parts)}
    for source in sources:
        if real_save.is_relative_to(source):
            raise InputError(f"{save} lies in the ImageNet copy {source}: choose a folder outside it")
        if source.is_relative_to(real_save / folder):
            raise InputError(
                f"the ImageNet copy {source} lies in {save / folder}, which is to be made: choose another"
            )


@dataclass
class _Todo:
    """The part of a plan that is left to do."""

    plan: Plan
    root: Path
    folders: list[Path]  # to be made, parents first
    links: list[tuple[str, str]]  # its text and its place below the root, as in the plan
    copies: list[tuple[SourceImage, str]]  # image and place below the root
    staged: bool  # a killed run left half-written files

    @classmethod
    def of(cls, plan: Plan, save: Path, absolute: bool) -> _Todo:
        """Compare a plan with the existing files. Raises InputError if something is in the way.

        Broken links are made again: ImageNet has moved.
        """
        root = save / plan.folder
        wanted: dict[str, list[str]] = {}
        for target in (*plan.copies, *plan.links):
            wanted.setdefault(target.rpartition("/")[0], []).append(target)
        folders, links, copies = [], [], []
        problems: list[str] = []
        for parent in _with_parents(wanted):
            path = root / parent
            real = os.path.realpath(path)
            there = _entries(path, problems)
            if there is None:
                folders.append(path)
                there = {}
            for target in wanted.get(parent, ()):
                image, entry = plan.copies.get(target), there.get(target.rpartition("/")[2])
                problem = None
                if image is None:
                    leads_to = plan.links[target]
                    says = leads_to if absolute else link_text(leads_to, real)
                    if entry is None or is_dangling(entry.path):
                        links.append((says, target))
                    else:
                        problem = wrong_link(entry, leads_to, says)
                elif entry is None or is_empty_file(entry):
                    copies.append((image, target))
                else:
                    problem = _wrong_copy(entry, image)
                if problem:
                    problems.append(problem)
        staging = root / STAGING
        if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
            problems.append(f"{staging}: the run needs this name for a folder of its own")
        if problems:
            raise InputError(
                f"{quantity(len(problems), 'thing')} in the way; nothing was written. "
                f"Move them away, or choose another folder:\n{listed(problems)}"
            )
        return cls(plan, root, folders, links, copies, staged=staging.exists())

    @property
    def anything(self) -> bool:
        return bool(self.folders or self.links or self.copies or self.staged)

    @property
    def bytes(self) -> int:
        return sum(on_disk(image.size) for image, _ in self.copies)

    def do(self, workers: int, show: Show) -> None:
        """Make what is left, except rows of shards; files are staged in a folder, then renamed."""
        jobs = self._copy_jobs()
        filled = {folder for folder, _ in jobs}
        for folder in self.folders:
            if str(folder) not in filled:
                folder.mkdir()
        for says, target in self.links:
            make_link(says, f"{self.root}/{target}")
        if self.staged:
            shutil.rmtree(self.root / STAGING)
        if jobs:
            number = sum(len(copies) for _, copies in jobs)
            with _staging(self.root) as staging, show(self.plan.folder, number, unit="image") as advance:
                _run_all(
                    [partial(_copy_all, *job, f"{staging}/{i}") for i, job in enumerate(jobs)],
                    workers,
                    advance,
                )

    def _copy_jobs(self) -> list[tuple[str | None, list[tuple[SourceImage, str]]]]:
        """Divide the copies: new class folders as a whole, else (None) a few files each."""
        by_folder: dict[str, list[tuple[SourceImage, str]]] = {}
        for image, target in self.copies:
            if image.row is None:
                path = f"{self.root}/{target}"
                by_folder.setdefault(path.rpartition("/")[0], []).append((image, path))
        with_links = {f"{self.root}/{target}".rpartition("/")[0] for _, target in self.links}
        new = {str(folder) for folder in self.folders} - with_links
        jobs: list[tuple[str | None, list[tuple[SourceImage, str]]]] = []
        for folder, copies in by_folder.items():
            if folder in new:
                jobs.append((folder, copies))
            else:
                jobs += [(None, copies[i : i + BATCH]) for i in range(0, len(copies), BATCH)]
        return jobs

    def summary(self) -> list[Done]:
        """Count per folder, ``ImageNetS50/validation``, existing files and those made now."""
        copies = Counter(target.split("/")[0] for target in self.plan.copies)
        links = Counter(target.split("/")[0] for target in self.plan.links)
        made = Counter(target.split("/")[0] for _, target in (*self.links, *self.copies))
        return [
            Done(f"{self.plan.folder}/{top}", copies[top], links[top], made[top])
            for top in dict.fromkeys((*copies, *links))
        ]


def _with_parents(folders: Iterable[str]) -> list[str]:
    """Sort relative folders with all their parents, the root (``""``) first."""
    every = {""}
    for folder in folders:
        while folder:
            every.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(every)


def _entries(folder: Path, problems: list[str]) -> dict[str, os.DirEntry[str]] | None:
    """Content of a real folder; None if there is nothing, a problem if there is anything else."""
    try:
        status = folder.lstat()
    except (FileNotFoundError, NotADirectoryError):  # the latter: of its parent, which is a problem already
        return None
    if not stat.S_ISDIR(status.st_mode):
        what = f"a link to {os.readlink(folder)}" if stat.S_ISLNK(status.st_mode) else "a file"
        problems.append(f"{folder}: {what}, where a folder would be made")
        return None
    with os.scandir(folder) as entries:
        return {entry.name: entry for entry in entries}


def _wrong_copy(entry: os.DirEntry[str], image: SourceImage) -> str | None:
    """Say why an existing file is not the copy of the image, by kind and size; None if it is."""
    if entry.is_symlink():
        what = "a broken link" if is_dangling(entry.path) else "a link"
        return (
            f"{entry.path}: {what}, where a real file would be made (made with links? then make it so again)"
        )
    if not entry.is_file():
        return f"{entry.path}: no file, where a file would be made"
    size = entry.stat().st_size
    if image.row is not None and size:  # the size of its row is not known before it is read
        return None
    return None if size == image.size else f"{entry.path}: {size} bytes, {image.path} has {image.size}"


def _copy_all(
    folder: str | None, copies: Sequence[tuple[SourceImage, str]], staged: str, stop: threading.Event
) -> int:
    """Copy images under the unused name ``staged``, as one new ``folder`` or each by itself, and rename."""
    if folder is not None:
        os.mkdir(staged)
    for image, target in copies:
        if stop.is_set():
            return 0
        if folder is None:
            copy_image(image, staged)
            os.rename(staged, target)
        else:
            copy_image(image, f"{staged}/{target.rpartition('/')[2]}")
    if folder is not None:
        os.rename(staged, folder)
    return len(copies)


def _copy_rows(todo: Sequence[_Todo], workers: int, show: Show) -> None:
    """Write the images that are rows of parquet shards, for all sets in one pass over the shards.

    The images of a class lie in many shards, so folders fill up gradually; files appear complete.
    """
    by_shard: dict[str, _Rows] = {}
    for work in todo:
        for image, target in work.copies:
            if image.row is not None:
                targets = by_shard.setdefault(image.path, {}).setdefault(image.row, [])
                targets.append((work.root, target))
    if not by_shard:
        return
    places = [place for rows in by_shard.values() for targets in rows.values() for place in targets]
    largest = max(largest_row_group(shard) for shard in by_shard)
    jobs = [partial(_write_rows, shard, by_shard[shard], str(i)) for i, shard in enumerate(sorted(by_shard))]
    with ExitStack() as stack:
        for root in {root for root, _ in places}:
            stack.enter_context(_staging(root))
        advance = stack.enter_context(show("parquet", len(places), unit="image"))
        _run_all(jobs, min(workers, max(1, ROW_GROUP_ROOM // max(largest, 1))), advance)


_RESUME = "; run the same command again to resume"

_Rows = dict[int, list[tuple[Path, str]]]  # root and path below it of the files that are a row's copies


def _write_rows(shard: str, rows: _Rows, staged: str, stop: threading.Event) -> int:
    """Write a shard's files under the unused name ``staged``, rename them, return their number."""
    for row, content in read_rows(shard, sorted(rows)):
        if stop.is_set():
            break
        for root, target in rows[row]:
            unfinished = root / STAGING / staged
            with os_errors_named(f"cannot write {root}/{target}", _RESUME):
                unfinished.write_bytes(content)
            os.rename(unfinished, f"{root}/{target}")
    return sum(map(len, rows.values()))


def _run_all(
    jobs: Sequence[Callable[[threading.Event], int]], workers: int, advance: Callable[[int], None]
) -> None:
    """Do jobs in threads; each returns how many images it made. If one fails, the others are stopped."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers)
    try:
        for made in pool.map(lambda job: job(stop), jobs):
            advance(made)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """Make a folder for unfinished files; it is removed afterwards."""
    staging = root / STAGING
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging)


def copy_image(image: SourceImage, target: str) -> None:
    """Copy an image, a file, a piece of a tar or a member of a ZIP, to a new file ``target``.

    The kernel does it if it can, and shares blocks between the files if the file system can.
    """
    if image.member is not None:
        try:
            content = read_member(*image.member)
        except BROKEN_ZIP as error:
            name = image.member.info.filename
            raise InputError(f"{image.path}: {name} is damaged ({error}): get it again") from error
        with os_errors_named(f"cannot write {target}", _RESUME), Path(target).open("xb") as file:
            file.write(content)
        return
    with (
        os_errors_named(f"cannot copy {image.path}", _RESUME),
        Path(image.path).open("rb", buffering=0) as source,
        Path(target).open("xb", buffering=0) as copy,
    ):
        copied = _transfer(source.fileno(), copy.fileno(), image.offset or 0, image.size)
    if copied != image.size:
        raise InputError(
            f"{image.path} ended after {copied} of {image.size} bytes: has it changed in the meantime?"
        )


def _transfer(source: int, target: int, offset: int, size: int) -> int:
    """Copy ``size`` bytes from ``offset`` on between open files, return the number copied."""
    done = 0
    in_kernel = hasattr(os, "copy_file_range")
    while done < size:
        step = 0
        if in_kernel:
            # Refused between some file systems and by old kernels; the code below fails
            # too if the disk does.
            with suppress(OSError):
                step = os.copy_file_range(source, target, size - done, offset + done, done)
        if not step:
            in_kernel = False
            data = os.pread(source, min(size - done, 1 << 20), offset + done)
            step = os.pwrite(target, data, done)
        if not step:
            break
        done += step
    return done
