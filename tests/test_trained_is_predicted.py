"""What is trained is what predicts: the log's last mIoU is the evaluator's, for networks of many families."""

from __future__ import annotations

import json

import pytest
from helpers.patterns import write_patterns
from helpers.training import call, log_of
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


@pytest.mark.parametrize("backbone", FAMILIES)
def test_the_logs_last_miou_is_the_evaluators(backbone, save, tmp_path):
    common = ("--save-dir", save, "--mode", 50, "--workers", 0, "--device", "cpu")
    call(
        finetune.main, save, *common, "--recipe", "semi-supervised", "--backbone", backbone, "--crop", 64,
        "--checkpoint", "none", "--output-dir", tmp_path / "run", "--batch-size", 1, "--epochs", 1,
        "--lr", 5e-4, "--layer-decay", 1, "--drop-path", 0, "--evaluate-every", 1,
    )  # fmt: skip
    call(
        predict.main, save, *common, "--model", tmp_path / "run/last.pth", "--splits", "validation",
        "--output-dir", tmp_path / "out",
    )  # fmt: skip
    call(
        evaluator.main, save, "--predict-dir", tmp_path / "out/validation", "--mode", 50, "--gt-dir",
        save / "ImageNetS50/validation-segmentation", "--output", tmp_path / "scores.json",
    )  # fmt: skip
    (last,) = log_of(tmp_path / "run")
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    for name in ("mIoU", "FMeasure", "Acc"):
        assert last[name] == pytest.approx(scores[name], abs=1e-6), name
    assert last["mIoU"] + last["FMeasure"] > 0
