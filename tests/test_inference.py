"""The loop of inference by function: batches, shares of processes, what is resumed, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from masksets import write_mask
from PIL import Image

from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import (
    Running,
    chunks_of,
    load_arrays,
    store_arrays,
    visit,
    write_label_maps,
)
from imagenets.learning.images import Images, Reading
from imagenets.learning.processes import Processes
from imagenets.masks import decode_mask

READING = Reading((0.5,) * 3, (0.25,) * 3, side=8)
COUNT, BATCH = 40, 2  # chunks of three: batches of one size, and what is left over at a chunk's end
WIDE = {number for number in range(COUNT) if number % 4 == 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        size = (24, 16) if number in WIDE else (16, 16)
        Image.new("RGB", size, (number, 0, 255)).save(folder / f"{number}.png")
        write_mask(folder / f"masks/{number}.png", np.full(size[::-1], number))
    return Images(folder, [f"{number}.png" for number in range(COUNT)], folder / "masks")


def running(rank=0, number=1, **options):
    return Running(Processes(rank, number, torch.device("cpu")), batch_size=BATCH, **options)


def expected_batches():
    """Chunk by chunk; in it, pictures of one size as they come, two at a time, and then the rest."""
    batches = []
    for start in range(0, COUNT, 3):
        chunk = range(start, min(start + 3, COUNT))
        narrow = [number for number in chunk if number not in WIDE]
        wide = [number for number in chunk if number in WIDE]
        batches += [narrow[i : i + 2] for i in range(0, len(narrow), 2)] + [wide] * bool(wide)
    return sorted(batches)


class Step:
    """Finds for each picture a label map of one place, its number, which it reads off the picture."""

    def __init__(self):
        self.batches = []

    def __call__(self, batch):
        assert not torch.is_grad_enabled() and batch.pictures.shape[2] == 8
        self.batches.append(batch.indices)
        red = (batch.pictures[:, 0].amax((1, 2)) * 0.25 + 0.5) * 255
        numbers = red.round().int()
        assert numbers.tolist() == batch.indices
        return numbers[:, None, None]


def targets_in(folder):
    return [folder / f"{number}.png" for number in range(COUNT)]


def test_pictures_of_one_size_and_chunk_make_a_batch_and_each_gets_its_label_map(images, tmp_path):
    step, targets = Step(), targets_in(tmp_path)
    assert write_label_maps(images, targets, step, READING, running()) == COUNT
    assert sorted(step.batches) == expected_batches()
    for number, target in enumerate(targets):
        found = decode_mask(target)
        assert found.shape == ((16, 24) if number in WIDE else (16, 16)) and (found == number).all()


def test_label_maps_lie_on_what_the_picture_shows(images, tmp_path):
    """Of 24 x 16 pixels, 12 x 8 in the picture, 10 x 5 are shown: 20 x 10 of the image."""
    one, target = Images(images.folder, ["1.png"]), tmp_path / "a.png"
    reading = Reading((0.5,) * 3, (0.25,) * 3, side=8, cut=5)
    write_label_maps(one, [target], lambda batch: torch.tensor([[[3, 7]]]), reading, running())
    found = decode_mask(target)
    assert found.shape == (16, 24) and (found[:, :10] == 3).all() and (found[:, 10:] == 7).all()


def test_what_is_there_is_not_made_again_and_its_batch_is_the_same(images, tmp_path):
    step, targets = Step(), targets_in(tmp_path)
    write_label_maps(images, targets, Step(), READING, running())
    nothing = running(show=lambda *of, **more: pytest.fail("a bar of nothing"))
    assert write_label_maps(images, targets, step, READING, nothing) == 0 and step.batches == []
    targets[6].unlink()
    before = targets[8].stat().st_mtime_ns
    assert write_label_maps(images, targets, step, READING, running()) == 1
    assert step.batches == [batch for batch in expected_batches() if 6 in batch] and len(step.batches[0]) == 2
    assert targets[6].exists() and targets[8].stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("full"), InputError, "memory of cpu does not suffice: lower the batch size"),
        (RuntimeError("can't allocate memory"), InputError, "or the number of workers"),
        (RuntimeError("not enough memory"), InputError, "or the number of workers"),
        (RuntimeError("shapes do not fit"), RuntimeError, "shapes do not fit"),
    ],
)
def test_only_a_lack_of_memory_becomes_a_message(images, tmp_path, error, kind, words):
    def step(batch):
        raise error

    with pytest.raises(kind, match=words):
        write_label_maps(images, targets_in(tmp_path), step, READING, running())


def test_processes_share_the_images_out(images, tmp_path):
    titles, batches, made = [], [], []

    @contextmanager
    def show(title, total, unit):
        titles.append(title)
        yield lambda number: None

    for rank in range(2):
        step = Step()
        made.append(
            write_label_maps(images, targets_in(tmp_path), step, READING, running(rank, 2, show=show))
        )
        batches += step.batches
    assert sum(made) == COUNT and min(made) > 10
    assert sorted(batches) == expected_batches()
    assert titles == [f"{images.folder.name} (one of 2 shares)"] * 2


def test_bad_images_are_told_together_behind_the_others(images, tmp_path):
    names = [*images.names[:4], "no.png", "9999.png"]
    (images.folder / "9999.png").write_bytes(b"no picture")
    steps = []

    @contextmanager
    def show(title, total, unit):
        assert (title, total, unit) == (images.folder.name, 6, "images")
        yield steps.append

    targets = [tmp_path / f"{number}.png" for number in range(6)]
    with pytest.raises(InputError, match=r"2 images are bad:\n.*/9999\.png.*\n.*/no\.png"):
        write_label_maps(Images(images.folder, names), targets, Step(), READING, running(show=show))
    assert [target.exists() for target in targets] == [True] * 4 + [False] * 2
    assert sum(steps) == 6


@pytest.mark.parametrize("number", [65_535, 0])
def test_labels_that_a_file_can_hold_are_written(images, tmp_path, number):
    one, target = Images(images.folder, ["0.png"]), tmp_path / "a.png"
    write_label_maps(one, [target], lambda batch: [torch.full((2, 2), number)], READING, running())
    assert (decode_mask(target) == number).all()


def test_arrays_are_kept_in_the_images_order_and_by_what_they_are_of(images, tmp_path):
    def store(folder=tmp_path, identity="network", images=images, **process):
        """The files, and the numbers of the images that were looked at for them."""
        step = Step()

        def rows(batch):
            return [{"number": label.flatten().repeat(2)} for label in step(batch)]

        paths = store_arrays(images, folder, identity, rows, READING, running(**process))
        return paths, sorted(index for batch in step.batches for index in batch)

    paths, seen = store()
    assert len(paths) == len(set(paths)) == 14 and all(path.exists() for path in paths)
    assert seen == list(range(COUNT))
    assert load_arrays(paths, "number").tolist() == [number for number in range(COUNT) for _ in (0, 1)]
    paths[2].unlink()
    assert store() == (paths, [6, 7, 8])
    assert not set(store(identity="another")[0]) & set(paths)
    for rank in range(2):
        shared, _ = store(tmp_path / "shared", rank=rank, number=2)
        assert [path.name for path in shared] == [path.name for path in paths]
    assert all(path.exists() for path in shared)
    paths[0].write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged; remove it"):
        load_arrays(paths, "number")
    (tmp_path / "0.png").touch()
    with pytest.raises(InputError, match="1 image is bad"):
        store(images=Images(tmp_path, ["0.png"]))


def test_a_visit_sees_every_image_with_its_mask_once(images):
    seen = []
    for batch, results in visit(images, Step(), READING, running(), with_masks=True):
        for index, mask, label in zip(batch.indices, batch.masks, results, strict=True):
            assert (mask == index).all() and label.item() == index
            seen.append(index)
    assert sorted(seen) == list(range(COUNT))
    without = visit(Images(images.folder, ["0.png"]), Step(), READING, running())
    assert [batch.masks for batch, _ in without] == [[]]
    one, reading = Images(images.folder, ["1.png"], images.masks), Reading((0.5,) * 3, (0.25,) * 3, 8, cut=5)
    found = visit(one, lambda batch: [torch.zeros(1)], reading, running(), with_masks=True)
    assert [batch.shown_masks[0].shape for batch, _ in found] == [(10, 20)]
    with pytest.raises(InputError, match="1 image is bad"):
        list(visit(Images(images.folder, ["0.png", "none.png"]), Step(), READING, running()))


@pytest.mark.parametrize(("count", "size"), [(100, 16), (400, 25), (401, 26), (10**5, 1024)])
def test_there_are_sixteen_chunks_unless_they_were_too_small_or_large(count, size):
    """A batch at least, 1,024 images at most."""
    chunks = chunks_of(count, 16)
    assert chunks[0] == range(size) and chunks[-1].stop == count
    assert {len(chunk) for chunk in chunks[:-1]} == {size} and 0 < len(chunks[-1]) <= size
