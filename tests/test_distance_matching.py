"""Distance matching against a slow reference, and its script in real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import torch
from helpers.scripts import environment
from masksets import CHECKOUT, write_mask
from PIL import Image
from prepared_set import WNIDS
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from demo.pictures import draw
from imagenets.common.errors import InputError
from imagenets.learning import run_folder
from imagenets.learning.distance_matching import neighbours, patches
from imagenets.learning.distance_matching.bank import unusable_vectors
from imagenets.learning.distance_matching.neighbours import Bank, label_maps, nearest
from imagenets.learning.engine import inference, label_files
from imagenets.learning.engine.inference import chunks_of
from imagenets.learning.engine.label_files import enlarged
from imagenets.masks import decode_mask
from methods import distance_matching

NETWORKS = ("resnet18", "vit_tiny_patch16_224")
# Height and width: odd, narrow, small, of the network's own size, and some twice, which share a batch.
SIZES = ((97, 131), (256, 256), (131, 97), (61, 157), (97, 131), (300, 200), (150, 96), (131, 97))
TURNED = 3  # the validation image that is stored turned, as its EXIF says
RUN = ("--workers", "1", "--batch-size", "4", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the script's own processes here have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_set(root):
    """Annotated and validation images, with objects of two or three classes and ignored pixels."""
    rng = np.random.default_rng(5)
    for split, offset in (("train-semi", 0), ("validation", 3)):
        for i, (height, width) in enumerate(SIZES):
            first, second = (i + offset) % 4, (i + offset + 1) % 4
            picture, other = draw(rng, 13 * first), draw(rng, 13 * second)
            image = cv2.resize(picture.image, (width, height))
            labels = cv2.resize(picture.labels.astype(np.int32), (width, height), interpolation=0)
            labels = np.where((labels > 0) & (labels != 1000), first + 1, labels)
            half = cv2.resize(other.image, (width // 2, height))
            image[:, : width // 2], labels[:, : width // 2] = half, second + 1
            labels[: height // 3, : width // 4] = 0
            labels[: height // 5] = np.where(labels[: height // 5] == 0, 1000, labels[: height // 5])
            name = f"{WNIDS[first]}/{split[:1]}{i}"
            path = root / split / f"{name}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            if split == "validation" and i == TURNED:
                image = np.rot90(image)  # its orientation 6 turns it back, clockwise
                exif[0x0112] = 6
            Image.fromarray(np.ascontiguousarray(image)).save(path, "JPEG", quality=92, exif=exif)
            write_mask(root / f"{split}-segmentation" / f"{name}.png", labels)


def spread_network(name):
    """A network whose features differ from place to place, unlike those of fresh random weights."""
    torch.manual_seed(1)
    network = torchvision.models.resnet18() if name == "resnet18" else timm.create_model(name, num_classes=0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.3, 1.7)
            torch.nn.init.normal_(module.bias, std=0.4)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.08)
    if name != "resnet18":
        torch.nn.init.normal_(network.pos_embed, std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    save = tmp_path_factory.mktemp("save")
    write_set(save / "ImageNetS50")
    for name in NETWORKS:
        torch.save({"model": spread_network(name).state_dict()}, save / f"{name}.pth")
    return save


def command(save, output, name="resnet18", *more):
    script = str(CHECKOUT / "methods" / "distance_matching.py")
    return [
        script, "--save-dir", str(save), "--mode", "50", "--backbone", name,
        "--checkpoint", str(save / f"{name}.pth"), "--output-dir", str(output), *RUN, *more,
    ]  # fmt: skip


def run(arguments, processes=0, status=0):
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # One thread: torchrun sets this where it starts several processes.
    done = subprocess.run(
        [*launcher, *arguments],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def finished(save, tmp_path_factory):
    """One undisturbed run of each network."""
    outputs = {name: tmp_path_factory.mktemp("run") / name for name in NETWORKS}
    done = run(command(save, outputs["resnet18"]))
    assert "8 predictions, 8 made now" in done.stdout
    with pytest.MonkeyPatch.context() as patch:
        call(patch, command(save, outputs[NETWORKS[1]], NETWORKS[1]))
    return outputs


def slow_last(network, name, path, turn=False):
    """The last map of one image, (1, C, rows, columns), and two sizes.

    They are that of the part of the image that it lies on, and the image's: 341 pixels are no whole patches.
    """
    image = Image.open(path).convert("RGB")
    if turn:
        image = image.transpose(Image.Transpose.ROTATE_270)
    width, height = image.size
    small, large = min(width, height), max(width, height)
    longer = int(256 * large / small)
    image = image.resize((256, longer) if width < height else (longer, 256), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    shown = (height, width)
    if name != "resnet18":
        rows, columns = (length // 16 * 16 for length in x.shape[2:])
        shown = round(height * rows / x.shape[2]), round(width * columns / x.shape[3])
        x = x[:, :, :rows, :columns]
    with torch.inference_mode():
        if name == "resnet18":
            return torch.nn.Sequential(*list(network.children())[:-2])(x), shown, (height, width)
        from test_backbones import slow_vit

        return slow_vit(network, x), shown, (height, width)


def slow_map(network, name, path, turn=False):
    """The last map enlarged by 4 (ResNet) or 2 (patch 16), (C, rows, columns), and the sizes."""
    last, *sizes = slow_last(network, name, path, turn)
    factor = 4 if name == "resnet18" else 2
    return interpolate(last, scale_factor=factor, mode="bilinear", align_corners=False)[0], *sizes


def slow_bank(network, name, root):
    embeddings, labels = [], []
    for path in sorted((root / "train-semi").glob("*/*.JPEG")):
        features, (rows, columns), _ = slow_map(network, name, path)
        mask = np.asarray(
            Image.open(root / "train-semi-segmentation" / path.parent.name / f"{path.stem}.png")
        )
        ids = mask[..., 0] + 256.0 * mask[..., 1]
        ids = ids[:rows, :columns]
        small = interpolate(torch.from_numpy(ids)[None, None], size=features.shape[1:], mode="nearest")[0, 0]
        for value in sorted(set(small.flatten().tolist()) - {1000}):
            total = torch.zeros(len(features))
            for row, column in (small == value).nonzero().tolist():
                total += features[:, row, column]
            embeddings.append(total / small.numel())
            labels.append(int(value))
    embeddings = torch.stack(embeddings)
    return embeddings / embeddings.norm(dim=1, keepdim=True), torch.tensor(labels)


def slow_labels(features, bank, labels, number=10, temperature=0.07):
    found = torch.zeros(features.shape[1:], dtype=torch.int64)
    for row in range(features.shape[1]):
        for column in range(features.shape[2]):
            vector = features[:, row, column]
            cosines = (bank @ (vector / vector.norm())).tolist()
            order = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[:number]
            votes = {}
            for i in order:
                votes[int(labels[i])] = votes.get(int(labels[i]), 0) + np.exp(cosines[i] / temperature)
            found[row, column] = min(votes, key=lambda label: (-votes[label], label))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_bank_and_labels_are_those_of_the_slow_reference(name, save, finished):
    root, network = save / "ImageNetS50", spread_network(name)
    bank, labels = slow_bank(network, name, root)
    with np.load(finished[name] / "bank.npz") as made:
        assert made["embeddings"].dtype == np.float32 and made["labels"].dtype == np.int64
        assert made["labels"].tolist() == labels.tolist()
        assert 0 in labels and len(set(labels.tolist())) == 5 and len(labels) > 20
        np.testing.assert_allclose(made["embeddings"], bank, atol=1e-5)
    different = pixels = 0
    kinds = set()
    for path in sorted((root / "validation").glob("*/*.JPEG")):
        features, shown, size = slow_map(network, name, path, turn=path.stem == f"v{TURNED}")
        slow = slow_labels(features, bank, labels)
        expected = interpolate(slow[None, None].float(), size=shown, mode="nearest")[0, 0].numpy()
        expected = np.pad(expected, [(0, size[0] - shown[0]), (0, size[1] - shown[1])], mode="edge")
        made = decode_mask(finished[name] / "validation" / path.parent.name / f"{path.stem}.png")
        assert made.shape == expected.shape
        different += int((made != expected).sum())
        pixels += made.size
        kinds |= set(np.unique(made).tolist())
    assert len(kinds) >= 4, "too flat to tell right from wrong"
    assert different <= pixels / 5000


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".png", ".npz")
    }


def test_several_processes_write_the_same_bytes(save, finished, tmp_path):
    """Three, for two chunks of images: one of them has nothing to do."""
    done = run(command(save, tmp_path / "out"), processes=3)
    assert done.stdout.count("8 predictions, 8 made now") == 1
    assert files_of(tmp_path / "out") == files_of(finished["resnet18"])


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
                call(patch, [*command(save, output), "--workers", "0"])
        call(patch, [*command(save, output), "--workers", "0"])
    assert len(written) == 2 + 8, "two chunks of the bank and eight label maps, each once"
    assert files_of(output) == files_of(finished["resnet18"])
    for path in sorted(output.rglob("*.png"))[::2]:
        path.unlink()
    (output / "bank.npz").unlink()
    capsys.readouterr()
    call(monkeypatch, command(save, output))
    assert "8 predictions, 4 made now" in capsys.readouterr().out
    assert files_of(output) == files_of(finished["resnet18"])
    assert not [path for path in output.rglob("*") if path.name.endswith(".tmp")]


def call(monkeypatch, arguments):
    """The script in this process."""
    monkeypatch.setattr(sys, "argv", arguments)
    distance_matching.main()


def test_another_run_is_refused_and_changes_nothing(save, finished, monkeypatch):
    before = files_of(finished["resnet18"])
    with pytest.raises(InputError, match=r"holds a run with other settings \(neighbours: 10 then, 5 now\)"):
        call(monkeypatch, command(save, finished["resnet18"], "resnet18", "--neighbours", "5"))
    with pytest.raises(InputError, match=r"holds a run with other settings \(size: 256 then, 64 now\)"):
        call(monkeypatch, command(save, finished["resnet18"], "resnet18", "--size", "64"))
    with pytest.raises(InputError, match=r"\(bank: regions of train-semi then"):
        call(
            monkeypatch,
            command(
                save,
                finished["resnet18"],
                "resnet18",
                "--bank",
                "patches",
                "--neighbours",
                "10",
                "--temperature",
                "0.07",
            ),
        )
    with pytest.raises(InputError, match=r"holds a run with other settings \(backbone: resnet18 then"):
        call(monkeypatch, command(save, finished["resnet18"], NETWORKS[1]))
    call(monkeypatch, command(save, finished["resnet18"]))
    assert files_of(finished["resnet18"]) == before


def read_mask(root, split, path):
    return decode_mask(root / f"{split}-segmentation" / path.parent.name / f"{path.stem}.png")


def test_labels_by_patches_are_those_of_the_run_written_out(save, finished, tmp_path, monkeypatch):
    """Two processes write the same, and a run that lost files; a bank's file says that it holds patches."""
    name, root = NETWORKS[1], save / "ImageNetS50"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        arguments = command(save, tmp_path / "out", name, "--bank", "patches", "--patches-per-picture", "40")
        call(monkeypatch, arguments)
        made = files_of(tmp_path / "out")
        for path in sorted((tmp_path / "out").rglob("*.png"))[::2]:
            path.unlink()
        (tmp_path / "out/bank.npz").unlink()
        call(monkeypatch, arguments)
        assert files_of(tmp_path / "out") == made
        call(monkeypatch, command(save, tmp_path / "by-file", name, "--bank", str(tmp_path / "out/bank.npz")))
    finally:
        torch.set_num_threads(threads)
    two = command(save, tmp_path / "two", name, "--bank", "patches", "--patches-per-picture", "40")
    run(two, processes=2)
    assert files_of(tmp_path / "two") == made
    assert {k: v for k, v in made.items() if k != "bank.npz"} == files_of(tmp_path / "by-file")

    network, vectors, of_vectors = spread_network(name), [], []
    for index, path in enumerate(sorted((root / "train-semi").glob("*/*.JPEG"))):
        last, (rows, columns), _ = slow_last(network, name, path)
        mask, grid = read_mask(root, "train-semi", path)[:rows, :columns], tuple(last.shape[2:])
        found = patches.label_patches(mask, (16 * grid[0], 16 * grid[1]), grid)
        chosen = patches.choose_patches(found, 40, np.random.default_rng((0, index)))
        ends = chosen.counts.cumsum()
        for place, end, count in zip(chosen.places, ends, chosen.counts, strict=True):
            vectors.append(last[0].flatten(1)[:, place])
            part = slice(end - count, end)
            of_vectors.append(dict(zip(chosen.labels[part].tolist(), chosen.shares[part], strict=True)))
    bank = torch.nn.functional.normalize(torch.stack(vectors))
    different = pixels = 0
    for path in sorted((root / "validation").glob("*/*.JPEG")):
        last, shown, size = slow_last(network, name, path, turn=path.stem == f"v{TURNED}")
        votes = torch.zeros(1, 51, *last.shape[2:])
        for place, vector in enumerate(last[0].flatten(1).T):
            cosines = bank @ (vector / vector.norm())
            nearest_first = cosines.argsort(descending=True)[:30]
            weights = (cosines[nearest_first] / 0.02).softmax(0)
            for row, weight in zip(nearest_first.tolist(), weights, strict=True):
                for label, share in of_vectors[row].items():
                    votes[0, label].view(-1)[place] += weight * float(share)
        labels = interpolate(votes, size=shown, mode="bilinear").argmax(1)[0].numpy()
        expected = np.pad(labels, [(0, size[0] - shown[0]), (0, size[1] - shown[1])], mode="edge")
        found = decode_mask(tmp_path / "out/validation" / path.parent.name / f"{path.stem}.png")
        different += int((found != expected).sum())
        pixels += found.size
    assert different <= pixels / 2000


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--bank", "patch"), "neither regions nor patches nor a file"),
        (("--patches-per-picture", "9"), "goes with --bank patches"),
    ],
)
def test_banks_that_are_none_are_wrong_usage(save, tmp_path, monkeypatch, capsys, more, words):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, command(save, tmp_path / "out", "resnet18", *more))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    with pytest.raises(InputError, match=r"none\.npz: no such bank"):
        call(monkeypatch, command(save, tmp_path / "out", "resnet18", "--bank", str(tmp_path / "none.npz")))


def test_any_pictures_with_a_bank_made_before(save, finished, tmp_path, monkeypatch):
    pictures = tmp_path / "photos"
    (pictures / "a" / "b").mkdir(parents=True)
    source = sorted((save / "ImageNetS50" / "validation").glob("*/*.JPEG"))[0]
    grey = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13
    Image.fromarray(grey).save(pictures / "16 bit.png")
    Image.new("CMYK", (50, 40), (9, 90, 30, 0)).save(pictures / "a" / "cmyk.jpg")
    Image.open(source).save(pictures / "a" / "b" / "same.png")
    Image.new("LA", (21, 33), (80, 255)).save(pictures / "alpha.PNG")
    Image.new("RGB", (30, 1), (80, 3, 2)).save(pictures / "low.png")
    arguments = command(save, tmp_path / "out", "resnet18", "--bank", str(finished["resnet18"] / "bank.npz"))
    arguments[1:5] = ["--images", str(pictures)]
    call(monkeypatch, arguments)
    sizes = {
        path.relative_to(tmp_path / "out" / "images").as_posix(): decode_mask(path).shape
        for path in (tmp_path / "out" / "images").rglob("*.png")
    }
    expected = {"16 bit.png": (60, 80), "a/cmyk.png": (40, 50), "alpha.png": (33, 21), "low.png": (1, 30)}
    assert sizes == expected | {"a/b/same.png": Image.open(source).size[::-1]}


def test_bad_images_are_told_together_and_the_others_made(save, finished, tmp_path, monkeypatch):
    copied = tmp_path / "save"
    shutil.copytree(save, copied)
    bad = sorted((copied / "ImageNetS50" / "validation").glob("*/*.JPEG"))[1:3]
    bad[0].write_bytes(bad[0].read_bytes()[:300])
    Image.new("RGB", (500, 2)).save(bad[1], "JPEG")
    bad.append(bad[1].with_name("v9.JPEG"))
    bad[2].write_bytes(b"")
    bank = ("--bank", str(finished["resnet18"] / "bank.npz"))
    with pytest.raises(InputError, match="3 images are bad") as caught:
        call(monkeypatch, command(copied, tmp_path / "out", "resnet18", *bank))
    assert all(str(path) in str(caught.value) for path in bad)
    assert len(list((tmp_path / "out" / "validation").rglob("*.png"))) == 6
    shutil.rmtree(copied / "ImageNetS50" / "train-semi-segmentation")
    with pytest.raises(InputError, match=r"no masks; put them in place: bash .*datapreparation_anno.sh"):
        call(monkeypatch, command(copied, tmp_path / "other"))
    with pytest.raises(InputError, match="this backbone has 192"):
        call(monkeypatch, command(copied, tmp_path / "other", NETWORKS[1], *bank))


@pytest.mark.parametrize(
    ("stride", "size"), [(32, (5, 7)), (16, (9, 4)), (14, (6, 11)), (8, (13, 10)), (32, (1, 2))]
)
@pytest.mark.parametrize("rows", [1, 3, 17, 1000])
def test_cosines_in_blocks_are_those_of_the_enlarged_map(stride, size, rows, monkeypatch):
    """Where products are enlarged in place of features, and in blocks of so many rows of the grid."""
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 19, *size, generator=rng)
    bank = torch.nn.functional.normalize(torch.randn(23, 19, generator=rng))
    grid = neighbours.grid_size(size, stride)
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 8)
    monkeypatch.setattr(neighbours, "_SCORE_BYTES", {"cpu": 4 * rows * grid[1] * len(bank)})
    blocks = list(neighbours._cosines(maps, grid, bank))
    larger = torch.nn.functional.normalize(interpolate(maps, size=grid, mode="bilinear"))
    expected = larger.permute(0, 2, 3, 1).flatten(0, 2) @ bank.T
    assert torch.allclose(torch.cat(blocks), expected, atol=1e-6)
    assert max(map(len, blocks)) <= rows * grid[1]


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any tensor has that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_no_tensor_is_larger_than_the_block_that_is_allowed(monkeypatch):
    """Of two pictures of 120 x 100 places and 900 embeddings, whose cosines together are 21.6 million."""
    monkeypatch.setattr(neighbours, "_SCORE_BYTES", {"cpu": 4 * 500_000})
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 8)
    bank = Bank(torch.nn.functional.normalize(torch.randn(900, 32)), torch.arange(900) % 51)
    with LargestTensor() as largest:
        labels = label_maps(torch.randn(2, 32, 30, 25), 32, bank, 10, 0.07)
    assert labels.shape == (2, 120, 100)
    assert 250_000 < largest.numbers <= 500_000


def test_a_pixel_equal_to_a_class_of_one_vector_gets_it():
    rng = torch.Generator().manual_seed(0)
    for classes, channels in ((1, 3), (7, 5), (50, 64)):
        vectors = torch.nn.functional.normalize(torch.randn(classes, channels, generator=rng))
        bank = Bank(vectors, torch.arange(classes) * 3)
        pixels = torch.randint(classes, (2, 4, 5), generator=rng)
        maps = (vectors[pixels] * torch.rand(2, 4, 5, 1, generator=rng).add(0.1)).permute(0, 3, 1, 2)
        for number in {1, min(10, classes)}:
            assert torch.equal(label_maps(maps, 8, bank, number, 0.01), pixels * 3)


def test_of_equal_neighbours_those_that_stand_first_count():
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    values, places = nearest(torch.tensor([[2.0, 0.0]] * 40), vectors, 2)
    assert places.sort(dim=1).values.tolist() == [[1, 2]] * 40
    assert values.tolist() == [[1.0, 1.0]] * 40


@pytest.mark.parametrize(
    ("old", "new"), [((8, 11), (375, 500)), ((32, 44), (97, 131)), ((300, 17), (32, 44))]
)
def test_labels_are_enlarged_as_pytorch_does(old, new):
    labels = np.random.default_rng(0).integers(0, 900, old).astype(np.uint16)
    expected = interpolate(torch.from_numpy(labels.astype(np.float32))[None, None], size=new, mode="nearest")
    assert (enlarged(labels, *new) == expected[0, 0].numpy()).all()


@pytest.mark.parametrize("count", [1, 15, 16, 100, 12_419, 1_200_000])
def test_chunks_are_all_images_in_order(count):
    chunks = chunks_of(count, 16)
    assert [index for chunk in chunks for index in chunk] == list(range(count))
    assert max(map(len, chunks)) <= 1024


def test_vectors_of_a_bank_that_are_zero_or_not_finite_are_counted():
    vectors = torch.eye(5)
    vectors[1] = 0
    vectors[3, 2], vectors[4] = float("nan"), float("inf")
    assert unusable_vectors(vectors) == "of 5 embeddings 1 zero and 2 not finite"
    assert unusable_vectors(torch.eye(5)) is None


def test_results_are_known_by_a_number_and_the_libraries(monkeypatch):
    """The number is raised by hand when results change: a comment in the code changes nothing."""
    ours = run_folder.made_by("engine 1, distance matching 1")
    assert ours.startswith("engine 1, distance matching 1, torch ") and "numpy" in ours
    assert run_folder.made_by("engine 1, distance matching 2") != ours
    monkeypatch.setattr(run_folder, "version", lambda name: "99.0")
    assert "torch 99.0" in run_folder.made_by("engine 1, distance matching 1")


def test_label_maps_do_not_wait_for_the_disk(tmp_path, monkeypatch):
    """They can be made again, and there are a million of them."""
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("waits for the disk"))
    path = tmp_path / "n1/a.png"
    label_files.write_label_file(label_files.LabelFile(path, np.array([[0, 3]]), (2, 4), (2, 4)))
    assert decode_mask(path).tolist() == [[0, 0, 3, 3]] * 2
