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


def fed(images, scores):
    for truth, prediction in images:
        scores.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return scores


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert first[name] == second[name] or (math.isnan(first[name]) and math.isnan(second[name])), name


def assert_reference(scores, expected):
    assert tuple(scores) == SCORES
    for name in SCORES:
        assert scores[name] == pytest.approx(expected[name], abs=1e-11, nan_ok=True), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5))
def test_scores_are_those_of_the_reference_and_to_the_last_digit_of_evaluate(seed, count, classes):
    images = random_images(np.random.default_rng(seed), count, classes, classes)
    scores = fed(images, SegmentationScores(classes)).compute()
    assert_reference(scores, reference.scores(images, classes))
    assert_same(scores, evaluate(table_of(images), classes).scores)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 9))
def test_matched_scores_are_those_of_the_reference(seed, classes, clusters):
    rng = np.random.default_rng(seed)
    images = random_images(rng, 3, classes, clusters)
    scores = fed(images, SegmentationScores(classes, clusters=clusters))
    match = np.append(0, rng.integers(0, classes + 1, clusters))
    expected = reference.scores(images, classes, dict(enumerate(match.tolist())))
    assert_reference(scores.compute(match), expected)
    assert_reference(scores.compute({i: int(c) for i, c in enumerate(match)}), expected)
    assert_reference(scores.compute(Matching(match)), expected)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real masks are not beside the checkout")
def test_real_masks_score_as_published():
    expected = json.loads((REAL / "expected.json").read_text())
    scores = SegmentationScores("50")
    for path in sorted((REAL / "validation-segmentation").glob("*/*.png")):
        name = f"{path.parent.name}/{path.name}"
        scores.update(decode_mask(REAL / "predictions" / name), decode_mask(path))
    for match, wanted in (
        (None, expected["unmatched"]),
        ({int(k): v for k, v in expected["matching"].items()}, expected["matched"]),
    ):
        for name, score in scores.compute(match).items():
            assert score == pytest.approx(wanted[name], abs=0.006), name
    shared = shared_with_class(scores.table(), find_matching(scores.table(), "image", 50, 50), 50)
    assert shared.images.sum() == expected["matching_total"]


def some_images(count=6, same_size=True):
    rng = np.random.default_rng(5)
    images = random_images(rng, count, 5, 5)
    if same_size:
        images = [
            (rng.choice([0, 1, 2, 5, 1000], (20, 25)).repeat(2, 0), rng.integers(0, 6, (20, 25)).repeat(2, 0))
            for _ in range(count)
        ]
    return images


@pytest.mark.parametrize("boundary", [True, False])
def test_batches_orders_types_and_merging_change_nothing(boundary):
    images = some_images()
    whole = fed(images, SegmentationScores(5, boundary=boundary)).compute()
    truths = torch.from_numpy(np.stack([truth for truth, _ in images]))
    predictions = torch.from_numpy(np.stack([prediction for _, prediction in images]))

    batched = SegmentationScores(5, boundary=boundary)
    batched.update(predictions[4:].to(torch.uint8), truths[4:].to(torch.int16))
    batched.update(predictions[:4].to(torch.int32), truths[:4])
    assert_same(batched.compute(), whole)

    first = fed(images[:2], SegmentationScores(5, boundary=boundary))
    first.merge_state(fed(images[2:], SegmentationScores(5, boundary=boundary)))
    assert_same(first.compute(), whole)

    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    loaded = fed(images[:1], SegmentationScores(5, boundary=boundary))
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    assert_same(loaded.compute(), whole)
    assert_same(loaded.compute(), whole)

    loaded.reset()
    assert_same(fed(images, loaded).compute(), whole)


def test_without_boundaries_their_scores_do_not_exist_and_the_others_stay():
    images = some_images()
    full = fed(images, SegmentationScores(5)).compute()
    fast = fed(images, SegmentationScores(5, boundary=False)).compute()
    assert not any(math.isnan(full[name]) for name in ("mBIoU", "BMS", "mIoU", "Acc"))
    assert_same(fast, {**full, **dict.fromkeys(BOUNDARY_SCORES, math.nan)})


@pytest.mark.parametrize("ignore_index", [255, -100, -1, 6, 65535, 10**12])
def test_any_ignore_index(ignore_index):
    images = some_images()
    renamed = [(np.where(truth == 1000, ignore_index, truth), prediction) for truth, prediction in images]
    expected = fed(images, SegmentationScores(5)).compute()
    assert_same(fed(renamed, SegmentationScores(5, ignore_index)).compute(), expected)


def test_ignored_pixels_are_no_foreground():
    scores = SegmentationScores(5)
    scores.update(torch.tensor([[1, 0, 0]]), torch.tensor([[1, 1000, 1000]]))
    assert scores.compute()["FMeasure"] == pytest.approx(100)


def test_iou_pools_pixels_and_is_no_mean_over_images():
    scores = SegmentationScores(1)
    scores.update(torch.tensor([[1, 1, 1, 1]]), torch.tensor([[1, 1, 1, 1]]))
    scores.update(torch.tensor([[0, 1]]), torch.tensor([[1, 0]]))
    assert scores.compute()["mIoU"] == (0 + 100 * 4 / 6) / 2


def test_no_image_no_score():
    scores = SegmentationScores("50")
    assert set(scores.compute()) == set(SCORES)
    assert all(math.isnan(score) for score in scores.compute().values())
    scores.update(torch.zeros((0, 4, 4), dtype=torch.int64), torch.zeros((0, 4, 4), dtype=torch.int64))
    assert math.isnan(scores.compute()["Acc"])


def test_an_image_that_is_all_ignored_counts():
    scores = SegmentationScores(2)
    scores.update(torch.tensor([[1]]), torch.tensor([[1]]))
    scores.update(torch.tensor([[1]]), torch.tensor([[1000]]))
    assert (scores.compute()["Acc"], scores.compute()["FMeasure"]) == (50, pytest.approx(50))


INTS = torch.zeros((2, 3, 4), dtype=torch.int64)


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
        (
            INTS,
            INTS + 6,
            r"target of picture 0 of the batch has label 6, which is neither in 0..5 nor ignore_index 1000",
        ),
        (INTS, INTS - 1, "target of picture 0 of the batch: labels -1"),
        (INTS, INTS + 2**32, "target of picture 0 of the batch: labels 4294967296"),
        (INTS - 1, INTS, r"prediction of picture 0 of the batch: labels -1..-1 do not fit into 0..65535"),
        (INTS + 65536, INTS, "prediction of picture 0 of the batch: labels 65536"),
        (INTS + 2**32, INTS, "prediction of picture 0 of the batch: labels 4294967296"),
    ],
)
def test_what_are_no_labels_is_refused_and_not_counted(prediction, target, message):
    scores = SegmentationScores(5)
    with pytest.raises(ValueError, match=message):
        scores.update(prediction, target)
    assert math.isnan(scores.compute()["Acc"])


def test_a_bad_image_leaves_the_batch_uncounted():
    target = INTS.clone()
    target[1, 0, 0] = 6
    for ignore_index in (1000, -100):
        scores = SegmentationScores(5, ignore_index)
        with pytest.raises(ValueError, match="target of picture 1 of the batch has label 6"):
            scores.update(INTS, target)
        assert math.isnan(scores.compute()["Acc"])


def test_clusters_need_a_matching_that_has_them():
    scores = SegmentationScores(5, clusters=65535)
    scores.update(torch.tensor([[65535, 1000]]), torch.tensor([[3, 1]]))
    with pytest.raises(ValueError, match=r"65535 is no class in 0\.\.5; clusters need a matching"):
        scores.compute()
    with pytest.raises(ValueError, match="lacks 1 predicted clusters, 65535"):
        scores.compute({1000: 1})
    with pytest.raises(ValueError, match="cluster 65535: 6 is no class"):
        scores.compute({1000: 1, 65535: 6})
    with pytest.raises(ValueError, match="lacks 2 predicted clusters, 1000"):
        scores.compute(Matching.of({1: 1, 65536: 3}))
    assert scores.compute({1000: 1, 65535: 3})["Acc"] == 100


def test_a_state_that_counts_otherwise_is_refused():
    for other in (
        SegmentationScores(4),
        SegmentationScores(5, 255),
        SegmentationScores(5, boundary=False),
        SegmentationScores(5, clusters=9),
    ):
        with pytest.raises(ValueError, match="these metrics have other settings"):
            SegmentationScores(5).merge_state(other)
        with pytest.raises(ValueError, match="these metrics have other settings"):
            SegmentationScores(5).load_state_dict(other.state_dict())


@pytest.mark.parametrize("arguments", [("51",), (0,), (65535,), (1000,), (5, 5), (5, 0)])
def test_what_cannot_be_counted_is_refused(arguments):
    with pytest.raises(ValueError, match=r"mode|classes|ignore_index"):
        SegmentationScores(*arguments)


def plain(scores):
    return {name: value.item() for name, value in scores.items()}


def _rank(rank, world, address, images, answers):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    scores = fed(images[rank::world], SegmentationScores(5))
    classes = scores.compute_classes([0, 2, 1, 3, 4, 5])
    with pytest.raises(ValueError, match="the matching lacks"):
        scores.compute({0: 0})
    # That error has left each rank with its own, which goes on being counted, and not with all ranks'.
    collection = MetricCollection({"scores": scores, "fast": SegmentationScores(5, boundary=False)})
    before = plain(scores.compute())
    fed(images[:1] if rank == 0 else [], collection)
    after = {name: value.item() for name, value in collection.compute().items()}
    own = sum(map(len, scores.images))
    answers.put((rank, before, {k: v.tolist() for k, v in classes.items()}, after, own))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_compute_gathers_over_the_ranks(tmp_path, world):
    """With 4 ranks and 3 images, one rank has none."""
    images = some_images(3 if world == 4 else 5, same_size=False)
    context = torch.multiprocessing.get_context("fork")
    answers = context.Queue()
    address = f"file://{tmp_path}/store"
    ranks = [context.Process(target=_rank, args=(r, world, address, images, answers)) for r in range(world)]
    for process in ranks:
        process.start()
    results = [answers.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join()
    whole = fed(images, SegmentationScores(5))
    more = fed([*images, images[0]], SegmentationScores(5)).compute()
    for rank, before, classes, after, own in results:
        assert_same(before, whole.compute())
        for name, values in whole.compute_classes([0, 2, 1, 3, 4, 5]).items():
            assert classes[name] == values.tolist()
        assert_same({name: after[f"scores_{name}"] for name in SCORES}, more)
        assert own == len(images[rank::world]) + (rank == 0), "what a rank keeps is its own"


# The habits of torchmetrics.


def test_another_matching_gives_other_scores():
    scores = fed(some_images(), SegmentationScores(5))
    first, second = [0, 1, 2, 3, 4, 5], [0, 2, 1, 3, 4, 5]
    results = [plain(scores.compute(match)) for match in (None, first, second, first)]
    assert_same(results[0], results[1])
    assert_same(results[1], results[3])
    assert results[1]["mIoU"] != results[2]["mIoU"]
    assert torch.equal(scores.compute(torch.tensor(second))["mIoU"], scores.compute(second)["mIoU"])


def test_scores_of_classes():
    images = some_images()
    expected = evaluate(table_of(images), 5, np.array([0, 2, 1, 3, 4, 5]))
    scores = fed(images, SegmentationScores(5))
    of_classes = scores.compute_classes([0, 2, 1, 3, 4, 5])
    assert of_classes["IoU"].tolist() == expected.iou.tolist()
    assert of_classes["BIoU"].tolist() == expected.boundary_iou.tolist()
    assert of_classes["IoU"].mean().item() == pytest.approx(scores.compute([0, 2, 1, 3, 4, 5])["mIoU"].item())
    fast = fed(images, SegmentationScores(5, boundary=False)).compute_classes([0, 2, 1, 3, 4, 5])
    assert torch.equal(fast["IoU"], of_classes["IoU"]) and fast["BIoU"].isnan().all()
    assert SegmentationScores(5).compute_classes()["IoU"].isnan().all()


def test_forward_gives_the_batchs_own_scores():
    images = some_images()
    scores = SegmentationScores(5)
    for truth, prediction in images:
        batch = scores(torch.from_numpy(prediction), torch.from_numpy(truth))
        assert_same(batch, fed([(truth, prediction)], SegmentationScores(5)).compute())
    assert_same(scores.compute(), fed(images, SegmentationScores(5)).compute())


@pytest.mark.parametrize("target", [7, 1])
def test_a_forward_that_fails_counts_nothing_and_loses_nothing(target):
    images = some_images()
    scores = fed(images, SegmentationScores(5))
    before = plain(scores.compute())
    with pytest.raises(
        ValueError,
        match=r"of picture 0 of the batch has label (7|6, there are 0..5; if they are clusters)",
    ):
        scores(torch.tensor([[6]]), torch.tensor([[target]]))
    assert_same(scores.compute(), before)
    assert_same(fed(images, scores).compute(), fed([*images, *images], SegmentationScores(5)).compute())


def test_collections_give_the_digits_of_each(tmp_path):
    """Metrics whose states were alike after one batch are not taken for one."""
    images = [(np.where(truth == 1000, 0, truth), guess) for truth, guess in some_images(2)] + some_images()
    kinds = {
        "five": lambda: SegmentationScores(5),
        "same": lambda: SegmentationScores(5),
        "six": lambda: SegmentationScores(6),
        "fast": lambda: SegmentationScores(5, boundary=False),
        "background": lambda: SegmentationScores(5, clusters=5),
    }
    collection = MetricCollection({name: make() for name, make in kinds.items()})
    fed(images, collection)
    together = collection.compute()
    for name, make in kinds.items():
        alone = fed(images, make()).compute()
        assert_same({score: together[f"{name}_{score}"] for score in SCORES}, alone)
    collection.reset()
    assert_same(
        {score: collection(*map(torch.from_numpy, images[0][::-1]))[f"five_{score}"] for score in SCORES},
        fed(images[:1], SegmentationScores(5)).compute(),
    )


def test_a_tracker_finds_the_best_epoch():
    images = some_images()
    # In a collection: torchmetrics knows no best of a single metric that gives several values.
    tracker = MetricTracker(MetricCollection([SegmentationScores(5, boundary=False)]), maximize=True)
    for epoch in (
        images[:2],
        [(truth, np.where(truth == 1000, 0, truth)) for truth, _ in images],
        images[2:],
    ):
        tracker.increment()
        fed(epoch, tracker)
    assert tracker.compute_all()["mIoU"].shape == (3,)
    best, step = tracker.best_metric(return_step=True)
    assert step["mIoU"] == 1
    assert best["mIoU"] == pytest.approx(100 * 4 / 6)  # classes 3 and 4 are nowhere


def test_counts_are_kept_by_types_copies_and_state_dicts():
    images = some_images()
    expected = fed(images, SegmentationScores(5)).compute()
    module = torch.nn.ModuleDict({"scores": fed(images, SegmentationScores(5))})
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


def test_predictions_beyond_the_clusters_are_refused_where_they_come():
    scores = SegmentationScores(5, clusters=9)
    scores.update(torch.tensor([[9]]), torch.tensor([[1]]))
    with pytest.raises(
        ValueError, match=r"prediction of picture 1 of the batch has label 10, there are 0\.\.9"
    ):
        scores.update([torch.tensor([[0]]), torch.tensor([[10]])], [torch.tensor([[1]])] * 2)
    assert len(scores.table().names) == 1
    for clusters in (0, 65536):
        with pytest.raises(ValueError, match=r"clusters; give 1\.\."):
            SegmentationScores(5, clusters=clusters)


def test_lists_of_images_of_different_sizes():
    images = some_images(same_size=False)
    scores = SegmentationScores(5)
    scores.update([torch.from_numpy(p) for _, p in images[:4]], [torch.from_numpy(t) for t, _ in images[:4]])
    scores.update(tuple(p for _, p in images[4:]), tuple(t for t, _ in images[4:]))
    assert_same(scores.compute(), fed(images, SegmentationScores(5)).compute())
    scores.update([], [])
    assert len(scores.table().names) == len(images)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, np.uint8])
def test_types_of_8_bits_are_refused_where_they_do_not_hold_all_labels(kind):
    def labels(value):
        return np.full((1, 2), value, kind) if kind is np.uint8 else torch.full((1, 2), value, dtype=kind)

    wide = torch.full((1, 2), 7)
    for pair in ((labels(7), wide), (wide, labels(7))):
        with pytest.raises(ValueError, match=r"int8, which holds labels up to (127|255), and there are 919"):
            SegmentationScores("919").update(*pair)
        SegmentationScores("50").update(*pair)
    with pytest.raises(ValueError, match="there are 300"):
        SegmentationScores(5, clusters=300).update(labels(7), wide)
    few = SegmentationScores("919", clusters=100)
    few.update(labels(7), wide)
    assert float(few.compute()["Acc"]) == 100


def test_it_says_what_it_counts():
    scores = fed(some_images()[:2], SegmentationScores("50", boundary=False))
    assert repr(scores) == (
        "SegmentationScores(50 classes, ignore_index=1000, boundary=False, clusters=None; 2 images counted)"
    )


def test_the_picture_with_a_bad_label_is_named():
    scores = SegmentationScores(5)
    good, bad = torch.ones(2, 3, dtype=torch.int64), torch.full((4, 4), 6)
    with pytest.raises(ValueError, match=r"prediction of picture 2 of the batch has label 6.* clusters="):
        scores.update([good, good, bad], [good, good, bad - 1])
    assert math.isnan(scores.compute()["Acc"])
