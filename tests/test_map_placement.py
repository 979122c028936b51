"""Maps lie where they were computed: sizes of pictures, what is cut off, and labels laid on images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masksets import write_mask
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate

from imagenets.common.errors import InputError
from imagenets.learning.distance_matching.bank import embeddings_of
from imagenets.learning.engine.inference import Batch, Running, write_label_maps
from imagenets.learning.engine.label_files import laid
from imagenets.learning.images import Images, Reading, read_picture
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.processes import Processes
from imagenets.masks import decode_mask

RUNNING = Running(Processes(0, 1, torch.device("cpu")), batch_size=4)
PLAIN = ((0.0,) * 3, (1.0,) * 3)


def test_labels_are_enlarged_where_they_lie_and_repeated_beyond():
    labels = np.random.default_rng(0).integers(0, 900, (3, 5)).astype(np.uint16)
    found = laid(labels, (20, 31), (23, 37))
    inside = interpolate(torch.from_numpy(labels.astype(np.float32))[None, None], size=(20, 31))[0, 0]
    for y in range(23):
        for x in range(37):
            assert found[y, x] == inside[min(y, 19), min(x, 30)]
    assert found.shape == (23, 37)
    assert (laid(labels, (20, 31), (20, 31)) == inside.numpy()).all()


# Shorter side and patch, and the picture and the part of the image that it shows, for 90 x 121 pixels.
@pytest.mark.parametrize(
    ("reading", "pixels", "shown"),
    [
        (Reading(*PLAIN, side=60), (60, 80), (90, 121)),
        (Reading(*PLAIN, side=60, cut=14), (56, 70), (84, 106)),
        (Reading(*PLAIN, side=60, cut=16), (48, 80), (72, 121)),
        (Reading(*PLAIN, side=60, multiple=14), (56, 84), (90, 121)),
        (Reading(*PLAIN, fixed_size=(64, 64)), (64, 64), (90, 121)),
    ],
)
def test_what_fills_no_patch_is_cut_off_or_rounded_away(tmp_path, reading, pixels, shown):
    image = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    picture = read_picture(Images(tmp_path, ["a.png"]), "a.png", reading)
    assert picture.pixels.shape == (*pixels, 3)
    assert (picture.size, picture.shown) == ((90, 121), shown)
    if reading.cut > 1:
        whole = np.asarray(Image.fromarray(image).resize((80, 60), Image.Resampling.BILINEAR))
        assert (picture.pixels == whole[: pixels[0], : pixels[1]]).all()


def test_a_network_says_how_large_pictures_become():
    vit, resnet = make_backbone("test_vit"), make_backbone("timm/test_resnet")
    squeezed = make_backbone("levit_128s")
    assert vit.reading().size_text == "256, cut to 16s"
    assert vit.reading(stretched=True).size_text == resnet.reading().size_text == "256"
    assert vit.reading(300).size_text == vit.reading(300, stretched=True).size_text == "300, multiples of 16"
    assert vit.reading("native").size_text == "160, multiples of 16"
    vit.native_size = (256, 128)
    assert vit.reading("native").size_text == "128, multiples of 16"
    assert resnet.reading(448).size_text == "448"
    for size in (None, "native", 224):
        assert squeezed.reading(size).size_text == "224 x 224"
    assert (vit.reading().mean, vit.reading().std) == (vit.mean, vit.std)
    with pytest.raises(InputError, match="size 448: levit_128s takes 224 only"):
        squeezed.reading(448)


@pytest.fixture(scope="module")
def outlines(tmp_path_factory):
    """White objects on black, 4:3, 16:9 and upright, which touch the right and lower borders, and masks."""
    folder = tmp_path_factory.mktemp("outlines")
    rng = np.random.default_rng(3)
    names = []
    for number, (height, width) in enumerate([(375, 500), (375, 500), (500, 375), (288, 512)] * 3):
        y, x = np.mgrid[:height, :width]
        angles = rng.uniform(0, 6.3, 4)
        centre_y, centre_x = rng.uniform(0.5, 0.9, 2) * (height, width)
        angle = np.arctan2(y - centre_y, x - centre_x)
        radius = sum(np.sin(n * angle + a) / n for n, a in enumerate(angles, 3)) * 30 + height / 5
        inside = np.hypot(y - centre_y, x - centre_x) < radius
        names.append(f"{number}.png")
        Image.fromarray(np.repeat(inside[..., None] * np.uint8(255), 3, 2)).save(folder / names[-1])
        write_mask(folder / "masks" / names[-1], inside.astype(int))
    return Images(folder, names)


def mean_iou(images, output):
    counts = np.zeros((2, 2), int)
    for name in images.names:
        truth, found = decode_mask(images.folder / "masks" / name), decode_mask(output / name)
        counts += np.bincount(truth.ravel() * 2 + found.ravel(), minlength=4).reshape(2, 2)
    hits = np.diag(counts)
    return 100 * np.mean(hits / (counts.sum(0) + counts.sum(1) - hits))


@pytest.mark.parametrize("side", [256, 300])
def test_perfect_labels_of_patches_gain_by_lying_where_they_were_computed(outlines, tmp_path, side):
    """Each patch of 14 has the label of most of its pixels; what fills none is not seen, as in a ViT."""

    def step(batch):
        return (avg_pool2d(batch.pictures[:, :1], 14) > 0.5)[:, 0].to(torch.uint8)

    scores = {}
    for name, more in {"stretched": {}, "laid": {"cut": 14}, "rounded": {"multiple": 14}}.items():
        targets = [tmp_path / name / image for image in outlines.names]
        write_label_maps(outlines, targets, step, Reading(*PLAIN, side=side, **more), RUNNING)
        scores[name] = mean_iou(outlines, tmp_path / name)
    assert scores["laid"] > scores["stretched"] + 1
    assert scores["rounded"] > scores["stretched"] + 1


def test_embeddings_are_of_the_part_of_the_mask_that_was_seen():
    """A label that lies wholly beyond it has none, and those that are seen are not moved."""
    mask = np.zeros((100, 140), np.uint16)
    mask[:, 70:130], mask[:, 130:] = 1, 2
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0], maps[0, 1, :, 2:] = 1, 1  # the second channel is the right half of what was seen
    batch = Batch([0], torch.zeros(1, 3, 32, 32), [(100, 140)], [(96, 130)], [mask])
    (found,) = embeddings_of(maps, 8, batch.shown_masks)
    assert found["labels"].tolist() == [0, 1]
    # Columns 0, 32, 65 and 97 of the mask: three places see 0, though the third is in the right half.
    assert torch.allclose(found["embeddings"], torch.tensor([[12.0, 4.0], [4.0, 4.0]]) / 16)
