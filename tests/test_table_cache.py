"""The cache of counted masks: used when it may be, rebuilt when it must be."""

from __future__ import annotations

import hashlib
import os
import shutil

import numpy as np
import pytest
from masksets import random_images, write_mask, write_pairs
from PIL import Image

from imagenets.common.progress import no_warning
from imagenets.scoring import contingency
from imagenets.scoring.metrics import evaluate
from imagenets.scoring.pairs import find_pairs
from imagenets.scoring.table_cache import cached_table

NAME = "n00000001/image_1.png"


@pytest.fixture
def masks(tmp_path):
    write_pairs(tmp_path, random_images(np.random.default_rng(0), 5, 3, 3))
    return tmp_path


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes over masks that are really made."""
    made = []
    count = contingency._count_files
    first = "n00000000/image_0.png"
    monkeypatch.setattr(
        contingency,
        "_count_files",
        lambda pairs, image: (pairs.names[image] == first and made.append(1)) or count(pairs, image),
    )
    return made


def scores(folder, cache="cache", warn=no_warning):
    pairs = find_pairs(folder / "gt", folder / "pred")
    table, problems = cached_table(pairs, cache and folder / cache, 0, warn=warn)
    assert not problems
    return evaluate(table, 3).scores


def test_the_second_evaluation_reads_no_mask(masks, passes):
    first = scores(masks)
    assert scores(masks) == first
    assert len(passes) == 1
    scores(masks, cache=None)
    assert len(passes) == 2


CHANGES = {
    "touched prediction": lambda folder: os.utime(folder / "pred" / NAME, ns=(1, 1)),
    "touched ground truth": lambda folder: os.utime(folder / "gt" / NAME, ns=(1, 1)),
    "other prediction": lambda folder: write_mask(folder / "pred" / NAME, mask_like(folder, 3)),
    "other ground truth": lambda folder: write_mask(folder / "gt" / NAME, mask_like(folder, 3)),
    "added": lambda folder: write_pairs(
        folder, [(np.ones((3, 3), int), np.ones((3, 3), int))], ["n9/new.png"]
    ),
    "removed": lambda folder: (folder / "gt" / NAME).unlink(),
}


def mask_like(folder, label):
    with Image.open(folder / "gt" / NAME) as image:
        return np.full(image.size[::-1], label)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_any_file_is_noticed(masks, passes, change):
    scores(masks)
    CHANGES[change](masks)
    changed = scores(masks)
    assert len(passes) == 2
    assert changed == scores(masks, cache=None)


def test_content_changed_under_the_same_size_and_time_is_noticed(masks, passes):
    prediction = masks / "pred" / NAME
    write_mask(masks / "gt" / NAME, [[1]])
    write_mask(prediction, [[1]])
    before = prediction.stat()
    first = scores(masks)
    write_mask(prediction, [[2]])
    assert prediction.stat().st_size == before.st_size
    os.utime(prediction, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scores(masks) != first


def test_predictions_of_two_methods_have_a_cache_each_and_bad_masks_none(masks):
    def cached(predictions):
        return cached_table(find_pairs(masks / "gt", masks / predictions), masks / "cache", 0)[1]

    (masks / "pred" / NAME).write_bytes(b"")
    assert len(cached("pred")) == 1 and not (masks / "cache").exists()
    write_mask(masks / "pred" / NAME, mask_like(masks, 1))
    shutil.copytree(masks / "pred", masks / "other")
    assert cached("pred") == cached("other") == []
    assert len(list((masks / "cache").iterdir())) == 2
    (masks / "pred" / NAME).unlink()
    assert "no such prediction" in cached("pred")[0]


def with_digest(body):
    return hashlib.sha256(body).digest() + body


SPOILT = {
    "byte": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "cut": lambda content: content[:-1],
    "empty": lambda content: b"",
    "foreign": lambda content: b"PK\3\4 something else altogether",
    "another format": lambda content: with_digest(content[32:].replace(b"table 1", b"table 0")),
    "short": lambda content: with_digest(content[32:-1]),
    "nothing": lambda content: with_digest(b""),
    "JSON": lambda content: with_digest(b"{}\n"),
    "only a heading": lambda content: with_digest(b"imagenets contingency table 1\n"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_damaged_or_foreign_cache_is_rebuilt(masks, passes, kind):
    first = scores(masks)
    (file,) = (masks / "cache").iterdir()
    good = file.read_bytes()
    file.write_bytes(SPOILT[kind](good))
    assert scores(masks) == first
    assert len(passes) == 2
    assert file.read_bytes() == good


def test_every_single_byte_counts(masks, passes):
    first = scores(masks)
    (file,) = (masks / "cache").iterdir()
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 20):
        content = bytearray(good)
        content[position] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(content))
        assert scores(masks) == first
    assert len(passes) == 21


def test_a_cache_that_cannot_be_written_is_said(masks):
    first = scores(masks)
    (file,) = (masks / "cache").iterdir()
    file.unlink()
    file.mkdir()
    said = []
    assert scores(masks, warn=said.append) == first
    assert "not cached" in said[0]
