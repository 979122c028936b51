"""The mask format, an 8-bit RGB PNG with label = R + 256 G (docs/benchmark.md, Masks), and boundary width.

Boundary IoU is in three files: how wide a boundary is, here (``boundary_distance``); which pixels lie on one,
``imagenets/scoring/run_length.py``; the sums and scores, ``imagenets/scoring/metrics.py``.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import kornia_rs
import numpy as np

from imagenets.classes import BACKGROUND, IGNORE, MAX_LABEL
from imagenets.common.errors import InputError
from imagenets.common.whole_files import write_whole

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGBA"}
_FORMAT = "masks are 8-bit RGB PNGs with id = R + 256 G, B = 0"
# Far above any real mask (ImageNet's images have 0.2 million pixels, a few some ten millions): anything
# larger was made to fill memory or disk.
MAX_MASK_PIXELS = 100_000_000
MAX_MASK_BYTES = 64_000_000  # of the PNG
# DEFLATE cannot shrink data by more than this factor.
_MAX_DEFLATE_RATIO = 1032


def boundary_distance(height: int, width: int) -> int:
    """Boundary width d of an image, in pixels: 0.03 of its diagonal, rounded, at least 1.

    Source: Cheng et al., Boundary IoU, CVPR 2021; docs/benchmark.md, Boundary IoU.
    """
    return max(1, round(0.03 * math.sqrt(height**2 + width**2)))


def png_size(data: bytes) -> tuple[int, int]:
    """Read (height, width) in pixels from a mask's header, without decoding.

    Raises InputError if ``data`` is not an 8-bit RGB PNG, or has more pixels than MAX_MASK_PIXELS.
    """
    if not data:
        raise InputError("the file is empty; write it again")
    if not data.startswith(_SIGNATURE):
        raise InputError(f"not a PNG; {_FORMAT}")
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise InputError("the PNG is truncated; write it again")
    width, height, depth, colour_type = struct.unpack(">IIBB", data[16:26])
    if (depth, colour_type) != (8, 2):
        kind = _COLOUR_TYPES.get(colour_type, f"colour type {colour_type}")
        article = "an" if depth == 8 else "a"
        hint = "; evaluation/convert_masks.py converts them" if colour_type in (0, 3) else ""
        raise InputError(f"{article} {depth}-bit {kind} PNG; {_FORMAT}{hint}")
    if not (height and width):
        raise InputError("the PNG has no pixels; write it again")
    if height * width > MAX_MASK_PIXELS:
        raise InputError(f"{width} x {height} pixels, and a mask has at most {MAX_MASK_PIXELS:,}")
    return height, width


def check_chunks(data: bytes, height: int, width: int, pixel_bytes: int = 3) -> None:
    """Check the CRC of every chunk of a PNG: a damaged mask must not be decoded to plausible labels.

    Raises InputError, also when there is too little data for (height, width) pixels of ``pixel_bytes``.
    """
    position, compressed = len(_SIGNATURE), 0
    kind = b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise InputError("the PNG is truncated; write it again")
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise InputError("the PNG is truncated; write it again")
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[position + 4 : end - 4]) != crc:
            raise InputError("the PNG is damaged (wrong checksum); write it again")
        if kind == b"IDAT":
            compressed += length
        position = end
    if height * (pixel_bytes * width + 1) > _MAX_DEFLATE_RATIO * (compressed + 64):
        raise InputError(f"the PNG has too little data for {height} x {width} pixels; write it again")


def decode_rgb(data: bytes) -> np.ndarray:
    """Decode a mask's bytes to (H, W, 3) uint8, C-contiguous; no colour profile or gamma is applied.

    Raises InputError if ``data`` is not a complete 8-bit RGB PNG.
    """
    height, width = png_size(data)
    check_chunks(data, height, width)
    try:
        result: np.ndarray = kornia_rs.io.decode_image_png_u8(data, (height, width), "rgb")
        return result
    except Exception as error:  # the decoder raises this class itself, and no other
        raise InputError(f"the PNG is damaged ({error}); write it again") from error


def colour_problem(red: bool, blue: bool) -> str | None:
    """Say what is wrong with a mask's colours, given which channels are not empty; None if nothing is."""
    if not blue:
        return None
    if not red:
        return (
            "blue is not empty but red is: the channels look swapped, as cv2.imwrite does; "
            "save as RGB (mask[..., ::-1] before cv2.imwrite)"
        )
    return f"the blue channel is not 0; {_FORMAT}"


def decode_mask(source: Path | str | bytes, max_label: int | None = None) -> np.ndarray:
    """Decode a mask to its labels, (H, W) uint16.

    ``source`` is a file's path or a PNG's bytes. With ``max_label``, labels above it are refused, except
    1000 ("ignore").

    Raises InputError, naming the file when a path is given, for what the format forbids, OSError when the
    file cannot be read.
    """
    if not isinstance(source, bytes):
        try:
            return decode_mask(Path(source).read_bytes(), max_label)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
    rgb = decode_rgb(source)
    problem = colour_problem(bool(rgb[..., 0].any()), bool(rgb[..., 2].any()))
    if problem:
        raise InputError(problem)
    labels: np.ndarray = rgb[..., 0] | rgb[..., 1].astype(np.uint16) << 8
    if max_label is not None:
        outside = labels[(labels > max_label) & (labels != IGNORE)]
        if outside.size:
            raise InputError(f"label {outside.max()} is outside 0..{max_label} and not {IGNORE}")
    return labels


def labels_to_rgb(labels: np.ndarray) -> np.ndarray:
    """Write labels (H, W), integers 0..65535, as the mask's colours: (H, W, 3) uint8, C-contiguous.

    Raises ValueError for a label outside 0..65535.
    """
    if labels.size and not (labels.min() >= 0 and labels.max() <= MAX_LABEL):
        raise ValueError(f"labels {labels.min()}..{labels.max()} do not fit into 0..{MAX_LABEL}")
    rgb = np.zeros((*labels.shape, 3), np.uint8)
    low_and_high = labels.astype("<u2", order="C")[..., None].view(np.uint8)
    rgb[..., 0], rgb[..., 1] = low_and_high[..., 0], low_and_high[..., 1]
    return rgb


def encode_mask(labels: np.ndarray, path: Path | str) -> None:
    """Write labels (H, W), integers 0..65535, as a mask that ``decode_mask`` reads back unchanged.

    The file appears under its name only when complete; its folders are made.

    Raises ValueError for another shape or type, a label outside 0..65535 or no pixels, OSError when the
    file cannot be written.
    """
    from PIL import Image  # not at the top: reading masks does not need it

    labels = np.asarray(labels)
    _check_label_array(labels)
    if labels.size == 0:
        raise ValueError(f"labels of shape {labels.shape} have no pixels")
    content = io.BytesIO()
    Image.fromarray(labels_to_rgb(labels)).save(content, "PNG")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def _check_label_array(labels: np.ndarray) -> None:
    if labels.ndim != 2:
        raise ValueError(f"labels have shape {labels.shape}; pass one image's, (height, width)")
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels have dtype {labels.dtype}; they must be integers (logits need an argmax first)"
        )


def resize_mask(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize labels (H, W) to (height, width) in pixels, same dtype, by nearest neighbour.

    Anything smoother would invent labels between two ids. Pixel centres lie at half-integers: output row y
    is input row floor((y + 1/2) · H / height), as in Pillow and in PyTorch's ``nearest-exact``, except
    for rounding.

    Raises ValueError for another shape or type, or a size below 1.
    """
    labels = np.asarray(labels)
    _check_label_array(labels)
    if height < 1 or width < 1 or labels.size == 0:
        raise ValueError(f"cannot resize {labels.shape} to ({height}, {width}): no pixels")
    result: np.ndarray = labels[_nearest(labels.shape[0], height)[:, None], _nearest(labels.shape[1], width)]
    return result


def _nearest(old: int, new: int) -> np.ndarray:
    """Index of the old pixel under the centre of each new one; in integers, so without rounding."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def target_mask(labels: np.ndarray, class_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Split labels (H, W) for one class: its object and the void, both (H, W) bool.

    Void pixels (label 1000) are neither object nor background, and should not be counted. An object that is
    not in the image has no pixels. Raises ValueError if ``class_id`` is not the id of a class.
    """
    labels = np.asarray(labels)
    _check_label_array(labels)
    if not BACKGROUND < class_id <= MAX_LABEL or class_id == IGNORE:
        raise ValueError(f"{class_id} is no class id; classes are 1..N, {IGNORE} is void")
    return labels == class_id, labels == IGNORE
