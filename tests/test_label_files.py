"""Label maps become PNG files where they lie, by processes that may fall behind only so far."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from imagenets.learning.engine import label_files
from imagenets.learning.engine.label_files import LabelFile, enlarged, write_label_file, writing
from imagenets.learning.engine.label_grid import enlarged_maps, grid_size
from imagenets.masks import decode_mask

LABELS = np.arange(15, dtype=np.uint16).reshape(3, 5) * 4000


def test_a_file_has_the_labels_on_what_was_shown_and_the_nearest_beyond(tmp_path):
    path = tmp_path / "new/folders/a.png"
    write_label_file(LabelFile(path, LABELS, (9, 14), (6, 10)))
    found = decode_mask(path)
    assert found.shape == (9, 14)
    for y in range(9):
        for x in range(14):
            assert found[y, x] == LABELS[min(y, 5) // 2, min(x, 9) // 2]


def test_labels_are_not_taken_for_those_of_the_other_way_round():
    assert enlarged(LABELS, 3, 5) is LABELS
    expected = interpolate(torch.from_numpy(LABELS.astype(np.float32))[None, None], size=(5, 3))[0, 0]
    assert (enlarged(LABELS, 5, 3) == expected.numpy()).all()


def test_files_are_written_a_few_calls_behind_and_what_the_last_raise_is_raised(monkeypatch):
    pending, most = [], []

    def submit(function, files):
        pending.append(files)
        most.append(len(pending))
        return SimpleNamespace(result=wait)

    def wait():
        files = pending.pop(0)
        if isinstance(files, Exception):
            raise files

    @contextmanager
    def started(workers, begin, start):
        assert (workers, begin, start) == (2, None, "forkserver")
        yield SimpleNamespace(submit=submit)

    monkeypatch.setattr(label_files, "process_pool", started)
    with writing(2, 3, None, "forkserver") as write:
        for _ in range(10):
            write([])
        assert len(pending) == 3 and max(most) == 4
    assert not pending
    with pytest.raises(OSError, match="disk full"), writing(2, 3, None, "forkserver") as write:
        write(OSError("disk full"))


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [((7, 9), 32, (28, 36)), ((7, 9), 14, (12, 15)), ((7, 9), 8, (7, 9)), ((7, 9), 4, (7, 9))],
)
def test_the_grid_has_a_place_for_8_pixels_unless_the_map_has_more(size, stride, expected):
    assert grid_size(size, stride) == expected
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = enlarged_maps(maps, stride)
    assert found is maps if expected == size else found.shape == (2, 3, *expected)
    whole = interpolate(maps, size=expected, mode="bilinear", align_corners=False)
    assert torch.equal(found, whole)
