"""Overlays of label maps: which are drawn, with which names, and what is told of bad files."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from prepared_set import write_image

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.engine import label_overlays
from imagenets.learning.engine.label_overlays import class_names, overlay_paths, write_label_overlays
from imagenets.learning.images import Images
from imagenets.masks import encode_mask

LABELS = np.repeat([0, 3, 1, 1, 1, 1000], 4)[None].repeat(16, 0)  # 3 is rarer than 1


def files_in(folder, count):
    """Images, their label maps below ``out``, and where the overlays belong."""
    names = [f"n1/{number}.b.JPEG" for number in range(count)]
    targets = [folder / "out" / f"n1/{number}.b.png" for number in range(count)]
    for name, target in zip(names, targets, strict=True):
        write_image(folder / "in" / name, *LABELS.shape)
        target.parent.mkdir(parents=True, exist_ok=True)
        encode_mask(LABELS, target)
    return Images(folder / "in", names), targets, overlay_paths(targets, folder / "out")


def test_only_missing_overlays_are_drawn_and_counted(tmp_path):
    images, targets, overlays = files_in(tmp_path, 3)
    assert overlays == [tmp_path / f"out/overlays/n1/{number}.b.jpg" for number in range(3)]
    overlays[1].parent.mkdir(parents=True)
    overlays[1].write_bytes(b"kept")
    advanced = []

    @contextmanager
    def bar(what, number, unit):
        advanced.append((what, number, unit))
        yield advanced.append

    assert write_label_overlays(images, targets, overlays, None, "cluster", 0, bar) == 2
    assert overlays[1].read_bytes() == b"kept"
    assert advanced == [("overlays", 2, "images"), 1, 1]
    with Image.open(overlays[2]) as drawn:
        assert drawn.format == "JPEG" and drawn.height > LABELS.shape[0], "the legend is below the picture"
    assert write_label_overlays(images, targets, overlays, None, "cluster", 0) == 0


@pytest.mark.parametrize(
    ("names", "legend"),
    [
        (None, ["cluster 1", "cluster 3"]),
        (["background", "cat", "dog"], ["cat", "cluster 3"]),
        (["background", "cat", "dog", "owl"], ["cat", "owl"]),
    ],
)
def test_labels_have_their_names_or_numbers_the_largest_first(tmp_path, monkeypatch, names, legend):
    groups = []
    monkeypatch.setattr(label_overlays, "with_legend", lambda drawn, of, size: groups.extend(of) or drawn)
    images, targets, overlays = files_in(tmp_path, 1)
    write_label_overlays(images, targets, overlays, names, "cluster", 0)
    assert [name for group in groups for name, _ in group.entries] == legend


def test_bad_files_are_told_at_the_end_and_the_others_drawn(tmp_path):
    images, targets, overlays = files_in(tmp_path, 4)
    targets[0].write_bytes(b"no label map")
    (images.folder / images.names[1]).unlink()
    encode_mask(LABELS[:8], targets[2])
    with pytest.raises(InputError, match=r"^3 overlays cannot be drawn:\n") as told:
        write_label_overlays(images, targets, overlays, None, "cluster", 0)
    assert [path.exists() for path in overlays] == [False, False, False, True]
    for path in (targets[0], images.folder / images.names[1], images.folder / images.names[2]):
        assert str(path) in str(told.value)


def test_names_are_those_of_classes_that_are_known_here(monkeypatch):
    known = [SimpleNamespace(name="background"), SimpleNamespace(name="cat")]
    monkeypatch.setattr(label_overlays, "mode_table", lambda mode: known)
    assert class_names(MODES["50"]) == ["background", "cat"]
    assert class_names(None) is None
    monkeypatch.setattr(label_overlays, "mode_table", Mock(side_effect=InputError("the list is not here")))
    assert class_names(MODES["50"]) is None
