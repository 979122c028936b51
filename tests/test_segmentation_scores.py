"""The metric for training loops: the digits of evaluator.py and the slow reference, however it is fed."""

from __future__ import annotations

import io
import json
import math
import pickle

import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from masksets import REAL, random_images, table_of
from torchmetrics import MetricCollection, MetricTracker

from imagenets import SegmentationScores
from imagenets.masks import decode_mask
from imagenets.scoring.matching import Matching, find_matching, shared_with_class
from imagenets.scoring.metrics import BOUNDARY_SCORES, SCORES, evaluate

IDENTITY, SWAPPED = [0, 1, 2, 3, 4, 5], [0, 2, 1, 3, 4, 5]


def fed(images, scores=None):
    scores = SegmentationScores(5) if scores is None else scores
    for truth, prediction in images:
        scores.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return scores


def one(scores, prediction, target):
    """Count one row of labels."""
    scores.update(torch.tensor([prediction]), torch.tensor([target]))
    return scores


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert first[name] == second[name] or (math.isnan(first[name]) and math.isnan(second[name])), name


def assert_nothing_counted(scores):
    assert all(math.isnan(score) for score in scores.compute().values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9))
def test_scores_are_those_of_the_reference_and_to_the_last_digit_of_evaluate(seed, count, classes, clusters):
    """Without clusters, predictions are classes."""
    rng = np.random.default_rng(seed)
    images = random_images(rng, count, classes, clusters or classes)
    scores = fed(images, SegmentationScores(classes, clusters=clusters or None))
    match = np.append(0, rng.integers(0, classes + 1, clusters)) if clusters else None
    expected = reference.scores(images, classes, dict(enumerate(match.tolist())) if clusters else None)
    forms = (match, dict(enumerate(match)), Matching(match)) if clusters else (None,)
    for form in forms:
        found = scores.compute(form)
        assert tuple(found) == SCORES
        for name in SCORES:
            assert found[name] == pytest.approx(expected[name], abs=1e-11, nan_ok=True), name
        assert_same(found, evaluate(table_of(images), classes, match).scores)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real masks are not beside the checkout")
def test_real_masks_score_as_published():
    expected = json.loads((REAL / "expected.json").read_text())
    scores = SegmentationScores("50")
    for path in sorted((REAL / "validation-segmentation").glob("*/*.png")):
        name = f"{path.parent.name}/{path.name}"
        scores.update(decode_mask(REAL / "predictions" / name), decode_mask(path))
    matching = {int(k): v for k, v in expected["matching"].items()}
    for match, case in ((None, "unmatched"), (matching, "matched")):
        for name, score in scores.compute(match).items():
            assert score == pytest.approx(expected[case][name], abs=0.006), name
    shared = shared_with_class(scores.table(), find_matching(scores.table(), "image", 50, 50), 50)
    assert shared.images.sum() == expected["matching_total"]


def some_images(count=6, same_size=True):
    rng = np.random.default_rng(5)
    if not same_size:
        return random_images(rng, count, 5, 5)
    return [
        tuple(rng.choice(labels, (20, 25)).repeat(2, 0) for labels in ([0, 1, 2, 5, 1000], range(6)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("boundary", [True, False])
def test_batches_orders_types_and_merging_change_nothing(boundary):
    def new():
        return SegmentationScores(5, boundary=boundary)

    images = some_images()
    whole = fed(images, new()).compute()
    truths, predictions = (torch.from_numpy(np.stack(side)) for side in zip(*images, strict=True))

    batched = new()
    batched.update(predictions[4:].to(torch.uint8), truths[4:].to(torch.int16))
    batched.update(predictions[:4].to(torch.int32), truths[:4])
    assert_same(batched.compute(), whole)

    first = fed(images[:2], new())
    first.merge_state(fed(images[2:], new()))
    assert_same(first.compute(), whole)

    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    loaded = fed(images[:1], new())
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    for _ in range(2):
        assert_same(loaded.compute(), whole)
    loaded.reset()
    assert_same(fed(images, loaded).compute(), whole)


def test_without_boundaries_their_scores_do_not_exist_and_the_others_stay():
    images = some_images()
    full = fed(images).compute()
    fast = fed(images, SegmentationScores(5, boundary=False))
    assert not any(math.isnan(full[name]) for name in ("mBIoU", "BMS", "mIoU", "Acc"))
    assert_same(fast.compute(), {**full, **dict.fromkeys(BOUNDARY_SCORES, math.nan)})


@pytest.mark.parametrize("ignore_index", [255, -100, -1, 6, 65535, 10**12])
def test_any_ignore_index(ignore_index):
    images = some_images()
    renamed = [(np.where(truth == 1000, ignore_index, truth), prediction) for truth, prediction in images]
    assert_same(fed(renamed, SegmentationScores(5, ignore_index)).compute(), fed(images).compute())


def test_ignored_pixels_are_no_foreground_and_an_image_of_them_counts():
    scores = one(SegmentationScores(5), [1, 0, 0], [1, 1000, 1000])
    assert scores.compute()["FMeasure"] == pytest.approx(100)
    scores = one(scores, [1], [1000]).compute()
    assert (scores["Acc"], scores["FMeasure"]) == (50, pytest.approx(50))


def test_iou_pools_pixels_and_is_no_mean_over_images():
    scores = one(one(SegmentationScores(1), [1, 1, 1, 1], [1, 1, 1, 1]), [0, 1], [1, 0])
    assert scores.compute()["mIoU"] == (0 + 100 * 4 / 6) / 2


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_no_image_no_score():
    scores = SegmentationScores("50")
    assert set(scores.compute()) == set(SCORES)
    assert_nothing_counted(scores)
    scores.update(torch.zeros((0, 4, 4), dtype=torch.int64), torch.zeros((0, 4, 4), dtype=torch.int64))
    scores.update([], [])
    assert_nothing_counted(scores)
    assert scores.compute_classes()["IoU"].isnan().all()


INTS = torch.zeros((2, 3, 4), dtype=torch.int64)
SECOND_WRONG = torch.stack([INTS[0], INTS[1] + 6])


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (INTS.float(), INTS, "prediction is of type torch.float32"),
        (INTS, INTS.bool(), "target is of type torch.bool"),
        (INTS.tolist(), INTS, "must both be lists"),
        (list(INTS), [INTS[0]], "must both be lists, of as many images"),
        (INTS.tolist(), INTS.tolist(), "prediction is of type list"),
        (list(INTS), [INTS[0], INTS[1][1:]], r"\(3, 4\), target \(2, 4\)"),
        (np.zeros((2, 3, 4)), INTS, "prediction is of type float64"),
        (INTS[:, :2], INTS, r"\(2, 2, 4\), target \(2, 3, 4\)"),
        (INTS[None], INTS[None], r"\(1, 2, 3, 4\)"),
        (INTS[0, 0], INTS[0, 0], r"\(4,\)"),
        (INTS[:, :0], INTS[:, :0], r"\(2, 0, 4\)"),
        (INTS, INTS + 6, "picture 0 .* has label 6, which is neither in 0..5 nor ignore_index 1000"),
        (INTS, SECOND_WRONG, "target of picture 1 of the batch has label 6"),
        (INTS, INTS - 1, "target of picture 0 of the batch: labels -1"),
        (INTS, INTS + 2**32, "target of picture 0 of the batch: labels 4294967296"),
        (INTS - 1, INTS, r"prediction of picture 0 of the batch: labels -1..-1 do not fit into 0..65535"),
        (INTS + 65536, INTS, "prediction of picture 0 of the batch: labels 65536"),
        (INTS + 2**32, INTS, "prediction of picture 0 of the batch: labels 4294967296"),
        (list(SECOND_WRONG), list(INTS), r"prediction of picture 1 of the batch has label 6.* clusters="),
    ],
)
def test_what_are_no_labels_is_refused_and_not_counted(prediction, target, message):
    scores = SegmentationScores(5)
    with pytest.raises(ValueError, match=message):
        scores.update(prediction, target)
    assert_nothing_counted(scores)


def test_a_bad_target_beside_an_ignore_index_that_is_no_label():
    with pytest.raises(ValueError, match="target of picture 1 of the batch has label 6"):
        SegmentationScores(5, -100).update(INTS, SECOND_WRONG)


def test_clusters_need_a_matching_that_has_them():
    scores = one(SegmentationScores(5, clusters=65535), [65535, 1000], [3, 1])
    for match, message in (
        (None, r"65535 is no class in 0\.\.5; clusters need a matching"),
        ({1000: 1}, "lacks 1 predicted clusters, 65535"),
        ({1000: 1, 65535: 6}, "cluster 65535: 6 is no class"),
        (Matching.of({1: 1, 65536: 3}), "lacks 2 predicted clusters, 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.compute(match)
    assert scores.compute({1000: 1, 65535: 3})["Acc"] == 100


def test_predictions_beyond_the_clusters_are_refused_where_they_come():
    scores = one(SegmentationScores(5, clusters=9), [9], [1])
    with pytest.raises(ValueError, match=r"picture 1 of the batch has label 10, there are 0\.\.9$"):
        scores.update([torch.tensor([[0]]), torch.tensor([[10]])], [torch.tensor([[1]])] * 2)
    assert len(scores.table().names) == 1


@pytest.mark.parametrize("other", [(4,), (5, 255), (5, 1000, False), (5, 1000, True, 9)])
def test_a_state_that_counts_otherwise_is_refused(other):
    with pytest.raises(ValueError, match="these metrics have other settings"):
        SegmentationScores(5).merge_state(SegmentationScores(*other))
    with pytest.raises(ValueError, match="these metrics have other settings"):
        SegmentationScores(5).load_state_dict(SegmentationScores(*other).state_dict())


@pytest.mark.parametrize(
    "arguments",
    [("51",), (0,), (65535,), (1000,), (5, 5), (5, 0), (5, 1000, True, 0), (5, 1000, True, 65536)],
)
def test_what_cannot_be_counted_is_refused(arguments):
    with pytest.raises(ValueError, match=r"mode|classes|ignore_index|clusters; give 1\.\."):
        SegmentationScores(*arguments)


def plain(scores):
    return {name: value.item() for name, value in scores.items()}


def _rank(rank, world, address, images, answers):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    scores = fed(images[rank::world])
    classes = scores.compute_classes(SWAPPED)
    with pytest.raises(ValueError, match="the matching lacks"):
        scores.compute({0: 0})
    # That error has left each rank with its own, which goes on being counted, and not with all ranks'.
    collection = MetricCollection({"scores": scores, "fast": SegmentationScores(5, boundary=False)})
    before = plain(scores.compute())
    after = plain(fed(images[:1] if rank == 0 else [], collection).compute())
    own = sum(map(len, scores.images))
    answers.put((rank, before, {k: v.tolist() for k, v in classes.items()}, after, own))
    dist.destroy_process_group()


@pytest.mark.parametrize(("world", "count"), [(2, 5), (4, 3)])
def test_compute_gathers_over_the_ranks(tmp_path, world, count):
    """With 4 ranks and 3 images, one rank has none."""
    images = some_images(count, same_size=False)
    context = torch.multiprocessing.get_context("fork")
    answers = context.Queue()
    address = f"file://{tmp_path}/store"
    ranks = [context.Process(target=_rank, args=(r, world, address, images, answers)) for r in range(world)]
    for process in ranks:
        process.start()
    results = [answers.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join()
    whole, more = fed(images), fed([*images, images[0]]).compute()
    of_classes = {name: values.tolist() for name, values in whole.compute_classes(SWAPPED).items()}
    for rank, before, classes, after, own in results:
        assert_same(before, whole.compute())
        assert classes == of_classes
        assert_same({name: after[f"scores_{name}"] for name in SCORES}, more)
        assert own == len(images[rank::world]) + (rank == 0), "what a rank keeps is its own"


# The habits of torchmetrics.


def test_another_matching_has_other_scores():
    scores = fed(some_images())
    results = [plain(scores.compute(match)) for match in (None, IDENTITY, SWAPPED, IDENTITY)]
    assert_same(results[0], results[1])
    assert_same(results[1], results[3])
    assert results[1]["mIoU"] != results[2]["mIoU"]
    assert torch.equal(scores.compute(torch.tensor(SWAPPED))["mIoU"], scores.compute(SWAPPED)["mIoU"])


def test_scores_of_classes():
    images = some_images()
    expected = evaluate(table_of(images), 5, np.array(SWAPPED))
    scores = fed(images)
    of_classes = scores.compute_classes(SWAPPED)
    assert of_classes["IoU"].tolist() == expected.iou.tolist()
    assert of_classes["BIoU"].tolist() == expected.boundary_iou.tolist()
    assert of_classes["IoU"].mean().item() == pytest.approx(scores.compute(SWAPPED)["mIoU"].item())
    fast = fed(images, SegmentationScores(5, boundary=False)).compute_classes(SWAPPED)
    assert torch.equal(fast["IoU"], of_classes["IoU"]) and fast["BIoU"].isnan().all()


def test_forward_returns_the_batchs_own_scores():
    images = some_images()
    scores = SegmentationScores(5)
    for truth, prediction in images:
        batch = scores(torch.from_numpy(prediction), torch.from_numpy(truth))
        assert_same(batch, fed([(truth, prediction)]).compute())
    assert_same(scores.compute(), fed(images).compute())


@pytest.mark.parametrize("target", [7, 1])
def test_a_forward_that_fails_counts_nothing_and_loses_nothing(target):
    images = some_images()
    scores = fed(images)
    before = plain(scores.compute())
    with pytest.raises(ValueError, match=r"has label (7|6, there are 0..5; if they are clusters)"):
        scores(torch.tensor([[6]]), torch.tensor([[target]]))
    assert_same(scores.compute(), before)
    assert_same(fed(images, scores).compute(), fed([*images, *images]).compute())


def test_metrics_of_a_collection_have_the_digits_of_each():
    """Metrics whose states were alike after one batch are not taken for one."""
    images = [(np.where(truth == 1000, 0, truth), guess) for truth, guess in some_images(2)] + some_images()
    kinds = {
        "five": {},
        "same": {},
        "six": {"classes": 6},
        "fast": {"boundary": False},
        "more": {"clusters": 5},
    }
    collection = MetricCollection({k: SegmentationScores(**{"classes": 5, **v}) for k, v in kinds.items()})
    together = fed(images, collection).compute()
    for name, settings_ in kinds.items():
        alone = fed(images, SegmentationScores(**{"classes": 5, **settings_})).compute()
        assert_same({score: together[f"{name}_{score}"] for score in SCORES}, alone)
    collection.reset()
    batch = collection(*map(torch.from_numpy, images[0][::-1]))
    assert_same({score: batch[f"five_{score}"] for score in SCORES}, fed(images[:1]).compute())


def test_a_tracker_finds_the_best_epoch():
    images = some_images()
    # In a collection: torchmetrics knows no best of a single metric with several values.
    tracker = MetricTracker(MetricCollection([SegmentationScores(5, boundary=False)]), maximize=True)
    perfect = [(truth, np.where(truth == 1000, 0, truth)) for truth, _ in images]
    for epoch in (images[:2], perfect, images[2:]):
        tracker.increment()
        fed(epoch, tracker)
    assert tracker.compute_all()["mIoU"].shape == (3,)
    best, step = tracker.best_metric(return_step=True)
    assert step["mIoU"] == 1
    assert best["mIoU"] == pytest.approx(100 * 4 / 6)  # classes 3 and 4 are nowhere


def test_counts_are_kept_by_types_copies_and_state_dicts():
    images = some_images()
    expected = fed(images).compute()
    module = torch.nn.ModuleDict({"scores": fed(images)})
    for change in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double().cpu()):
        assert_same(change(module)["scores"].compute(), expected)
    scores = module["scores"].set_dtype(torch.float16)
    for copy in (scores.clone(), pickle.loads(pickle.dumps(scores))):
        assert_same(copy.compute(), expected)
    other = torch.nn.ModuleDict({"scores": SegmentationScores(5)})
    other.load_state_dict(module.state_dict())
    assert_same(other["scores"].compute(), expected)
    scores.persistent(False)
    assert not module.state_dict()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(SegmentationScores(5).compute()["mIoU"])


def test_lists_of_images_of_different_sizes():
    images = some_images(same_size=False)
    scores = SegmentationScores(5)
    scores.update([torch.from_numpy(p) for _, p in images[:4]], [torch.from_numpy(t) for t, _ in images[:4]])
    scores.update(tuple(p for _, p in images[4:]), tuple(t for t, _ in images[4:]))
    assert_same(scores.compute(), fed(images).compute())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, np.uint8])
def test_types_of_8_bits_are_refused_where_they_do_not_hold_all_labels(dtype):
    wide = torch.full((1, 2), 7)
    narrow = wide.numpy().astype(dtype) if dtype is np.uint8 else wide.to(dtype)
    for pair in ((narrow, wide), (wide, narrow)):
        with pytest.raises(ValueError, match=r"int8, which holds labels up to (127|255), and there are 919"):
            SegmentationScores("919").update(*pair)
        SegmentationScores("50").update(*pair)
    with pytest.raises(ValueError, match="there are 300"):
        SegmentationScores(5, clusters=300).update(narrow, wide)
    few = SegmentationScores("919", clusters=100)
    few.update(narrow, wide)
    assert float(few.compute()["Acc"]) == 100


def test_it_says_what_it_counts():
    scores = fed(some_images()[:2], SegmentationScores("50", boundary=False))
    assert repr(scores) == (
        "SegmentationScores(50 classes, ignore_index=1000, boundary=False, clusters=None; 2 images counted)"
    )
