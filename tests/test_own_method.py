"""methods/template.py, the start of a method of one's own: its label maps, its refusals, and its score."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from PIL import Image
from prepared_set import WNIDS, write_lists, write_set
from torch.nn.functional import interpolate

from imagenets.common.errors import InputError
from imagenets.learning.engine import segmentation
from imagenets.learning.images import Images
from imagenets.masks import decode_mask
from methods import template


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    save = tmp_path_factory.mktemp("save")
    write_set(save)
    write_lists(save / "lists")
    return save


def run(monkeypatch, save, output, *more):
    arguments = ["template.py", "--save-dir", save, "--mode", "50", "--output-dir", output, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--workers", "0", *map(str, more)])
    template.main()


def by_hand(path):
    """One picture at a time: Pillow resizes, the network runs, the label map is enlarged."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    short = min(width, height)
    small = image.resize((224 * width // short, 224 * height // short), Image.Resampling.BILINEAR)
    values = (np.asarray(small) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    picture = torch.from_numpy(values).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        labels = template.make_network().eval()(picture).argmax(1, keepdim=True)
    return interpolate(labels.float(), (height, width), mode="nearest")[0, 0].int().numpy()


def test_the_predictions_are_those_of_a_plain_loop_and_are_resumed(save, tmp_path, monkeypatch, capsys):
    network = template.make_network().insert(1, torch.nn.Dropout())  # is off
    monkeypatch.setattr(template, "make_network", lambda: network)
    output, prepared, seen = tmp_path / "out", save / "ImageNetS50", set()
    run(monkeypatch, save, output)
    lines = [f"{output}/validation: 4 predictions, 4 made now", f"{output}/test: 3 predictions, 3 made now"]
    assert capsys.readouterr().out.splitlines() == lines
    images = [*prepared.glob("validation/*/*"), *prepared.glob("test/*/*")]
    assert len(images) == 7
    for image in images:
        found, expected = (
            decode_mask(output / image.relative_to(prepared).with_suffix(".png")),
            by_hand(image),
        )
        assert (found == expected).mean() > 0.99  # rounding decides where two labels are equally good
        seen |= set(np.unique(expected))
    assert len(seen) > 5
    (output / "validation" / WNIDS[0] / "ILSVRC2012_val_00004677.png").unlink()
    run(monkeypatch, save, output)
    assert "validation: 4 predictions, 1 made now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda n: torch.zeros(n, 4, 4), r"must be integers .* not float32 of shape"),
        (lambda n: torch.zeros(n, 4, 4, dtype=torch.cfloat), r"not complex64 of shape"),
        (lambda n: torch.zeros(n, 3, 4, 4, dtype=torch.long), r"not int64 of shape \(3, 4, 4\)"),
        (lambda n: torch.zeros(n - 1, 4, 4, dtype=torch.long), r"label maps for the \d+ pictures of a batch"),
        (lambda n: torch.full((n, 4, 4), -1), r"labels 0..65535, not -1"),
        (lambda n: torch.full((n, 4, 4), 65_536), r"labels 0..65535, not 65536"),
    ],
)
def test_label_maps_that_cannot_be_written_are_refused(save, tmp_path, monkeypatch, labels, message):
    monkeypatch.setattr(template, "label_maps", lambda network, batch: labels(len(batch.pictures)))
    with pytest.raises(InputError, match=message):
        run(monkeypatch, save, tmp_path / "out", "--splits", "validation")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_split_says_what_all_processes_have_made(tmp_path):
    said = []
    two = SimpleNamespace(together=lambda write: write(), gathered=lambda made: [made, 3], first=True)
    segmentation.write_split(Images(tmp_path, "abcdefg"), tmp_path, lambda: 2, two, said.append)
    assert said == [f"{tmp_path}: 7 predictions, 5 made now"]


def test_label_maps_of_any_pictures_belong_to_a_run_too():
    method = segmentation.Method(None, {}, None, {}, "a.json", owned=("bank",))
    assert method.record.owned == ("train", "validation", "test", "images", "bank")


def test_other_weights_another_network_or_version_are_another_run(save, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(monkeypatch, save, output, "--splits", "test")
    record = json.loads((output / "template.json").read_text())
    assert record["settings"]["version"] == 1 and set(record["images"]) == {"test"}
    assert record["settings"]["size"] == "224" and not (output / "overlays").exists()
    network = template.make_network()
    network[2].bias.data[0] += 1
    other = torch.nn.Sequential(network[0], torch.nn.GELU(), template.make_network()[2])
    for changed in (network, other):
        with monkeypatch.context() as patch:
            patch.setattr(template, "make_network", lambda changed=changed: changed)
            with pytest.raises(InputError, match=r"\(network: \w+ then, \w+ now\)"):
                run(monkeypatch, save, output, "--splits", "test")
    monkeypatch.setattr(template, "VERSION", 2)
    with pytest.raises(InputError, match=r"\(version: 1 then, 2 now\)"):
        run(monkeypatch, save, output, "--splits", "test")
