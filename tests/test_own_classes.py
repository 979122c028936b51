"""A benchmark of one's own: its class list is a mode everywhere, with its ids, names and place of the set."""

from __future__ import annotations

import argparse
import json
import re
import sys

import numpy as np
import pytest
import torch
from masksets import CHECKOUT, write_mask
from PIL import Image
from prepared_set import write_image

from command_line.networks import add_source, check_source
from evaluation import evaluator, match
from imagenets.class_ids import convert_labels, find_wnids, id2label
from imagenets.classes import MODES, benchmark_title, class_table, find_mode
from imagenets.common.errors import InputError
from imagenets.dataset import ImageNetS
from imagenets.learning.images import annotated_images, split_images
from imagenets.lists import categories_at_hand
from imagenets.scoring.counting import refuse_other_mode, warn_of_number
from imagenets.segmentation_scores import SegmentationScores

LIST = "zebra\ncat\tthe house cat\nn01443537\n"


@pytest.fixture
def pets(tmp_path):
    """A set of three classes, not in alphabetical order: two pictures with masks in validation."""
    root = tmp_path / "pets"
    root.mkdir()
    (root / "categories.txt").write_text(LIST)
    for class_id, folder in ((1, "zebra"), (2, "cat")):
        labels = np.zeros((12, 16), int)
        labels[3:9, 2:9] = class_id
        write_image(root / f"validation/{folder}/a.JPEG", 12, 16)
        write_mask(root / f"validation-segmentation/{folder}/a.png", labels)
    return root


def call(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def test_ids_are_the_lines_and_names_the_users(pets, tmp_path, monkeypatch):
    mode = find_mode(pets / "categories.txt")
    assert (mode.name, mode.classes, mode.validation) == ("pets", 3, 0)
    assert find_wnids(mode, tmp_path) == ("zebra", "cat", "n01443537")
    table = class_table(mode)
    assert [c.wnid for c in table] == [None, "zebra", "cat", "n01443537"]
    assert [c.name for c in table] == ["background", "zebra", "the house cat", "goldfish"]
    assert id2label(str(pets / "categories.txt"))[2] == "the house cat"
    assert find_mode(mode) is mode and find_mode(50) is MODES["50"]
    (pets / "animals.txt").write_text(LIST.replace("zebra", "horse"))
    other = find_mode(pets / "animals.txt")
    assert other.name == "animals" and other.identity != mode.identity
    assert (benchmark_title("50"), benchmark_title(mode.name)) == ("ImageNet-S-50", "pets")
    labels = convert_labels(np.array([0, 1, 2, 3, 1000]), mode, mode)
    assert labels.tolist() == [0, 1, 2, 3, 1000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("a\n\nb\n", "line 2: is empty"),
        ("a\nb\na\n", "line 3: 'a' is listed twice"),
        ("a/b\n", "line 1: 'a/b' is no name of a folder"),
        (".a\n", "no name of a folder that is not hidden"),
        ("background\ncat\n", "line 1: the background is label 0"),
        ("\n".join(f"c{i}" for i in range(1000)), "at most 999"),
    ],
)
def test_what_is_no_class_list(tmp_path, text, message):
    (tmp_path / "categories.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        find_mode(tmp_path / "categories.txt")


def test_a_mode_that_is_none(tmp_path, monkeypatch):
    for given in ("51", 51, tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(ValueError, match="choose 50, 300, 919, or the path of a class list"):
            find_mode(given)
    (tmp_path / "50.txt").write_text("cat\n")
    with pytest.raises(InputError, match="would be called 50"):
        find_mode(tmp_path / "50.txt")
    (tmp_path / "latin.txt").write_bytes(b"k\xe4se\n")
    with pytest.raises(InputError, match="no UTF-8 text"):
        find_mode(tmp_path / "latin.txt")
    path = tmp_path / "categories/ImageNetS_categories_im50.txt"
    path.parent.mkdir()
    path.write_text("cat\ndog\nzebra\n")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path))
    with pytest.raises(InputError, match=r"3 different classes, mode 50 has 50; .* path of its"):
        categories_at_hand("50")


def test_the_set_lies_beside_its_list(pets, tmp_path):
    mode = find_mode(pets / "categories.txt")
    assert split_images(None, mode, "validation").names == ["cat/a.JPEG", "zebra/a.JPEG"]
    with pytest.raises(ValueError, match="lies beside its class list"):
        mode.set_folder(tmp_path)
    with pytest.raises(ValueError, match="mode 50 needs the folder that holds ImageNetS50"):
        MODES["50"].set_folder(None)
    assert MODES["50"].set_folder(tmp_path) == tmp_path / "ImageNetS50"


def test_the_data_set_has_the_lists_ids(pets, recwarn):
    dataset = ImageNetS(None, pets / "categories.txt", "validation")
    assert dataset.wnids == ("zebra", "cat", "n01443537")
    items = {item["stem"] + str(item["class_id"]): item for item in dataset}
    assert {int(item["mask"].max()) for item in items.values()} == {1, 2} == {i["class_id"] for i in dataset}
    assert not [w for w in recwarn if "official number" in str(w.message)], "there is no official number"
    (pets / "validation/dog").mkdir()
    (pets / "validation/dog/a.JPEG").write_bytes(b"")
    with pytest.raises(InputError, match="1 folders are not classes of mode pets"):
        ImageNetS(None, pets / "categories.txt", "validation")


def test_scores_are_over_the_lists_labels(pets):
    labels = torch.tensor([[0, 1, 2, 3]])
    scores = SegmentationScores(str(pets / "categories.txt"))
    scores.update(labels, labels)
    assert float(scores.compute()["mIoU"]) == 100
    with pytest.raises(ValueError, match="target of picture 0 of the batch has label 4"):
        scores.update(labels, labels + 1)


def test_scripts_take_a_class_list(pets, tmp_path, monkeypatch, capsys):
    """Perfect clusters of the two classes that occur: IoU 100 for three of the four labels."""
    for folder, cluster in (("zebra", 3), ("cat", 1)):
        labels = np.asarray(Image.open(pets / f"validation-segmentation/{folder}/a.png"))[..., 0]
        write_mask(tmp_path / f"pred/{folder}/a.png", np.where(labels > 0, cluster, 0))
    monkeypatch.chdir(tmp_path)
    masks = ("--predict-dir", "pred", "--gt-dir", "pets/validation-segmentation")
    mode = ("--mode", "pets/categories.txt", "--workers", 0)
    call(match, monkeypatch, *masks, *mode, "--session-name", "m")
    assert json.loads((tmp_path / "results/m.json").read_text()) == {"0": 0, "1": 2, "2": 3, "3": 1}
    assert "the house cat" in capsys.readouterr().out
    call(evaluator, monkeypatch, *masks, *mode, "--match", "m", "--output", "s.json", "--report", "r.html")
    result = json.loads((tmp_path / "s.json").read_text())
    assert (result["mode"], result["scores"]["mIoU"]) == ("pets", 75)
    assert [c["wnid"] for c in result["classes"]] == [None, "zebra", "cat", "n01443537"]
    page = (tmp_path / "r.html").read_text()
    assert "pets evaluation" in page and "ImageNet-S-pets" not in page and "the house cat" in page


def test_nothing_is_known_of_a_lists_number_of_masks(pets, tmp_path):
    mode = find_mode(pets / "categories.txt")
    warnings = []
    warn_of_number(tmp_path, 2, mode, warnings.append)
    refuse_other_mode(pets / "validation-segmentation", mode)
    assert not warnings


def test_source_and_mode_that_do_not_go_together(pets, capsys):
    parser = argparse.ArgumentParser()
    add_source(parser)
    mode = ["--mode", str(pets / "categories.txt")]
    for given in (["--save-dir", "x", *mode], ["--mode", "50"], []):
        with pytest.raises(SystemExit) as ended:
            check_source(parser, parser.parse_args(given))
        assert ended.value.code == 2 and "--" in capsys.readouterr().err
    good = parser.parse_args(mode)
    check_source(parser, good)
    assert good.mode.name == "pets"


def test_the_pages_set_is_made_as_it_says(tmp_path, monkeypatch):
    page = (CHECKOUT / "docs/own_data.md").read_text(encoding="utf-8")
    drawn, scored = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(drawn, names)
    mode = find_mode("shapes/categories.txt")
    numbers = {split: len(split_images(None, mode, split).names) for split in ("train", "validation")}
    assert numbers == {"train": 9, "validation": 3} and len(annotated_images(None, mode).names) == 3
    exec(scored, names)
    assert float(names["scores"].compute()["mIoU"]) == 100
