"""What is trained is what predicts: the log's last mIoU is the evaluator's, for networks of many families."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from helpers.patterns import write_patterns
from prepared_set import write_lists

pytest.importorskip("timm")

from evaluation import evaluator
from methods import finetune, predict

FAMILIES = [
    "timm/test_resnet",  # batch norm
    "test_efficientnet",  # batch norm that holds its activation
    "test_byobnet",  # several branches, batch norm with activation
    "resnetv2_18",  # batch norm with activation, before each convolution
    "regnety_002",  # convolutional stem, squeeze and excitation
    "test_efficientnet_gn",  # group norm
    "test_nfnet",  # no norm
    "test_convnext",  # layer norm, convolutional stem
    "test_vit",  # a vision transformer
    "test_vit3",  # with registers
    "test_mambaout",  # channels last
]


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_patterns(folder, per_class=1)
    write_lists(folder / "lists")
    return folder


def call(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    main()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_the_logs_last_miou_is_the_evaluators(backbone, save, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "lists"))
    common = ("--save-dir", save, "--mode", 50, "--workers", 0, "--device", "cpu")
    call(
        monkeypatch, finetune.main, *common, "--recipe", "semi-supervised", "--backbone", backbone,
        "--checkpoint", "none", "--output-dir", tmp_path / "run", "--crop", 64, "--batch-size", 1,
        "--epochs", 1, "--lr", 5e-4, "--layer-decay", 1, "--drop-path", 0, "--evaluate-every", 1,
    )  # fmt: skip
    call(
        monkeypatch, predict.main, *common, "--model", tmp_path / "run/last.pth", "--splits", "validation",
        "--output-dir", tmp_path / "out",
    )  # fmt: skip
    call(
        monkeypatch, evaluator.main, "--predict-dir", tmp_path / "out/validation", "--gt-dir",
        save / "ImageNetS50/validation-segmentation", "--mode", 50, "--output", tmp_path / "scores.json",
    )  # fmt: skip
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    scores = json.loads((tmp_path / "scores.json").read_text())
    for name in ("mIoU", "FMeasure", "Acc"):
        assert last[name] == pytest.approx(scores["scores"][name], abs=1e-6), name
    assert last["mIoU"] + last["FMeasure"] > 0
