"""methods/kmeans.py without a network: clusters, label maps and scores, on pictures drawn by the demo."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.kmeans_calls import noted
from masksets import write_mask
from PIL import Image

from demo.pictures import draw
from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import Running
from imagenets.learning.images import Images, list_images, shuffled
from imagenets.learning.kmeans import clusters as clustering
from imagenets.learning.processes import Processes
from imagenets.masks import decode_mask
from methods import kmeans, trivial

CHECKOUT = Path(__file__).resolve().parents[1]
CLASS_COUNT = 6
# Of the demo's classes, these look least alike: hue and texture differ.
LOOKS = (0, 13, 26, 39, 42, 8)
FOLDERS = [f"n{i:08d}" for i in range(CLASS_COUNT)]
ALONE = Running(Processes(0, 1, torch.device("cpu")))


def make_set(root, folders=FOLDERS, train=8, validation=3):
    """An ImageNetS50 of few classes; returns the class of each validation image by its name."""
    rng = np.random.default_rng(0)
    truth = {}
    for of_class, (look, folder) in enumerate(zip(LOOKS, folders, strict=True)):
        for split, number in (("train", train), ("validation", validation)):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                name = f"{split[0]}{of_class}_{i}"
                image = Image.fromarray(draw(rng, look).image)
                if split == "validation":
                    truth[name] = of_class
                    image = image.resize((700, 401)) if i == 0 else image  # larger than what is looked at
                image.save(root / split / folder / f"{name}.JPEG", quality=90)
    return truth


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    save_dir = tmp_path_factory.mktemp("save")
    truth = make_set(save_dir / "ImageNetS50")
    return save_dir, truth


def call(script, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
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
    output = tmp_path_factory.mktemp("run") / "out"
    arguments = options(prepared[0], output, "--workers", "2")
    done = subprocess.run(
        [sys.executable, CHECKOUT / "methods/kmeans.py", *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "18 predictions, 18 made now" in done.stdout
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


def test_same_bytes_from_one_process_and_with_other_class_folders(prepared, finished, tmp_path):
    """No class folder is information: when all are renamed, each image keeps its very prediction."""
    for split in ("train", "validation"):
        for folder, other in zip(FOLDERS, [FOLDERS[i] for i in (3, 5, 0, 1, 2, 4)], strict=True):
            root = Path("ImageNetS50") / split
            shutil.copytree(prepared[0] / root / folder, tmp_path / root / other)
    call(kmeans, *options(tmp_path, tmp_path / "out"))
    by_name = {Path(name).name: content for name, content in predictions(tmp_path / "out").items()}
    assert by_name == {Path(name).name: content for name, content in predictions(finished).items()}


def test_images_of_a_class_do_not_stand_together():
    listed = shuffled(f"{folder}/{folder}_{i}.JPEG" for folder in "ab" for i in range(50))
    assert len(set(listed)) == 100
    assert 30 < sum(x[0] != y[0] for x, y in itertools.pairwise(listed)) < 70


def test_a_run_goes_on_where_it_was_stopped_or_came_to_nothing(prepared, finished, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(finished / "features", output / "features")
    with pytest.raises(InputError, match="48 training images cannot make 49 clusters"):
        call(kmeans, *options(prepared[0], output, "--clusters", "49"))
    for made in (18, 7):
        call(kmeans, *options(prepared[0], output))
        assert f"18 predictions, {made} made now" in capsys.readouterr().out
        assert predictions(output) == predictions(finished)
        (output / "centres.npy").unlink()
        for path in sorted((output / "validation").rglob("*.png"))[:7]:
            path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--splits", "test"), "test: no such folder"),
        (("--mode", "300"), "ImageNetS300: neither validation nor test"),
        (("--train-images", "5"), "5 training images cannot make 6 clusters"),
    ],
)
def test_what_cannot_be_done_is_refused(prepared, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        call(kmeans, *options(prepared[0], tmp_path / "out", *change))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--backbone", "resnet50"), "--backbone and --checkpoint go together"),
        (("--checkpoint", "x.pth"), "--backbone and --checkpoint go together"),
        (("--train-images", "0"), "--train-images"),
        (("--workers", "-1"), "--workers"),
        (("--seed", "-1"), "--seed"),
        (("--clusters", "65536"), "--clusters"),
        (("--features-dir", ""), "--features-dir: an empty path"),
        (("--weights", "ema"), "--weights needs a --backbone"),
        (("--size", "256"), "--size needs a --backbone"),
        (("--foreground", "features"), "--foreground features needs a --backbone"),
    ],
)
def test_wrong_usage_exits_with_2(prepared, tmp_path, capsys, wrong, words):
    with pytest.raises(SystemExit) as caught:
        call(kmeans, *options(prepared[0], tmp_path / "out", *wrong))
    assert caught.value.code == 2 and not (tmp_path / "out").exists()
    assert words in capsys.readouterr().err


def test_pictures_without_a_set_need_a_number_of_clusters(tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(kmeans, "--images", tmp_path, "--output-dir", tmp_path / "out")
    assert "--images needs --clusters" in capsys.readouterr().err


def saved(points, folder):
    """Features as store_features keeps them, 100 a file."""
    chunks = []
    for i, start in enumerate(range(0, len(points), 100)):
        chunks.append(folder / f"{i}.npz")
        np.savez(chunks[-1], features=points[start : start + 100].astype(np.float16))
    return chunks


def test_what_k_means_is_asked_for(tmp_path, monkeypatch):
    """Lloyd's on the first images; then five times all of them, in the files' order, from its centres."""
    assert clustering.LLOYD_IMAGES == 100_000
    monkeypatch.setattr(clustering, "LLOYD_IMAGES", 250)
    calls = noted(monkeypatch, clustering)
    rng = np.random.default_rng(0)
    points = (np.eye(4, 5)[rng.integers(4, size=330)] * 8 + rng.normal(0, 0.5, (330, 5))).astype(np.float16)
    chunks = saved(points, tmp_path)
    found = clustering.fit_centres(chunks, 4, 3, seed=8)
    (lloyd, rows), *batches = calls.fits
    asked = ("n_clusters", "n_init", "random_state")
    assert [lloyd[name] for name in asked] == [4, 3, 8] and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, points[:250])
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in batches]), np.tile(points, (5, 1)))
    assert [len(rows) for _, rows in batches] == [100, 100, 100, 30] * 5
    assert [batches[0][0][name] for name in asked] == [4, 1, 8]
    assert batches[0][0]["init"].shape == found.shape == (4, 5)
    # The centres are those of the mini-batches.
    assert np.abs(found - batches[0][0]["init"]).max() > 1e-3
    assert calls.threads == [1]
    calls.fits.clear()
    monkeypatch.setattr(clustering, "LLOYD_IMAGES", 330)
    clustering.fit_centres(chunks, 4, 3, seed=8)
    assert len(calls.fits) == 1, "no mini-batches where Lloyd's has all images"


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
    descriptor = clustering.Descriptor("a reading", lambda batch: (vectors, inside), "")
    asked = []
    monkeypatch.setattr(clustering, "write_label_maps", lambda *given: asked.append(given) or 17)
    given = descriptor, "images", "targets", np.array([[5.0, 0], [0, 0]]), ALONE
    for radius, ids in ((None, (2, 2, 1, 1)), (np.float32([2, 3]), (2, 1000, 1, 1))):
        assert clustering.write_clusters(*given, radius) == 17
        images, targets, step, *others = asked.pop()
        assert (images, targets, *others) == ("images", "targets", "a reading", ALONE)
        expected = [np.where(mask, label, 0).tolist() for mask, label in zip(inside, ids, strict=True)]
        assert step(None).tolist() == expected


def test_stored_features_have_16_bits_and_are_known_by_what_made_them(tmp_path, prepared):
    images = Images(prepared[0] / "ImageNetS50/train", [f"{FOLDERS[0]}/t0_{i}.JPEG" for i in range(3)])

    def stored(identity, code):
        descriptor = clustering.Descriptor(
            clustering.handmade().reading,
            lambda batch: (torch.tensor([[index / 3, 9] for index in batch.indices]), None),
            identity,
        )
        return clustering.store_features(descriptor, images, tmp_path, code, ALONE)

    first = stored("by hand", "1")
    features = np.concatenate([np.load(path)["features"] for path in first])
    assert features.dtype == np.float16
    assert features.tolist() == np.float16([[0, 9], [1 / 3, 9], [2 / 3, 9]]).tolist()
    assert stored("by hand", "1") == first
    assert not {*first} & {*stored("by hand", "2"), *stored("another", "1")}


def test_scores_of_several_runs_are_their_mean_and_deviation(tmp_path):
    """Class 1 in two pictures, a pixel each, and class 2 in one, eight pixels. Deviations are over n - 1.

    Run a has cluster 60 on all, which is matched with class 1 by the number of images; run b is perfect.
    """
    for number, (label, pixels) in enumerate(((1, 1), (1, 1), (2, 8))):
        labels = np.zeros((2, 10), int)
        labels[1, :pixels] = label
        write_mask(tmp_path / f"truth/n0/{number}.png", labels)
        write_mask(tmp_path / f"a/n0/{number}.png", 60 * (labels > 0))
        write_mask(tmp_path / f"b/n0/{number}.png", labels)
    runs = [tmp_path / "a", tmp_path / "b"]
    found = clustering.matched_scores(tmp_path / "truth", runs, MODES["50"], 60)
    for name, of_a in (("Acc", 200 / 3), ("mIoU of occurring classes", 100 * (1 + 2 / 10 + 0) / 3)):
        mean, deviation = found[name]
        assert mean == pytest.approx((of_a + 100) / 2)
        assert deviation == pytest.approx((100 - of_a) / 2**0.5)
    assert found["mIoU"][0] == pytest.approx(found["mIoU of occurring classes"][0] * 3 / 51)


class Asked:
    """What methods/kmeans.py asks of the library, in place of which nothing is done."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.replace(monkeypatch, "store_features", ["chunk"])
        self.replace(monkeypatch, "fit_centres", np.zeros((4, 198)))
        self.replace(monkeypatch, "radii", "radius")
        self.replace(monkeypatch, "write_clusters", 0)
        self.replace(monkeypatch, "matched_scores", {"mIoU": (12.344, 0.456), "Acc": (50, 0)})

    def replace(self, monkeypatch, name, result):
        monkeypatch.setattr(kmeans, name, lambda *given: self.calls.append((name, given)) or result)

    def of(self, name):
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def masks(prepared):
    """Empty folders of masks for both splits; that of validation."""
    folders = [prepared[0] / f"ImageNetS50/{split}-segmentation" for split in ("validation", "train")]
    for folder in folders:
        folder.mkdir()
    yield folders[0]
    for folder in folders:
        folder.rmdir()


def test_what_the_command_line_names_reaches_the_library(prepared, masks, tmp_path, monkeypatch, capsys):
    asked, output = Asked(monkeypatch), tmp_path / "out"
    more = ("--clusters", 4, "--restarts", 3, "--seed", 5, "--seeds", 2, "--train-images", 7)
    last = ("--leave-out", 0.25, "--splits", "train", "validation", "--batch-size", 9)
    call(kmeans, *options(prepared[0], output, *more, *last))
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


def test_what_a_short_command_line_stands_for(prepared, masks, tmp_path, monkeypatch):
    asked, output = Asked(monkeypatch), tmp_path / "out"
    call(
        *(kmeans, "--save-dir", prepared[0], "--mode", "50", "--output-dir", output),
        *("--features-dir", tmp_path / "kept"),
    )
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
    call(kmeans, *options(prepared[0], tmp_path / "out", "--seeds", 2, "--splits", split))
    assert len(asked.of("fit_centres")) == 2 and asked.of("matched_scores") == []


def test_centres_that_are_there_are_kept(prepared, tmp_path, monkeypatch):
    """Also where features are needed again, for the farthest images."""
    asked = Asked(monkeypatch)
    for _ in range(2):
        more = ("--leave-out", 0.25, "--splits", "train")
        call(kmeans, *options(prepared[0], tmp_path / "out", *more))
    assert len(asked.of("radii")) == 2 and len(asked.of("fit_centres")) == 1


def test_trivial_predictions(finished, tmp_path):
    given = {
        path: decode_mask(finished / "validation" / path) for path in predictions(finished / "validation")
    }
    labels = {}
    for kind in trivial.KINDS:
        asked = ("--predict-dir", finished / "validation", "--mode", "50", "--kind", kind)
        for run in ("first", "second"):
            call(trivial, *asked, "--output-dir", tmp_path / run / kind)
        assert predictions(tmp_path / "first" / kind) == predictions(tmp_path / "second" / kind)
        labels[kind] = [decode_mask(tmp_path / "first" / kind / path) for path in given]
        with pytest.raises(InputError, match="name a new folder"):
            call(trivial, *asked, "--output-dir", tmp_path / "first" / kind)
    for background, clusters, random, of_one in zip(*labels.values(), given.values(), strict=True):
        assert not background.any() and ((clusters > 0) == (of_one > 0)).all()
        assert random.shape == of_one.shape and random.any()
    drawn = {int(of_one.max()) for of_one in labels["random-clusters"]}
    assert len(drawn) > 9 and drawn <= set(range(1, 51))


def test_trivial_predictions_of_a_damaged_mask_leave_nothing(finished, tmp_path):
    shutil.copytree(finished / "validation", tmp_path / "given")
    bad = sorted((tmp_path / "given").rglob("*.png"))[-1]
    bad.write_bytes(b"no mask")
    given = ("--predict-dir", tmp_path / "given", "--mode", "50", "--kind", "random")
    with pytest.raises(InputError, match=rf"{bad.name}: not a PNG"):
        call(trivial, *given, "--output-dir", tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("flag", ["--predict-dir", "--output-dir"])
def test_trivial_takes_no_empty_path(tmp_path, capsys, flag):
    paths = {"--predict-dir": tmp_path, "--output-dir": tmp_path / "out", flag: ""}
    with pytest.raises(SystemExit) as caught:
        call(trivial, "--mode", "50", "--kind", "random", *(part for pair in paths.items() for part in pair))
    assert caught.value.code == 2 and f"{flag}: an empty path" in capsys.readouterr().err
