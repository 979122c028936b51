"""The baseline: foregrounds, features, clusters and predictions, on pictures drawn by the demo."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.processes import children, wait_for, wait_until_gone
from masksets import write_mask
from PIL import Image

from command_line import progress
from demo.pictures import CLASSES, draw
from imagenets.classes import IGNORE, MODES
from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import Running
from imagenets.learning.images import Images, list_images, shuffled
from imagenets.learning.kmeans import clusters as clustering
from imagenets.learning.kmeans.features import colour_and_texture
from imagenets.learning.kmeans.foregrounds import by_hand, resized_mask
from imagenets.learning.processes import Processes
from imagenets.masks import decode_mask
from methods import kmeans, trivial

CHECKOUT = Path(__file__).resolve().parents[1]
CLASS_COUNT = 6
# Of the demo's classes, these look least alike: hue and texture differ.
LOOKS = (0, 13, 26, 39, 42, 8)


def overlap(found, labels):
    valid = labels != IGNORE
    truth = (labels > 0) & valid
    return (found & truth).sum() / ((found & valid) | truth).sum()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    return [draw(rng, i) for i in range(0, CLASSES, 2)]


def test_foreground_is_where_the_objects_are(pictures):
    overlaps = [overlap(by_hand(picture.image), picture.labels) for picture in pictures]
    middle = []
    for _, labels in pictures:
        height, width = labels.shape
        box = np.zeros(labels.shape, bool)
        box[height // 4 : -height // 4, width // 4 : -width // 4] = True
        middle.append(overlap(box, labels))
    assert np.mean(overlaps) > 0.8 > 0.5 > np.mean(middle)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (40, 40)])
def test_foreground_of_a_picture_of_one_colour_is_some_of_it(shape):
    found = by_hand(np.full((*shape, 3), 200, np.uint8))
    assert found.shape == shape and found.any()


def test_foreground_does_not_depend_on_what_was_asked_before(pictures):
    first = by_hand(pictures[0].image)
    by_hand(pictures[1].image)
    cv2.setRNGSeed(7)
    assert (by_hand(pictures[0].image) == first).all()


def test_enlarging_keeps_a_speck():
    speck = np.zeros((50, 50), bool)
    speck[20, 30] = True
    for size in ((73, 51), (400, 500)):
        assert resized_mask(speck, size, cv2.INTER_LINEAR).any()
    assert not resized_mask(np.zeros((5, 5), bool), (9, 9), cv2.INTER_LINEAR).any()


def test_features_of_a_turned_picture_are_nearer_than_those_of_other_classes(pictures):
    masks = [by_hand(picture.image) for picture in pictures]
    vectors = [colour_and_texture(p.image, mask) for p, mask in zip(pictures, masks, strict=True)]
    assert vectors[0].shape == (198,) and vectors[0].dtype == np.float32
    for picture, mask, vector in zip(pictures, masks, vectors, strict=True):
        turned = colour_and_texture(
            np.ascontiguousarray(np.rot90(picture.image)), np.ascontiguousarray(np.rot90(mask))
        )
        others = [np.linalg.norm(turned - other) for other in vectors if other is not vector]
        assert np.linalg.norm(turned - vector) < 0.5 * min(others)


@pytest.mark.parametrize("shape", [(1, 1), (2, 200), (30, 3)])
def test_features_of_tiny_foregrounds_are_numbers(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, bool)
    mask[0, 0] = True
    assert np.isfinite(colour_and_texture(image, mask)).all()


def save(picture, path, size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture.image)
    (image if size is None else image.resize(size)).save(path, "JPEG", quality=90)


def make_set(root, folders, train=8, validation=3):
    """An ImageNetS50 of few classes; gives the class of each validation image by its name."""
    rng = np.random.default_rng(0)
    truth = {}
    for of_class, (look, folder) in enumerate(zip(LOOKS, folders, strict=True)):
        for i in range(train):
            save(draw(rng, look), root / "train" / folder / f"t{of_class}_{i}.JPEG")
        for i in range(validation):
            name = f"v{of_class}_{i}"
            truth[name] = of_class
            # One image is larger than what the baseline looks at.
            save(
                draw(rng, look), root / "validation" / folder / f"{name}.JPEG", (700, 401) if i == 0 else None
            )
    return truth


FOLDERS = [f"n{i:08d}" for i in range(CLASS_COUNT)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    save_dir = tmp_path_factory.mktemp("save")
    truth = make_set(save_dir / "ImageNetS50", FOLDERS)
    return save_dir, truth


def call(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def options(save_dir, output, *more):
    return (
        "--save-dir", save_dir, "--mode", "50", "--clusters", str(CLASS_COUNT), "--output-dir", output,
        "--workers", "0", *more,
    )  # fmt: skip


def predictions(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def clusters_by_name(folder):
    """The one cluster of each prediction, by the image's name."""
    found = {}
    for path in folder.rglob("*.png"):
        (cluster,) = set(np.unique(decode_mask(path))) - {0}
        found[path.stem] = int(cluster)
    return found


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    save_dir, _ = prepared
    output = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--workers" if a == "--workers" else a for a in map(str, options(save_dir, output))]
    arguments[arguments.index("--workers") + 1] = "2"
    script = [sys.executable, str(CHECKOUT / "methods" / "kmeans.py")]
    result = subprocess.run([*script, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "18 predictions, 18 made now" in result.stdout
    return output


def test_clusters_are_the_classes_and_masks_fit_their_images(prepared, finished):
    save_dir, truth = prepared
    found = clusters_by_name(finished / "validation")
    assert set(found) == set(truth) and set(found.values()) <= set(range(1, CLASS_COUNT + 1))
    same_class = [(truth[a] == truth[b]) == (found[a] == found[b]) for a in truth for b in truth if a < b]
    assert np.mean(same_class) > 0.93  # one cluster for all: 0.12; at random: 0.75
    for path in (finished / "validation").rglob("*.png"):
        image = save_dir / "ImageNetS50" / path.relative_to(finished).with_suffix(".JPEG")
        with Image.open(image) as opened:
            assert decode_mask(path).shape == opened.size[::-1]


def test_same_bytes_from_one_process_and_with_other_class_folders(prepared, finished, tmp_path, monkeypatch):
    """No class folder is information: when all are renamed, each image keeps its very prediction."""
    save_dir, _ = prepared
    shuffled = tmp_path / "save" / "ImageNetS50"
    for split in ("train", "validation"):
        for folder, other in zip(FOLDERS, [FOLDERS[i] for i in (3, 5, 0, 1, 2, 4)], strict=True):
            shutil.copytree(save_dir / "ImageNetS50" / split / folder, shuffled / split / other)
    call(monkeypatch, kmeans, *options(tmp_path / "save", tmp_path / "out"))
    assert clusters_by_name(tmp_path / "out/validation") == clusters_by_name(finished / "validation")
    by_name = {Path(name).name: content for name, content in predictions(tmp_path / "out").items()}
    assert by_name == {Path(name).name: content for name, content in predictions(finished).items()}


def test_images_of_a_class_do_not_stand_together(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(50):
            (tmp_path / folder / f"{folder}_{i}.JPEG").touch()
    (tmp_path / "a" / ".hidden.JPEG").touch()
    (tmp_path / "a" / "notes.txt").touch()
    listed = shuffled(list_images(tmp_path))
    assert len(listed) == 100
    assert 30 < sum(x[0] != y[0] for x, y in itertools.pairwise(listed)) < 70


def test_a_stopped_run_goes_on_and_ends_alike(prepared, finished, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    (output / "centres.npy").unlink()
    for path in sorted((output / "validation").rglob("*.png"))[:7]:
        path.unlink()
    call(monkeypatch, kmeans, *options(prepared[0], output))
    assert "18 predictions, 7 made now" in capsys.readouterr().out
    assert predictions(output) == predictions(finished)


def test_without_a_terminal_it_says_now_and_then_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "NEXT_LINE", 0.0)
    make_set(tmp_path / "save/ImageNetS50", FOLDERS, train=1, validation=1)
    call(monkeypatch, kmeans, *options(tmp_path / "save", tmp_path / "out"))
    last = {line.partition(":")[0]: line for line in capsys.readouterr().err.splitlines()}
    assert set(last) == {"train", "validation"}
    assert all("(100 %)" in line for line in last.values())


def test_killed_runs_leave_no_process_and_nothing_half_made(prepared, finished, tmp_path, monkeypatch):
    output = tmp_path / "out"
    arguments = [*map(str, options(prepared[0], output))]
    arguments[arguments.index("--workers") + 1] = "2"
    script = [sys.executable, str(CHECKOUT / "methods" / "kmeans.py"), *arguments]
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL)
    wait_for(lambda: process.poll() is not None or len(children(process.pid)) == 2)
    workers = children(process.pid)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(workers) == 2
    wait_until_gone(workers)
    call(monkeypatch, kmeans, *options(prepared[0], output))
    assert predictions(output) == predictions(finished)


def test_another_run_is_not_mixed_in(prepared, finished, tmp_path, monkeypatch):
    before = predictions(finished)
    with pytest.raises(InputError, match=r"seed: 0 then, 1 now.*another output folder"):
        call(monkeypatch, kmeans, *options(prepared[0], finished, "--seed", "1"))
    assert predictions(finished) == before
    (tmp_path / "out" / "validation").mkdir(parents=True)
    with pytest.raises(InputError, match="validation: not made by this script"):
        call(monkeypatch, kmeans, *options(prepared[0], tmp_path / "out"))


def test_a_run_that_came_to_nothing_is_no_obstacle(prepared, finished, tmp_path, monkeypatch):
    output = tmp_path / "out"
    shutil.copytree(finished / "features", output / "features")
    with pytest.raises(InputError, match="cannot make"):
        call(monkeypatch, kmeans, *options(prepared[0], output, "--clusters", "49"))
    call(monkeypatch, kmeans, *options(prepared[0], output))
    assert predictions(output) == predictions(finished)


def test_features_of_other_runs_are_used_again(prepared, finished, tmp_path, monkeypatch):
    before = sorted((finished / "features").iterdir())
    arguments = options(prepared[0], tmp_path / "out", "--seed", "1", "--features-dir", finished / "features")
    monkeypatch.setattr(clustering, "write_clusters", lambda *arguments: 0)
    monkeypatch.setattr(kmeans, "write_clusters", lambda *arguments: 0)
    call(monkeypatch, kmeans, *arguments)
    assert sorted((finished / "features").iterdir()) == before and not (tmp_path / "out/features").exists()
    assert np.load(tmp_path / "out" / "centres.npy").shape == (CLASS_COUNT, 198)


def test_a_changed_image_is_looked_at_again(tmp_path):
    save(draw(np.random.default_rng(0), 0), tmp_path / "a" / "x.JPEG")
    images, running = Images(tmp_path, ["a/x.JPEG"]), Running(Processes(0, 1, torch.device("cpu")))
    made = []
    for _ in range(3):
        before = set((tmp_path / "store").glob("*.npz"))
        clustering.store_features(clustering.handmade(), images, tmp_path / "store", "", running)
        made.append(len(set((tmp_path / "store").glob("*.npz")) - before))
        if len(made) == 2:
            save(draw(np.random.default_rng(1), 1), tmp_path / "a" / "x.JPEG")
    assert made == [1, 0, 1]


def test_bad_images_are_named_together(tmp_path, monkeypatch):
    save_dir = tmp_path / "save"
    make_set(save_dir / "ImageNetS50", FOLDERS, train=1, validation=1)
    bad = sorted((save_dir / "ImageNetS50" / "train").rglob("*.JPEG"))[3:6]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:500])
    bad[2].write_bytes(b"<html>")
    with pytest.raises(InputError) as caught:
        call(monkeypatch, kmeans, *options(save_dir, tmp_path / "out"))
    assert "3 images are bad" in str(caught.value)
    assert all(str(path) in str(caught.value) for path in bad)
    assert not predictions(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--splits", "test"), "test: no such folder"),
        (("--mode", "300"), "ImageNetS300: neither validation nor test"),
        (("--train-images", "5"), "5 training images cannot make 6 clusters"),
    ],
)
def test_what_cannot_be_done_is_told(prepared, tmp_path, monkeypatch, change, message):
    with pytest.raises(InputError, match=message):
        call(monkeypatch, kmeans, *options(prepared[0], tmp_path / "out", *change))


@pytest.mark.parametrize(
    "wrong",
    [
        ("--backbone", "resnet50"),
        ("--checkpoint", "x.pth"),
        ("--train-images", "0"),
        ("--workers", "-1"),
        ("--seed", "-1"),
        ("--clusters", "65536"),
        ("--save-dir", ""),
        ("--output-dir", ""),
        ("--features-dir", ""),
        ("--weights", "ema"),
        ("--size", "256"),
        ("--foreground", "features"),
    ],
)
def test_wrong_usage_exits_with_2(prepared, tmp_path, monkeypatch, wrong):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, kmeans, *options(prepared[0], tmp_path / "out", *wrong))
    assert caught.value.code == 2 and not (tmp_path / "out").exists()


def blobs(rows, seed=0):
    """Points (rows, 5) around 4 centres, and which centre each has."""
    rng = np.random.default_rng(seed)
    centres = np.eye(4, 5) * 8
    of = rng.integers(4, size=rows)
    return centres[of] + rng.normal(0, 0.5, (rows, 5)), of, centres


def saved(points, folder):
    """Features as store_features keeps them, 100 a file."""
    chunks = []
    for i, start in enumerate(range(0, len(points), 100)):
        chunks.append(folder / f"{i}.npz")
        np.savez(chunks[-1], features=points[start : start + 100].astype(np.float16))
    return chunks


@pytest.mark.parametrize("lloyd_images", [10_000, 60])
def test_centres_of_all_images_with_and_without_mini_batches(tmp_path, monkeypatch, lloyd_images):
    """The centres are the means of all points near them, not those of the first LLOYD_IMAGES alone."""
    monkeypatch.setattr(clustering, "LLOYD_IMAGES", lloyd_images)
    points, of, _ = blobs(2000)
    points[100:] += 1  # what comes later lies elsewhere
    chunks = saved(points, tmp_path)
    centres = clustering.fit_centres(chunks, 4, 4, seed=0)
    assert centres.tobytes() == clustering.fit_centres(chunks, 4, 4, seed=0).tobytes()
    means = np.stack([points[of == k].mean(axis=0) for k in range(4)])
    nearest = np.linalg.norm(centres[:, None] - means, axis=2)
    assert sorted(nearest.argmin(axis=1)) == [0, 1, 2, 3] and nearest.min(axis=1).max() < 0.2
    distances = np.linalg.norm(points[:, None] - centres, axis=2)
    found = clustering.nearest_centres(torch.from_numpy(points).float(), torch.from_numpy(centres))
    np.testing.assert_allclose(found[0], distances.min(axis=1), rtol=1e-5)
    assert (found[1].numpy() == distances.argmin(axis=1)).all()


def noted(monkeypatch, name, method):
    """What one of scikit-learn's k-means is asked for and given: its settings, and rows by call."""
    kind, notes = getattr(clustering, name), []

    class Noting(kind):
        pass

    def noting(self, rows):
        notes.append((self.get_params(), rows.copy()))
        return getattr(kind, method)(self, rows)

    setattr(Noting, method, noting)
    monkeypatch.setattr(clustering, name, Noting)
    return notes


def test_what_k_means_is_asked_for(tmp_path, monkeypatch):
    """Lloyd's on the first images; then five times all of them, in the files' order, from its centres."""
    assert clustering.LLOYD_IMAGES == 100_000
    monkeypatch.setattr(clustering, "LLOYD_IMAGES", 250)
    threads = []
    limits = clustering.threadpool_limits
    monkeypatch.setattr(clustering, "threadpool_limits", lambda count: threads.append(count) or limits(count))
    lloyd, batches = noted(monkeypatch, "KMeans", "fit"), noted(monkeypatch, "MiniBatchKMeans", "partial_fit")
    points = blobs(330)[0]
    chunks = saved(points, tmp_path)
    found = clustering.fit_centres(chunks, 4, 3, seed=8)
    points = points.astype(np.float16).astype(np.float32)
    ((settings, rows),) = lloyd
    assert [settings[name] for name in ("n_clusters", "n_init", "random_state")] == [4, 3, 8]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, points[:250])
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in batches]), np.tile(points, (5, 1)))
    assert [len(rows) for _, rows in batches] == [100, 100, 100, 30] * 5
    settings, _ = batches[0]
    assert [settings[name] for name in ("n_clusters", "n_init", "random_state")] == [4, 1, 8]
    assert settings["init"].shape == found.shape == (4, 5)
    assert threads == [1]
    monkeypatch.setattr(clustering, "LLOYD_IMAGES", 330)
    clustering.fit_centres(chunks, 4, 3, seed=8)
    assert len(lloyd) == 2 and len(batches) == 20, "no mini-batches where Lloyd's has all images"


def test_as_many_images_as_clusters_are_enough(tmp_path):
    assert clustering.fit_centres(saved(np.eye(3), tmp_path), 3, 1, seed=0).shape == (3, 3)
    with pytest.raises(InputError, match="3 training images cannot make 4 clusters"):
        clustering.fit_centres(saved(np.eye(3), tmp_path), 4, 1, seed=0)


def test_a_radius_leaves_out_the_farthest_of_each_cluster(tmp_path):
    """Of 100 images at 1, 2 … 100 the radius of all but a fifth is between the 80th and the 81st."""
    away = np.arange(1, 101) / 4
    points = np.concatenate((np.outer(away, (1, 0)), np.outer(2 * away, (0, 1)) - (50, 0)))
    shuffle = np.random.default_rng(0).permutation(200)
    centres = np.array([(0, 0), (-50, 0), (900, 900)])
    found = clustering.radii(saved(points[shuffle], tmp_path), centres, 0.2)
    assert found.dtype == np.float32
    assert found.tolist() == [pytest.approx((80 + 0.2) / 4), pytest.approx((80 + 0.2) / 2), 0]


def test_labels_of_a_batch_are_the_nearest_clusters_within_their_radius(monkeypatch):
    """On the foreground; a foreground as far away as the radius keeps its cluster."""
    vectors = torch.tensor([[0.0, 3], [0, 3.5], [7, 0], [6, 0]])
    inside = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    given = []
    descriptor = clustering.Descriptor("a reading", lambda batch: (vectors, inside), "")
    monkeypatch.setattr(clustering, "write_label_maps", lambda *arguments: given.append(arguments) or 17)
    running = Running(Processes(0, 1, torch.device("cpu")))
    centres = np.array([[5.0, 0], [0, 0]])
    assert clustering.write_clusters(descriptor, "images", "targets", centres, running) == 17
    clustering.write_clusters(descriptor, "images", "targets", centres, running, np.float32([2, 3]))
    for (images, targets, step, reading, how), ids in zip(
        given, ((2, 2, 1, 1), (2, 1000, 1, 1)), strict=True
    ):
        assert (images, targets, reading, how) == ("images", "targets", "a reading", running)
        expected = [np.where(mask, label, 0).tolist() for mask, label in zip(inside, ids, strict=True)]
        assert step(None).tolist() == expected


def test_stored_features_have_16_bits_and_are_known_by_what_made_them(tmp_path, prepared):
    images = Images(prepared[0] / "ImageNetS50/train", [f"{FOLDERS[0]}/t0_{i}.JPEG" for i in range(3)])
    running = Running(Processes(0, 1, torch.device("cpu")))
    reading = clustering.handmade().reading
    made = []

    def describe(batch):
        made.append(batch)
        return torch.tensor([[index / 3, 9] for index in batch.indices]), None

    def stored(identity, code):
        descriptor = clustering.Descriptor(reading, describe, identity)
        return clustering.store_features(descriptor, images, tmp_path, code, running)

    features = np.concatenate([np.load(path)["features"] for path in stored("by hand", "1")])
    assert features.dtype == np.float16
    assert features.tolist() == np.float16([[0, 9], [1 / 3, 9], [2 / 3, 9]]).tolist()
    counts = [len(made)]
    for identity, code in (("by hand", "1"), ("by hand", "2"), ("another", "1")):
        stored(identity, code)
        counts.append(len(made))
    assert counts[0] == counts[1] < counts[2] < counts[3]


def test_scores_of_several_runs_are_their_mean_and_deviation(tmp_path):
    """Two pictures of 10 pixels; the second run mixes one of them up. Deviations are over n - 1."""
    truth, runs = tmp_path / "truth", [tmp_path / "a", tmp_path / "b"]
    for folder, ids in ((truth, (1, 2)), (runs[0], (2, 1)), (runs[1], (2, 2))):
        for number, label in enumerate(ids):
            labels = np.zeros((2, 10), int)
            labels[1] = label
            write_mask(folder / f"n0/{number}.png", labels)
    found = clustering.matched_scores(truth, runs, MODES["50"], 2)
    # Run b's one cluster is matched with one of the classes: half of the images, and a third of its pixels.
    assert found["Acc"] == (pytest.approx(75), pytest.approx(50 / 2**0.5))
    occurring = (100, 100 * (1 + 1 / 2 + 0) / 3)
    mean, deviation = found["mIoU of occurring classes"]
    assert mean == pytest.approx(sum(occurring) / 2)
    assert deviation == pytest.approx(np.std(occurring) * 2**0.5)
    assert found["mIoU"][0] == pytest.approx(mean * 3 / 51)


def test_scores_are_of_the_matching_by_images(tmp_path):
    """Only cluster 60 occurs: on class 1 in two pictures, a pixel each, on class 2 in one, eight pixels."""
    for number, (label, pixels) in enumerate(((1, 1), (1, 1), (2, 8))):
        labels = np.zeros((2, 10), int)
        labels[1, :pixels] = label
        write_mask(tmp_path / f"truth/n0/{number}.png", labels)
        write_mask(tmp_path / f"run/n0/{number}.png", 60 * (labels > 0))
    found = clustering.matched_scores(tmp_path / "truth", [tmp_path / "run"] * 2, MODES["50"], 60)
    assert found["Acc"] == (pytest.approx(100 * 2 / 3), 0)
    assert found["mIoU of occurring classes"] == (pytest.approx(100 * (1 + 2 / 10 + 0) / 3), 0)


class Asked:
    """What methods/kmeans.py asks of the library, in place of which nothing is done."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.replace(monkeypatch, "store_features", lambda *_: ["chunk"])
        self.replace(monkeypatch, "fit_centres", lambda *_: np.zeros((4, 198)))
        self.replace(monkeypatch, "radii", lambda *_: "radius")
        self.replace(monkeypatch, "write_clusters", lambda *_: 0)
        self.replace(monkeypatch, "matched_scores", lambda *_: {"mIoU": (12.344, 0.456), "Acc": (50, 0)})

    def replace(self, monkeypatch, name, stand_in):
        def noted(*arguments):
            self.calls.append((name, arguments))
            return stand_in(*arguments)

        monkeypatch.setattr(kmeans, name, noted)

    def of(self, name):
        return [arguments for called, arguments in self.calls if called == name]


def test_what_the_command_line_names_reaches_the_library(prepared, tmp_path, monkeypatch, capsys):
    asked, output = Asked(monkeypatch), tmp_path / "out"
    masks, unused = (prepared[0] / f"ImageNetS50/{split}-segmentation" for split in ("validation", "train"))
    masks.mkdir()
    unused.mkdir()
    try:
        more = ("--clusters", 4, "--restarts", 3, "--seed", 5, "--seeds", 2, "--train-images", 7)
        last = ("--leave-out", 0.25, "--splits", "train", "validation", "--batch-size", 9)
        call(monkeypatch, kmeans, *options(prepared[0], output, *more, *last))
    finally:
        masks.rmdir()
        unused.rmdir()
    assert [arguments[1:] for arguments in asked.of("fit_centres")] == [(4, 3, 5), (4, 3, 6)]
    for descriptor, train, store, code, running in asked.of("store_features"):
        root = prepared[0] / "ImageNetS50"
        assert descriptor.identity == "handmade" and store == output / "features" and clustering.CODE in code
        assert train.folder == root / "train" and train.masks is None
        assert train.names == shuffled(list_images(root / "train"))[:7]
        assert (running.workers, running.batch_size, running.precision) == (0, 9, "float32")
    assert [share for _, _, share in asked.of("radii")] == [0.25, 0.25]
    written = asked.of("write_clusters")
    assert [limits for *_, limits in written] == ["radius", None] * 2, "of train alone"
    for seed, calls in ((5, written[:2]), (6, written[2:])):
        for split, (_, images, targets, centres, _, _) in zip(("train", "validation"), calls, strict=True):
            assert centres.shape == (4, 198)
            names = [output / f"seed{seed}" / split / name for name in images.names]
            assert targets == [name.with_suffix(".png") for name in names]
            assert len(targets) == {"train": 48, "validation": 18}[split]
        record = json.loads((output / f"seed{seed}/baseline.json").read_text())["settings"]
        expected = {"mode": "50", "clusters": 4, "restarts": 3, "seed": seed, "features": "handmade"}
        expected |= {"training images": 7, "left out": 0.25}
        assert {name: record[name] for name in expected} == expected
    folders = [output / "seed5/validation", output / "seed6/validation"]
    assert asked.of("matched_scores") == [(masks, folders, MODES["50"], 4)]
    assert "only for these figures: mIoU 12.34 ± 0.46, Acc 50.00 ± 0.00" in capsys.readouterr().out


def test_what_a_short_command_line_stands_for(prepared, tmp_path, monkeypatch, capsys):
    asked, output = Asked(monkeypatch), tmp_path / "out"
    masks = prepared[0] / "ImageNetS50/validation-segmentation"
    masks.mkdir()
    try:
        call(
            *(monkeypatch, kmeans, "--save-dir", prepared[0], "--mode", "50", "--output-dir", output),
            *("--features-dir", tmp_path / "kept"),
        )
    finally:
        masks.rmdir()
    assert asked.of("fit_centres") == [(["chunk"], 50, 10, 0)]
    ((_, train, store, _, _),) = asked.of("store_features")
    assert store == tmp_path / "kept" and len(train.names) == 48
    assert asked.of("radii") == asked.of("matched_scores") == []
    ((_, images, targets, _, _, limits),) = asked.of("write_clusters")
    assert limits is None and images.names == shuffled(list_images(prepared[0] / "ImageNetS50/validation"))
    assert targets[0].is_relative_to(output / "validation")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_several_seeds_have_no_scores_without_masks_of_validation(prepared, tmp_path, monkeypatch, split):
    asked = Asked(monkeypatch)
    call(monkeypatch, kmeans, *options(prepared[0], tmp_path / "out", "--seeds", 2, "--splits", split))
    assert len(asked.of("fit_centres")) == 2 and asked.of("matched_scores") == []


def test_centres_that_are_there_are_kept(prepared, tmp_path, monkeypatch):
    """Also where features are needed again, for the farthest images."""
    asked = Asked(monkeypatch)
    for _ in range(2):
        more = ("--leave-out", 0.25, "--splits", "train")
        call(monkeypatch, kmeans, *options(prepared[0], tmp_path / "out", *more))
    assert len(asked.of("radii")) == 2 and len(asked.of("fit_centres")) == 1


def test_trivial_predictions(finished, tmp_path, monkeypatch):
    labels = {}
    for kind in trivial.KINDS:
        given = ("--predict-dir", finished / "validation", "--mode", "50", "--kind", kind)
        for run in ("first", "second"):
            call(monkeypatch, trivial, *given, "--output-dir", tmp_path / run / kind)
        assert predictions(tmp_path / "first" / kind) == predictions(tmp_path / "second" / kind)
        labels[kind] = {
            path: decode_mask(tmp_path / "first" / kind / path)
            for path in predictions(finished / "validation")
        }
    for path in predictions(finished / "validation"):
        given = decode_mask(finished / "validation" / path)
        assert not labels["background"][path].any()
        assert ((labels["random-clusters"][path] > 0) == (given > 0)).all()
        assert labels["random"][path].shape == given.shape and labels["random"][path].any()
    drawn = {int(of.max()) for of in labels["random-clusters"].values()}
    assert len(drawn) > 9 and drawn <= set(range(1, 51))
    with pytest.raises(InputError, match="name a new folder"):
        call(monkeypatch, trivial, *given_again(finished, tmp_path))


def test_trivial_predictions_of_a_damaged_mask_leave_nothing(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "validation", tmp_path / "given")
    bad = sorted((tmp_path / "given").rglob("*.png"))[-1]
    bad.write_bytes(b"no mask")
    given = ("--predict-dir", tmp_path / "given", "--mode", "50", "--kind", "random")
    with pytest.raises(InputError, match=rf"{bad.name}: not a PNG"):
        call(monkeypatch, trivial, *given, "--output-dir", tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("flag", ["--predict-dir", "--output-dir"])
def test_trivial_takes_no_empty_path(tmp_path, monkeypatch, capsys, flag):
    paths = {"--predict-dir": tmp_path, "--output-dir": tmp_path / "out", flag: ""}
    with pytest.raises(SystemExit) as caught:
        call(
            *(monkeypatch, trivial, "--mode", "50", "--kind", "random"),
            *(part for pair in paths.items() for part in pair),
        )
    assert caught.value.code == 2 and f"{flag}: an empty path" in capsys.readouterr().err


def given_again(finished, tmp_path):
    taken = tmp_path / "first" / "random"
    return (
        "--predict-dir",
        finished / "validation",
        "--mode",
        "50",
        "--kind",
        "random",
        "--output-dir",
        taken,
    )


def test_record_tells_what_made_the_predictions(finished):
    record = json.loads((finished / "baseline.json").read_text())
    assert record["settings"]["clusters"] == CLASS_COUNT and set(record["images"]) == {
        "training",
        "validation",
    }


def test_a_backbone_without_any_library_of_them(prepared, tmp_path, monkeypatch):
    for library in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match="torchvision or timm"):
        call(
            monkeypatch,
            kmeans,
            *options(prepared[0], tmp_path / "out", "--backbone", "resnet50", "--checkpoint", __file__),
        )
