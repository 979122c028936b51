"""methods/distance_matching.py: its banks and labels written out, resumed, and in several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torchvision")
pytest.importorskip("timm")

import torch
from helpers.method_scripts import run_ranks
from helpers.patterns import write_patterns
from helpers.scripts import environment
from masksets import CHECKOUT
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import functional as transforms

from imagenets.common.errors import InputError
from imagenets.learning import run_folder
from imagenets.learning.distance_matching.bank import KINDS, PATCHES, REGIONS, join_bank, load_bank
from imagenets.learning.engine import inference, label_files
from imagenets.learning.engine.inference import Batch
from imagenets.learning.engine.label_files import LabelFile, enlarged, write_label_file
from imagenets.learning.images import IMAGENET_MEAN, IMAGENET_STD
from imagenets.learning.networks.backbones import make_backbone
from imagenets.masks import decode_mask
from methods import distance_matching

VIT = "vit_tiny_patch16_224"
RUN = ("--workers", "1", "--batch-size", "4", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the script's own processes here have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spread_network(name):
    """A network whose features differ from place to place, unlike those of fresh random weights."""
    torch.manual_seed(1)
    backbone = make_backbone(name)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.3, 1.7)
            torch.nn.init.normal_(module.bias, std=0.4)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.08)
    if name != "resnet18":
        torch.nn.init.normal_(backbone.network.pos_embed, std=0.3)
    return backbone.eval()


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Eight images of four classes, for a bank and to be labelled; two of each size, which share a batch."""
    save = tmp_path_factory.mktemp("save")
    write_patterns(save, per_class=2)
    for name in ("resnet18", VIT):
        torch.save({"model": spread_network(name).network.state_dict()}, save / f"{name}.pth")
    return save


def command(save, output, name="resnet18", *more):
    script = str(CHECKOUT / "methods" / "distance_matching.py")
    return [
        script, "--save-dir", str(save), "--mode", "50", "--backbone", name,
        "--checkpoint", str(save / f"{name}.pth"), "--output-dir", str(output), *RUN, *more,
    ]  # fmt: skip


def run(arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def call(arguments):
    """The script in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        distance_matching.main()


PATCHES_OF = ("--bank", "patches", "--patches-per-picture", "40")
# What is undisturbed once: by name the network, and what more is said.
RUNS = {"regions": ("resnet18",), "of patch 16": (VIT,), "patches": (VIT, *PATCHES_OF)}


@pytest.fixture(scope="module")
def finished(save, tmp_path_factory):
    outputs = {name: tmp_path_factory.mktemp("run") / name for name in RUNS}
    for name, output in outputs.items():
        if name == "regions":
            assert "8 predictions, 8 made now" in run(command(save, output))
        else:
            call(command(save, output, *RUNS[name]))
    return outputs


def batches(save, split, backbone):
    """A batch of each image of a split, and the name of its mask; 341 pixels are no whole patches."""
    cut = 16 if backbone.stride == 16 else 1
    for index, path in enumerate(sorted((save / "ImageNetS50" / split).glob("*/*.JPEG"))):
        image, place = Image.open(path), f"{path.parent.name}/{path.stem}.png"
        x = transforms.to_tensor(transforms.resize(image, 256))
        rows, columns = (length // cut * cut for length in x.shape[1:])
        shown = round(image.height * rows / x.shape[1]), round(image.width * columns / x.shape[2])
        x = transforms.normalize(x[:, :rows, :columns], IMAGENET_MEAN, IMAGENET_STD)
        mask = decode_mask(save / f"ImageNetS50/{split}-segmentation" / place)
        yield Batch([index], x[None], [(image.height, image.width)], [shown], [mask]), place


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "kind", "neighbours", "temperature"),
    [("regions", REGIONS, 10, 0.07), ("of patch 16", REGIONS, 10, 0.07), ("patches", PATCHES, 30, 0.02)],
)
def test_bank_and_labels_are_those_of_one_picture_after_the_other(
    name, kind, neighbours, temperature, save, finished, tmp_path
):
    backbone, kind, parts = spread_network(RUNS[name][0]), KINDS[kind], []
    for batch, _ in batches(save, "train-semi", backbone):
        parts.append(tmp_path / f"{len(parts)}.npz")
        (arrays,) = kind.step(backbone, 40)(batch)
        np.savez(parts[-1], **arrays)
    join_bank(kind, parts, tmp_path / "bank.npz")
    with np.load(tmp_path / "bank.npz") as expected, np.load(finished[name] / "bank.npz") as made:
        assert len(set(made["labels"].tolist())) == 5 and len(made["labels"]) > 15
        for array in expected:
            assert made[array].dtype == expected[array].dtype
            np.testing.assert_allclose(made[array], expected[array], atol=1e-5)
    bank = load_bank(tmp_path / "bank.npz", backbone.channels, neighbours)
    step = kind.label_step(backbone, bank, neighbours, temperature, False)
    found, expected = [], []
    for batch, place in batches(save, "validation", backbone):
        (labels,) = step(batch)
        write_label_file(LabelFile(tmp_path / place, labels.numpy(), batch.sizes[0], batch.shown[0]))
        expected.append(decode_mask(tmp_path / place).ravel())
        found.append(decode_mask(finished[name] / "validation" / place).ravel())
    found, expected = np.concatenate(found), np.concatenate(expected)
    assert len(np.unique(expected)) >= 4, "too flat to tell right from wrong"
    assert (found != expected).mean() <= 1 / 5000


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".png", ".npz")
    }


def test_several_processes_write_the_same_bytes(context, save, finished, tmp_path):
    """Three, for two chunks of images: one of them has nothing to do."""
    arguments = command(save, tmp_path / "out")[1:]
    printed = run_ranks(context, "distance_matching", arguments, 3, tmp_path)
    assert printed.count("8 predictions, 8 made now") == 1
    assert files_of(tmp_path / "out") == files_of(finished["regions"])


class StopError(Exception):
    """Stands for the end of a process."""


def test_stopped_and_run_again_it_ends_alike(save, finished, tmp_path, monkeypatch, capsys):
    """Stopped behind the first file of the bank, and among the label maps; and when a disk has lost some."""
    output, written = tmp_path / "out", []

    def stopping(write):
        def write_one(*arguments):
            write(*arguments)
            written.append(arguments)
            if len(written) in (1, 5):
                raise StopError

        return write_one

    with monkeypatch.context() as patch:
        patch.setattr(inference, "_save", stopping(inference._save))
        patch.setattr(label_files, "write_label_file", stopping(label_files.write_label_file))
        for _ in range(2):
            with pytest.raises(StopError):
                call([*command(save, output), "--workers", "0"])
        call([*command(save, output), "--workers", "0"])
    assert len(written) == 2 + 8, "two chunks of the bank and eight label maps, each once"
    assert files_of(output) == files_of(finished["regions"])
    lose_some(output)
    capsys.readouterr()
    call(command(save, output))
    assert "8 predictions, 4 made now" in capsys.readouterr().out
    assert files_of(output) == files_of(finished["regions"])
    assert not [path for path in output.rglob("*") if path.name.endswith(".tmp")]


def lose_some(output):
    for path in sorted(output.rglob("*.png"))[::2]:
        path.unlink()
    (output / "bank.npz").unlink()


def test_another_run_is_refused_and_changes_nothing(save, finished):
    output = finished["regions"]
    before = files_of(output)
    like_regions = ("--neighbours", "10", "--temperature", "0.07")
    for name, more, words in (
        ("resnet18", ("--neighbours", "5"), r"neighbours: 10 then, 5 now\)"),
        ("resnet18", ("--size", "64"), r"size: 256 then, 64 now\)"),
        ("resnet18", ("--bank", "patches", *like_regions), "bank: regions of train-semi then"),
        (VIT, (), "backbone: resnet18 then"),
    ):
        with pytest.raises(InputError, match=rf"holds a run with other settings \({words}"):
            call(command(save, output, name, *more))
    call(command(save, output))
    assert files_of(output) == before


def test_a_bank_of_patches_is_made_again_or_taken_from_its_file(save, finished, tmp_path):
    """The file says that it holds patches."""
    made = files_of(finished["patches"])
    output = tmp_path / "out"
    shutil.copytree(finished["patches"], output)
    lose_some(output)
    call(command(save, output, *RUNS["patches"]))
    assert files_of(output) == made
    call(command(save, tmp_path / "by-file", VIT, "--bank", str(output / "bank.npz")))
    del made["bank.npz"]
    assert files_of(tmp_path / "by-file") == made


def test_banks_that_are_none_are_wrong_usage(save, tmp_path, capsys):
    for more, words in (
        (("--bank", "patch"), "neither regions nor patches nor a file"),
        (("--patches-per-picture", "9"), "goes with --bank patches"),
        (("--bank", ""), "an empty path"),
    ):
        with pytest.raises(SystemExit) as ended:
            call(command(save, tmp_path / "out", "resnet18", *more))
        assert ended.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(InputError, match=r"none\.npz: no such bank"):
        call(command(save, tmp_path / "out", "resnet18", "--bank", str(tmp_path / "none.npz")))


def test_any_pictures_with_a_bank_made_before(save, finished, tmp_path, capsys):
    pictures, output = tmp_path / "photos", tmp_path / "out"
    (pictures / "a" / "b").mkdir(parents=True)
    source = sorted((save / "ImageNetS50" / "validation").glob("*/*.JPEG"))[0]
    grey = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13
    Image.fromarray(grey).save(pictures / "16 bit.png")
    Image.new("CMYK", (50, 40), (9, 90, 30, 0)).save(pictures / "a" / "cmyk.jpg")
    Image.open(source).save(pictures / "a" / "b" / "same.png")
    Image.new("LA", (21, 33), (80, 255)).save(pictures / "alpha.PNG")
    Image.new("RGB", (30, 1), (80, 3, 2)).save(pictures / "low.png")
    arguments = command(save, output, "resnet18", "--bank", str(finished["regions"] / "bank.npz"))
    arguments[1:5] = ["--images", str(pictures)]
    call(arguments)
    sizes = {
        path.relative_to(output / "images").as_posix(): decode_mask(path).shape
        for path in (output / "images").rglob("*.png")
    }
    expected = {"16 bit.png": (60, 80), "a/cmyk.png": (40, 50), "alpha.png": (33, 21), "low.png": (1, 30)}
    assert sizes == expected | {"a/b/same.png": Image.open(source).size[::-1]}
    with pytest.raises(SystemExit):
        call([*arguments, "--bank", "regions"])
    assert "--images needs the file of a --bank" in capsys.readouterr().err


def test_bad_images_are_told_together_and_the_others_made(save, finished, tmp_path):
    copied = tmp_path / "save"
    shutil.copytree(save, copied)
    bad = sorted((copied / "ImageNetS50" / "validation").glob("*/*.JPEG"))[1:3]
    bad[0].write_bytes(bad[0].read_bytes()[:300])
    Image.new("RGB", (500, 2)).save(bad[1], "JPEG")
    bad.append(bad[1].with_name("v9.JPEG"))
    bad[2].write_bytes(b"")
    bank = ("--bank", str(finished["regions"] / "bank.npz"))
    with pytest.raises(InputError, match="3 images are bad") as caught:
        call(command(copied, tmp_path / "out", "resnet18", *bank))
    assert all(str(path) in str(caught.value) for path in bad)
    assert len(list((tmp_path / "out" / "validation").rglob("*.png"))) == 6
    shutil.rmtree(copied / "ImageNetS50" / "train-semi-segmentation")
    with pytest.raises(InputError, match=r"no masks; put them in place: bash .*datapreparation_anno.sh"):
        call(command(copied, tmp_path / "other"))
    with pytest.raises(InputError, match="this backbone has 192"):
        call(command(copied, tmp_path / "other", VIT, *bank))


@pytest.mark.parametrize(
    ("old", "new"), [((8, 11), (375, 500)), ((32, 44), (97, 131)), ((300, 17), (32, 44))]
)
def test_labels_are_enlarged_as_pytorch_does(old, new):
    labels = np.random.default_rng(0).integers(0, 900, old).astype(np.uint16)
    expected = interpolate(torch.from_numpy(labels.astype(np.float32))[None, None], size=new, mode="nearest")
    assert (enlarged(labels, *new) == expected[0, 0].numpy()).all()


def test_results_are_known_by_a_number_and_the_libraries(monkeypatch):
    """The number is raised by hand when results change: a comment in the code changes nothing."""
    ours = run_folder.made_by("engine 1, distance matching 1")
    assert ours.startswith("engine 1, distance matching 1, torch ") and "numpy" in ours
    monkeypatch.setattr(run_folder, "version", lambda name: "99.0")
    assert "torch 99.0" in run_folder.made_by("engine 1, distance matching 1")


def test_label_maps_do_not_wait_for_the_disk(tmp_path, monkeypatch):
    """They can be made again, and there are a million of them."""
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("waits for the disk"))
    path = tmp_path / "n1/a.png"
    write_label_file(LabelFile(path, np.array([[0, 3]]), (2, 4), (2, 4)))
    assert decode_mask(path).tolist() == [[0, 0, 3, 3]] * 2
