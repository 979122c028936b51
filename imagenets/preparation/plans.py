"""What the image folders of a set are to hold: for each file or link, the image of the ImageNet copy."""

# Paths are plain strings here: there are a million of them, and pathlib would take longer than the disk.
# ruff: noqa: PTH100

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imagenets.classes import MERGED, MODES
from imagenets.common.errors import InputError, listed
from imagenets.lists import MappedImage, SemiImage
from imagenets.preparation.folder_layouts import TrainFolder
from imagenets.preparation.layouts import Train, Val
from imagenets.preparation.other_data import recognise
from imagenets.preparation.source_images import MissingError, SourceImage


@dataclass
class Plan:
    """All that one step puts into one set's folder; paths are relative to it, ``validation/n01/a.JPEG``."""

    mode: str
    copies: dict[str, SourceImage] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # where each leads
    missing: list[str] = field(default_factory=list)  # what the ImageNet copy lacks

    @property
    def folder(self) -> str:
        """Name of the set's folder."""
        return MODES[self.mode].folder

    def add(self, target: str, image: SourceImage, link: bool) -> None:
        """Put an image at ``target``: as a link, which only a file can be, or as a copy."""
        if target in self.copies or target in self.links:
            raise InputError(f"{image.path}: a second image for {self.folder}/{target}")
        if link and image.is_file:
            self.links[target] = os.path.abspath(image.path)
        else:
            self.copies[target] = image


def plan_train(mode: str, wnids: Sequence[str], train: Train, copy: bool) -> Plan:
    """Plan ``train``: a link a class folder, with ``copy``, from a tar or from parquet real files.

    Where images lie flat or their names repeat the class, class folders are real, and links lead to images.

    In mode 919 the images of merged classes come together in a real folder, and ``train-full`` leads to all
    of ImageNet's training images (docs/benchmark.md, Images).
    """
    plan = Plan(mode)
    for wnid in wnids:
        sources = [wnid, *merged_into(mode, wnids, wnid)]
        for source in sources:
            with _noting_missing(plan):
                if isinstance(train, TrainFolder) and not copy and len(sources) == 1:
                    plan.links[f"train/{wnid}"] = os.path.abspath(train.folder(wnid))
                    continue
                for name, image in train.images(source).items():
                    plan.add(f"train/{wnid}/{name}", image, link=not copy)
    if MODES[mode].merges and isinstance(train, TrainFolder):
        plan.links["train-full"] = os.path.abspath(train.path)
    return plan


def merged_into(mode: str, wnids: Iterable[str], wnid: str) -> list[str]:
    """ImageNet classes whose images count as ``wnid`` besides its own, in mode 919 only."""
    if not MODES[mode].merges:
        return []
    own = set(wnids)
    return [source for source, target in MERGED.items() if target == wnid and source not in own]


def plan_val(mode: str, splits: Mapping[str, Sequence[MappedImage]], val: Val, link: bool) -> Plan:
    """Plan ``validation`` and ``test``: each image where the mode's list says."""
    plan = Plan(mode)
    if val.flat:
        _refuse_shared_names([image for images in splits.values() for image in images], val)
    for split, images in splits.items():
        for source, target in images:
            with _noting_missing(plan):
                plan.add(f"{split}/{target}", val.image(source), link)
    return plan


def plan_train_semi(mode: str, images: Sequence[SemiImage], train: Train, link: bool) -> Plan:
    """Plan ``train-semi``."""
    plan = Plan(mode)
    for image in images:
        with _noting_missing(plan):
            plan.add(f"train-semi/{image.target}", train.image(image.source), link)
    return plan


@contextmanager
def _noting_missing(plan: Plan) -> Iterator[None]:
    try:
        yield
    except MissingError as error:
        plan.missing.append(str(error))


def _refuse_shared_names(images: Sequence[MappedImage], val: Val) -> None:
    names: dict[str, str] = {}
    for source, _ in images:
        name = source.rpartition("/")[2]
        if names.setdefault(name, source) != source:
            raise InputError(
                f"{val}: the list knows {names[name]} and {source}, which are one file without folders"
            )


def refuse_missing(plans: Sequence[Plan], imagenet: Path) -> None:
    """Raise InputError, which lists them, when ImageNet lacks images that the plans need."""
    needed_by: dict[str, list[str]] = {}
    for plan in plans:
        for thing in plan.missing:
            needed_by.setdefault(thing, []).append(plan.mode)
    if needed_by:
        known = recognise(imagenet)
        if known:
            raise InputError(f"{known}; nothing was written")
        lines = [f"{thing} (needed by {', '.join(modes)})" for thing, modes in needed_by.items()]
        raise InputError(
            f"{imagenet} lacks {len(lines)} needed images or class folders; nothing was written:\n"
            f"{listed(lines)}"
        )
