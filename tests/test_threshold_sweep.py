"""A threshold chosen on validation: the best of all, found once, kept as numbers and as a chart."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagenets.learning.engine import threshold_sweep
from imagenets.learning.engine.inference import Running
from imagenets.learning.engine.threshold_sweep import CHART, PARTS, SCORES, Sweep, best_threshold, draw_sweep
from imagenets.learning.images import Images, Reading
from imagenets.learning.processes import Processes

RUNNING = Running(Processes(0, 1, torch.device("cpu")))
READING = Reading((0.5,) * 3, (0.5,) * 3)
SWEEP = Sweep([0.1, 0.2, 0.3, 0.4], [5.0, 7.5, 7.5, 2.0], [4, 3, 2, 1])


def test_it_is_found_once_and_what_it_was_counted_from_goes(tmp_path, monkeypatch):
    """Masks go with the images; what is not kept is neither listed nor counted a second time."""
    images, calls = Images(tmp_path, ["a.JPEG"]), []

    def store(of, folder, identity, step, reading, running, with_masks):
        calls.append((of, folder, identity, step, reading, running, with_masks))
        folder.mkdir()
        (folder / "part.npz").touch()
        return [folder / "part.npz"]

    def score(of, files):
        assert of is images and files == [tmp_path / PARTS / "part.npz"] and files[0].exists()
        return SWEEP

    monkeypatch.setattr(threshold_sweep, "store_arrays", store)
    more = ("known", lambda: images, "step", score, "the attention", READING, RUNNING)
    assert best_threshold(tmp_path, *more) == 0.2
    assert Sweep([0.1, 0.2], np.array([1.0, 3.0])).best == 0.2
    assert calls == [(images, tmp_path / PARTS, "known", "step", READING, RUNNING, True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([SCORES, CHART])
    assert json.loads((tmp_path / SCORES).read_text()) == {
        "note": "chosen with the ground-truth masks of validation",
        "thresholds": SWEEP.thresholds,
        "mIoU": SWEEP.miou,
        "best": 0.2,
        "matched_images": SWEEP.matched_images,
    }
    (tmp_path / SCORES).write_text('{"best": 0.75}')
    assert best_threshold(tmp_path, *more) == 0.75 and len(calls) == 1


def test_only_the_first_process_scores_and_all_have_its_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(threshold_sweep, "store_arrays", lambda *of, **more: [])

    class Second:
        """The second of two processes, to which the first sends what it has found."""

        sent = iter([False, None, 0.3])

        def from_first(self, make):
            return next(self.sent)

        def together(self, check):
            return check()

    running = Running(Second())
    found = best_threshold(tmp_path, "known", list, "step", pytest.fail, "x", READING, running)
    assert found == 0.3 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("matched", [None, [4, 3, 2, 1]])
def test_matched_images_have_a_panel_where_there_are_any(matched):
    sweep = Sweep(SWEEP.thresholds, SWEEP.miou, matched)
    with Image.open(io.BytesIO(draw_sweep(sweep, "the attention"))) as chart:
        assert chart.format == "PNG" and chart.width == 770
        assert chart.height == round(2.2 * 110) * (1 if matched is None else 2)
