"""A submission (docs/benchmark.md, Submission): one ZIP archive of all test predictions, and its check.

Every prediction is decoded before it is packed, and the bytes that were decoded are the bytes packed. PNGs
are compressed already, so they are stored as they are; with a fixed order, date and permissions the same
input makes the same archive, byte for byte.
"""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagenets.classes import MODES
from imagenets.common.disk_space import readable
from imagenets.common.errors import InputError, listed, quantity, refuse
from imagenets.common.folders import files_by_class, visible
from imagenets.common.progress import Show, no_bar
from imagenets.common.whole_files import whole_file
from imagenets.common.workers import load_chunks
from imagenets.common.zip_files import BROKEN_ZIP, read_member
from imagenets.images import mask_sizes
from imagenets.lists import categories_at_hand, mapping_at_hand, own_lists
from imagenets.masks import MAX_MASK_BYTES, colour_problem, decode_rgb, png_size
from imagenets.scoring.counting import LabelLimit
from imagenets.scoring.matching import Matching, parse_matching

MATCHING = "match.json"
METHOD = "method.txt"
METHOD_LINES = (
    "Method name",
    "Training data",
    "Training scheme",
    "Networks",
    "Paper/Project link",
    "Method description",
)

# Predictions that a worker sends at once.
CHUNK = 16

_IMAGE_NAME = re.compile(r"n\d{8}/[^/]+\.JPEG")
_PREDICTION_NAME = re.compile(r"n\d{8}/[^/]+\.png")
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP can hold
_PERMISSIONS = 0o100644 << 16  # a file, rw-r--r--, where a ZIP keeps them


@dataclass(frozen=True)
class ExpectedPredictions:
    """What a submission must hold: ``names`` (``<wnid>/<name>.png``, sorted), one for each test image.

    ``image_dir`` is the folder of the test images, ``others`` are other files there.
    """

    names: tuple[str, ...]
    image_dir: Path
    others: tuple[str, ...]


def find_test_predictions(save_dir: Path, mode: str) -> ExpectedPredictions:
    """List the predictions that the test images of a prepared set need; images are not opened.

    Raises InputError when there are no test images in ``<save_dir>/ImageNetS<mode>/test``.
    """
    folder = save_dir / MODES[mode].folder / "test"
    where = f"test images lie in <save-dir>/{MODES[mode].folder}/test/<wnid>/<name>.JPEG"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {where} (data_preparation.sh puts them there)")
    found = files_by_class(folder)
    names = [name.removesuffix(".JPEG") + ".png" for name in found if _IMAGE_NAME.fullmatch(name)]
    others = [entry.name for entry in visible(folder) if not entry.is_dir()]
    others += [name for name in found if not _IMAGE_NAME.fullmatch(name)]
    if not names:
        raise InputError(f"{folder}: no test images there; {where}")
    return ExpectedPredictions(tuple(sorted(names)), folder, tuple(sorted(others)))


def number_of_test_images(mode: str) -> int | None:
    """Number of test images: the official one, or that of the user's own lists; None if unknown."""
    if own_lists() is None:
        return MODES[mode].test
    wnids = categories_at_hand(mode)
    images = None if wnids is None else mapping_at_hand(mode, "test", wnids)
    return None if images is None else len(images)


def extra_predictions(predict_dir: Path, names: Iterable[str]) -> list[str]:
    """List the PNGs in the folders of ``predict_dir`` that are not among ``names``, sorted."""
    found = files_by_class(predict_dir, lambda name: name.endswith(".png"))
    return sorted(set(found) - set(names))


def read_prediction(predict_dir: Path, name: str) -> bytes:
    """Read the prediction ``<predict_dir>/<name>``; InputError when it cannot be read."""
    try:
        return (predict_dir / name).read_bytes()
    except FileNotFoundError as error:
        raise InputError("no such prediction") from error
    except OSError as error:
        raise InputError(str(error.strerror)) from error


class ArchiveSource:
    """The entries of an archive, which each process opens for itself."""

    def __init__(self, path: Path) -> None:
        """Take an archive that exists."""
        self.path = path
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def read(self, name: str) -> bytes:
        """Read an entry and check its checksum; InputError if it cannot be read."""
        archive = self.archive()
        info = archive.getinfo(name)
        if info.flag_bits & 1:
            raise InputError("is encrypted; pack it without a password")
        if info.file_size > MAX_MASK_BYTES:
            raise InputError(f"{readable(info.file_size)}, and a mask has at most {readable(MAX_MASK_BYTES)}")
        try:
            return read_member(archive, info)
        except NotImplementedError as error:
            raise InputError(f"is {error}") from error
        except BROKEN_ZIP as error:
            raise InputError(f"is damaged in the archive ({error}); pack it again") from error

    def archive(self) -> zipfile.ZipFile:
        """Open the archive once in each process: forked ones would share one file position."""
        if self._archive is None or self._archive[0] != os.getpid():
            try:
                self._archive = (os.getpid(), zipfile.ZipFile(self.path))
            except BROKEN_ZIP as error:
                if isinstance(error, OSError) and error.filename:
                    raise
                raise InputError(
                    f"{self.path}: not a complete ZIP archive ({error}); pack it again"
                ) from error
        return self._archive[1]


class Checked(NamedTuple):
    """One checked prediction: its bytes (none if bad), what is wrong, and its image if unreadable."""

    name: str
    content: bytes
    problem: str | None
    unreadable_image: str | None


@dataclass(frozen=True)
class PredictionChunks:
    """A map-style data set of chunks of predictions, decoded and checked.

    ``read`` returns the bytes of a prediction or raises InputError; ``where`` precedes names in messages.
    If ``image_dir`` is given, the sizes of the images there count.
    """

    names: Sequence[str]
    read: Callable[[str], bytes]
    where: str
    image_dir: Path | None
    limit: LabelLimit

    def __len__(self) -> int:
        """Return the number of chunks."""
        return math.ceil(len(self.names) / CHUNK)

    def __getitem__(self, index: int) -> list[Checked]:
        """Check one chunk."""
        return [self._check(name) for name in self.names[CHUNK * index : CHUNK * (index + 1)]]

    def _check(self, name: str) -> Checked:
        from imagenets.scoring.run_length import label_runs

        problem, unreadable = None, None
        try:
            content = self.read(name)
            height, width = png_size(content)
            if self.image_dir is not None:
                image = self.image_dir / f"{name.removesuffix('.png')}.JPEG"
                problem, unreadable = _compare_size(image, height, width)
            if problem is None:
                mask = label_runs(decode_rgb(content))
                problem = colour_problem(mask.red, mask.blue) or self.limit.problem(int(mask.palette.max()))
        except InputError as error:
            problem, unreadable = str(error), None
        if problem is not None:
            return Checked(name, b"", f"{self.where}{name}: {problem}", unreadable)
        return Checked(name, content, None, unreadable)


def _compare_size(image_path: Path, height: int, width: int) -> tuple[str | None, str | None]:
    """Say what is wrong with a prediction's size, and name the image if it cannot be opened.

    Both the size in the image's header and that after its EXIF rotation are right; no pixel is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF that Pillow does not understand, or large images
            with Image.open(image_path) as image:
                image_width, image_height = image.size
                if (height, width) in mask_sizes(image):
                    return None, None
    except FileNotFoundError:  # or a broken link
        return None, f"{image_path}: no such file"
    except (OSError, Image.DecompressionBombError) as error:
        return None, f"{image_path}: {error}"
    return (
        f"{width} x {height} pixels, but its test image has {image_width} x {image_height}; "
        "resize it (nearest neighbour) to its image's size"
    ), None


def write_submission(
    output: Path,
    expected: ExpectedPredictions,
    predict_dir: Path,
    files: Mapping[str, bytes],
    limit: LabelLimit,
    workers: int,
    show: Show = no_bar,
) -> list[str]:
    """Check every expected prediction and pack them, after ``files`` (name to content), into ``output``.

    Returns the test images that could not be opened.

    Raises InputError that lists the predictions that are missing or bad; then nothing is written.
    """
    read = partial(read_prediction, predict_dir)
    dataset = PredictionChunks(expected.names, read, f"{predict_dir}/", expected.image_dir, limit)
    problems: list[str] = []
    unreadable: list[str] = []
    with (
        whole_file(output) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        show("predictions", len(expected.names), unit="mask") as advance,
    ):
        for name, content in files.items():
            _add(archive, name, content)
        for chunk in load_chunks(dataset, workers):
            advance(len(chunk))
            _collect(chunk, problems, unreadable)
            if not problems:
                for checked in chunk:
                    _add(archive, checked.name, checked.content)
        refuse(problems)
    return unreadable


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = 3  # Unix, on any system
    info.external_attr = _PERMISSIONS
    archive.writestr(info, content, zipfile.ZIP_STORED)


def _collect(chunk: Iterable[Checked], problems: list[str], unreadable: list[str]) -> None:
    problems.extend(checked.problem for checked in chunk if checked.problem is not None)
    unreadable.extend(checked.unreadable_image for checked in chunk if checked.unreadable_image is not None)


def submission_matching(matching: Matching, clusters: int) -> bytes:
    """Format a matching as match.json of a submission; InputError if it lacks one of 0..``clusters``."""
    _refuse_incomplete(matching, clusters, str(matching.path))
    return matching.text().encode()


def _refuse_incomplete(matching: Matching, clusters: int, where: str) -> None:
    missing = [f"cluster {cluster}" for cluster in matching.lacking(np.arange(clusters + 1))]
    if missing:
        raise InputError(
            f"{where}: a submission's matching holds every cluster 0..{clusters}, and {len(missing)} are "
            f"not there; pass the number of clusters, or run match.py again:\n"
            f"{listed(missing)}"
        )


def method_value(text: str) -> str:
    """Strip a value of method.txt; ValueError when it is not one line of text that UTF-8 can hold."""
    if len(text.splitlines()) != 1 or not text.strip():
        raise ValueError(f"{text!r} is not one line of text (write - for none)")
    text.encode()  # raises a ValueError of its own
    return text.strip()


def method_text(values: Sequence[str]) -> bytes:
    """Format method.txt: a line for each of METHOD_LINES. Raises ValueError as ``method_value`` does."""
    return "".join(
        f"{line}: {method_value(value)}\n" for line, value in zip(METHOD_LINES, values, strict=True)
    ).encode()


class ArchiveReport(NamedTuple):
    """A good archive: its predictions, its matching or None, images that do not open.

    ``training_scheme`` is that of method.txt.
    """

    predictions: int
    matching: Matching | None
    unreadable_images: list[str]
    training_scheme: str


def check_submission(
    path: Path,
    mode: str,
    clusters: int | None,
    expected: ExpectedPredictions | None,
    workers: int,
    show: Show = no_bar,
) -> ArchiveReport:
    """Check an archive: names, checksums, every mask, match.json and method.txt.

    ``clusters`` is the number of clusters in match.json, if it is not the number of classes.
    With ``expected``, there must be one prediction for each test image, of its size, and no other.

    Raises InputError that lists what is wrong.
    """
    source = ArchiveSource(path)
    predictions, problems = _check_names(source, expected)
    method, method_problems = _check_method(source)
    problems += method_problems
    number_of_classes = MODES[mode].classes
    matching = None
    largest = clusters or number_of_classes
    if MATCHING in source.archive().namelist():
        matching, matching_problems = _check_matching(source, number_of_classes, largest)
        problems += matching_problems
        hint = "give the number of clusters"
    elif clusters:
        problems.append(f"no {MATCHING}, without which predictions hold class ids, not clusters")
        hint = "a number of clusters needs a matching"
    else:
        hint = f"cluster ids need a matching: pack it as {MATCHING}"
    image_dir = None if expected is None else expected.image_dir
    if expected is not None:
        predictions = sorted(set(predictions) & set(expected.names))
    dataset = PredictionChunks(predictions, source.read, "", image_dir, LabelLimit(largest, hint))
    unreadable: list[str] = []
    with show("predictions", len(predictions), unit="mask") as advance:
        for chunk in load_chunks(dataset, workers):
            advance(len(chunk))
            _collect(chunk, problems, unreadable)
    if problems:
        raise InputError(f"{path}: {quantity(len(problems), 'problem')}:\n{listed(problems)}", problems)
    return ArchiveReport(len(predictions), matching, unreadable, method["Training scheme"])


def _check_names(source: ArchiveSource, expected: ExpectedPredictions | None) -> tuple[list[str], list[str]]:
    """List the predictions in an archive, sorted, and what is wrong with its names."""
    names = [info.filename for info in source.archive().infolist() if not info.is_dir()]
    predictions = {name for name in names if _PREDICTION_NAME.fullmatch(name)}
    problems = [
        f"{name}: not part of a submission, which holds <wnid>/<name>.png, {MATCHING} and {METHOD} only"
        for name in sorted(set(names) - predictions - {MATCHING, METHOD})
    ]
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    problems += [f"{name}: is in it more than once" for name in duplicates]
    if not predictions:
        problems.insert(0, "no predictions (<wnid>/<name>.png) at the archive's top level")
    if expected is not None:
        problems += [f"{name}: no such prediction" for name in expected.names if name not in predictions]
        problems += [f"{name}: no such test image" for name in sorted(predictions - set(expected.names))]
    return sorted(predictions), problems


def _check_method(source: ArchiveSource) -> tuple[dict[str, str], list[str]]:
    """Return the values of method.txt by METHOD_LINES, and what is wrong with it."""
    if METHOD not in source.archive().namelist():
        return {}, [f"no {METHOD}"]
    try:
        lines = source.read(METHOD).decode().splitlines()
    except InputError as error:
        return {}, [f"{METHOD}: {error}"]
    except UnicodeDecodeError:
        return {}, [f"{METHOD}: no UTF-8 text"]
    pairs = [line.partition(":")[::2] for line in lines]
    values = {name: value.strip() for name, value in pairs if name in METHOD_LINES and value.strip()}
    return values, [f"{METHOD}: no line '{name}: …'" for name in METHOD_LINES if name not in values]


def _check_matching(source: ArchiveSource, classes: int, clusters: int) -> tuple[Matching | None, list[str]]:
    """Return the matching of an archive, and what is wrong with it."""
    try:
        matching = Matching.of(parse_matching(source.read(MATCHING), classes, MATCHING))
        _refuse_incomplete(matching, clusters, MATCHING)
    except InputError as error:
        message = str(error)
        return None, [message if message.startswith(MATCHING) else f"{MATCHING}: {message}"]
    return matching, []
