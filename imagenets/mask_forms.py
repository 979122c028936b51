"""Masks in the forms of other tools, and the conversion of whole folders."""

from __future__ import annotations

import io
import json
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagenets.class_ids import change_ignore_index
from imagenets.classes import IGNORE, MAX_LABEL
from imagenets.common.errors import InputError, listed, problem_of, quantity
from imagenets.common.progress import Show, no_bar
from imagenets.common.whole_files import whole_folder
from imagenets.images import find_image, mask_sizes
from imagenets.masks import MAX_MASK_PIXELS, check_chunks, decode_mask, encode_mask, resize_mask

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _PALETTE = 0, 3  # PNG's colour types
RECORD = "conversion.json"  # beside the converted masks


class Form(NamedTuple):
    """How a mask is stored: the file's suffix, its largest label, and the usual label of ignored pixels."""

    suffix: str
    largest: int
    ignore: int


FORMS = {
    "rgb": Form(".png", MAX_LABEL, IGNORE),  # the benchmark's own
    "gray16": Form(".png", MAX_LABEL, IGNORE),
    "gray8": Form(".png", 255, 255),  # as mmsegmentation and Hugging Face have label maps
    "npy": Form(".npy", MAX_LABEL, IGNORE),
}


def read_labels(path: Path, form: str, ignore: int | None = None) -> np.ndarray:
    """Read a mask in one of FORMS: labels (H, W), integers, with 1000 for ignored pixels.

    ``ignore`` is their label in the file (default: the form's usual one; the benchmark's own form has only
    1000). ``gray8`` also reads palette PNGs, whose indices are the labels.

    Raises InputError, naming the file, if it does not have the form, OSError if it cannot be read.
    """
    if form == "rgb":
        return decode_mask(path)
    labels = _read_array(path) if form == "npy" else _read_gray(path, 8 if form == "gray8" else 16)
    ignore = FORMS[form].ignore if ignore is None else ignore
    try:
        labels = change_ignore_index(labels, ignore, IGNORE)
    except ValueError as error:
        raise InputError(f"{path}: {error}; name the label that ignored pixels have") from error
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"{path}: label {outside} is neither in 0..{MAX_LABEL} nor {ignore}, for ignored")
    return labels


def write_labels(labels: np.ndarray, path: Path, form: str, ignore: int | None = None) -> None:
    """Write labels (H, W) with 1000 for ignored pixels in one of FORMS; ``read_labels`` reads them back.

    Arrays are int64 if ``ignore`` is negative, else uint16. The folder must exist.

    Raises InputError, naming the file, for labels that the form cannot hold, OSError.
    """
    if form == "rgb":
        encode_mask(labels, path)
        return
    ignore = FORMS[form].ignore if ignore is None else ignore
    try:
        changed = change_ignore_index(labels.astype(np.int64), IGNORE, ignore)
    except ValueError as error:
        raise InputError(f"{path}: {error}; choose another label for ignored pixels") from error
    largest = FORMS[form].largest
    if changed.max() > largest:
        raise InputError(f"{path}: label {changed.max()}, and {form} holds 0..{largest}; take gray16 or npy")
    if form == "npy":
        np.save(path, changed if ignore < 0 else changed.astype(np.uint16))
    else:
        Image.fromarray(changed.astype(np.uint8 if form == "gray8" else np.uint16)).save(path, "PNG")


def _read_array(path: Path) -> np.ndarray:
    try:
        labels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a NumPy array, or truncated ({error}); write it again") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu":
        shape, dtype = getattr(labels, "shape", "?"), getattr(labels, "dtype", type(labels).__name__)
        raise InputError(f"{path}: an array {shape} of {dtype}; labels are (height, width) integers")
    _check_pixels(path, *labels.shape)
    return np.array(labels)


def _read_gray(path: Path, depth: int) -> np.ndarray:
    data = path.read_bytes()
    if not data.startswith(_SIGNATURE) or len(data) < 26:
        raise InputError(f"{path}: not a PNG, or truncated; write it again")
    width, height, found, colour_type = struct.unpack(">IIBB", data[16:26])
    if not ((found, colour_type) == (depth, _GRAY) or (depth == 8 and colour_type == _PALETTE)):
        kind = {_GRAY: "grayscale", _PALETTE: "palette"}.get(colour_type, "colour")
        raise InputError(f"{path}: a PNG of {found} bits, {kind}; gray{depth} is {depth} bits, grayscale")
    _check_pixels(path, height, width)
    try:
        check_chunks(data, height, width, depth // 8)
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: the PNG is damaged ({error}); write it again") from error


def _check_pixels(path: Path, height: int, width: int) -> None:
    if not 0 < height * width <= MAX_MASK_PIXELS:
        raise InputError(f"{path}: {width} x {height} pixels, and a mask has 1 to {MAX_MASK_PIXELS:,}")


class Converted(NamedTuple):
    """What ``convert_folder`` did: masks in all, and how many of them were resized."""

    masks: int
    resized: int


def convert_folder(
    source: Path,
    target: Path,
    source_form: str,
    target_form: str,
    ignore: int | None = None,
    workers: int = 4,
    show: Show = no_bar,
    size_of: Path | None = None,
) -> Converted:
    """Convert every mask below ``source``; ``target`` gets the same subfolders, and appears only when
    complete.

    ``ignore`` is the label of ignored pixels outside the benchmark's own form. Each mask is resized to its
    namesake in ``size_of``, a folder of masks or images with the same subfolders, by nearest neighbour.
    RECORD in ``target`` says what was done.

    Raises InputError, which lists them, when masks cannot be converted, when one is transposed, has no
    namesake, when there are no masks, or when ``target`` exists already.
    """
    names = _mask_names(source, FORMS[source_form].suffix)
    with whole_folder(target) as folder:
        for parent in {name.parent for name in names}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
        resized: list[Path] = []

        def convert(name: Path) -> str | None:
            made = (folder / name).with_suffix(FORMS[target_form].suffix)
            try:
                labels = read_labels(source / name, source_form, ignore)
                sized = labels if size_of is None else _resized(labels, source / name, size_of, name)
                write_labels(sized, made, target_form, ignore)
            except InputError as error:
                return str(error).replace(str(made), str(source / name))
            except OSError as error:
                if error.filename is None or str(error.filename).startswith(str(folder)):
                    raise  # the disk, not a mask
                return problem_of(error)
            if sized.shape != labels.shape:
                resized.append(name)
            return None

        with ThreadPoolExecutor(workers) as pool, show("masks", len(names), unit="mask") as advance:
            problems = []
            for problem in pool.map(convert, names):
                problems += [problem] if problem else []
                advance(1)
        if problems:
            what = f"{quantity(len(problems), 'mask')} cannot be converted; nothing was written"
            raise InputError(f"{what}:\n{listed(problems)}")
        record = {"from": source_form, "to": target_form, "masks": len(names), "resized": len(resized)}
        if size_of is not None:
            record["size_of"] = str(size_of)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Converted(len(names), len(resized))


def _mask_names(source: Path, suffix: str) -> list[Path]:
    """List the masks below a folder, relative to it, sorted. Raises InputError when there are none."""
    found = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    visible = sorted(name for name in found if not any(part.startswith(".") for part in name.parts))
    names = [name for name in visible if name.suffix == suffix]
    if names:
        return names
    if not visible:
        raise InputError(f"{source}: no such folder, or no {suffix} files in it")
    endings = Counter(name.suffix or "no ending" for name in visible)
    others = ", ".join(f"{number} with {ending}" for ending, number in endings.most_common(3))
    raise InputError(
        f"{source}: no {suffix} files in it; there are {quantity(len(visible), 'file')}, {others}"
    )


def _resized(labels: np.ndarray, path: Path, size_of: Path, name: Path) -> np.ndarray:
    """Resize labels (h, w) to their namesake. Raises InputError if they are transposed."""
    height, width = labels.shape
    sizes = _sizes_of(size_of, name)
    if labels.shape in sizes:
        return labels
    new_height, new_width = sizes[0]
    if (height - width) * (new_height - new_width) < 0:
        raise InputError(
            f"{path}: {width} x {height} pixels, and {size_of / name.with_suffix('')} has {new_width} x "
            f"{new_height}: it is transposed; save it as (height, width)"
        )
    return resize_mask(labels, new_height, new_width)


def _sizes_of(folder: Path, name: Path) -> list[tuple[int, int]]:
    """Sizes (height, width) that fit a mask's namesake, a mask or an image; its header is read."""
    path = find_image(folder, name.with_suffix(".png").as_posix())
    try:
        with Image.open(path) as image:
            return mask_sizes(image)
    except (SyntaxError, ValueError, Image.DecompressionBombError, OSError) as error:
        raise InputError(f"{path}: not an image, or damaged ({error}); get it again") from error
