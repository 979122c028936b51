"""PASS's two trainings: one process and two, runs that are stopped, collapse, and whose files load where."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch
from helpers import train_pass_tiny as tiny
from helpers.processes import torchrun_variables
from helpers.training import ALONE, StopError, assert_same_end, log_of, state_of, stop_after
from prepared_set import write_image
from torch import nn

from imagenets.common.errors import InputError
from imagenets.common.progress import no_log
from imagenets.images import read_image
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.pass_method import runs
from imagenets.learning.pass_method.attention import AttentionNetwork
from imagenets.learning.pass_method.crops import CropReader, CropSettings, views
from imagenets.learning.pass_method.heads import HeadSizes, library_state
from imagenets.learning.pass_method.published_files import (
    attended_backbone,
    attention_network,
    load_part,
    part_of,
)
from imagenets.learning.pass_method.recipes import (
    Attention,
    Pretraining,
    as_settings,
    attention_recipe,
    pretraining_recipe,
)
from imagenets.learning.pass_method.sinkhorn import FeatureQueue
from imagenets.learning.pass_method.steps import CollapseWatch
from imagenets.learning.processes import Processes
from imagenets.learning.training.augmentation import Colours, cropped, distort, random_crop
from imagenets.learning.training.loop import train
from imagenets.learning.training.order import generator


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(26):
        write_image(folder / f"n0000000{number % 2}/{number}.JPEG", 40 + number, 48, seed=number)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images):
    """Both trainings, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.both(folder, images, ALONE, log=no_log)
    return folder


def test_the_log_has_every_loss_and_watches_over_collapse(whole):
    records = log_of(whole / "pretraining")
    assert [record["step"] for record in records] == [3, 6]
    for record in records:
        together = (record["image"] + record["shallow"]) / 2 + record["pixel"]
        assert record["loss"] == pytest.approx(together, rel=1e-5)
        assert 0 < record["image"] < 2 * np.log(12) and -1 < record["pixel"] < 1
    for record in (*records, *log_of(whole / "attention")):
        assert 1 < record["prototypes_in_use"] <= 12
        assert 0.01 < record["spread"] < 1
    assert (whole / "pretraining/curves.png").read_bytes().startswith(b"\x89PNG")


def test_two_processes_have_the_losses_of_one(context, whole, images, tmp_path, monkeypatch):
    """The same global batches, queues and codes over both: real processes, both trainings.

    With group norms in place of batch norms, which take their means over a process's own images. Later losses
    part by more: LARS makes much of gradients that are nothing but rounding.
    """
    checkpoint = whole / "pretraining/last.pth"
    ranks = [
        context.Process(target=tiny.child, args=((tmp_path / "2", images, checkpoint), variables))
        for variables in torchrun_variables(2)
    ]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(300)
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    tiny.without_batch_norms(monkeypatch.setattr)
    tiny.both(tmp_path / "1", images, ALONE, log=no_log, checkpoint=checkpoint)
    for step in ("pretraining", "attention"):
        one, two = log_of(tmp_path / "1" / step)[0], log_of(tmp_path / "2" / step)[0]
        for name in {"loss", "image", "shallow", "pixel", "spread"} & one.keys():
            assert one[name] == pytest.approx(two[name], abs=1e-4), name
        assert one["prototypes_in_use"] == two["prototypes_in_use"]
        assert state_of(tmp_path / "2" / step)["more"]["queue"]["features"].any()
    images_of = [log_of(folder / "pretraining")[1]["image"] for folder in (tmp_path / "1", tmp_path / "2")]
    assert images_of[0] == pytest.approx(images_of[1], abs=1e-3)


def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(whole, images, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "train", partial(train, save_every=0.0))
    for steps in (2, 4, 3, 5):  # each goes on from the last stop, whose last step was not saved
        with pytest.raises(StopError):
            tiny.both(tmp_path, images, ALONE, stop_after(steps), no_log)
    tiny.both(tmp_path, images, ALONE, log=no_log)
    for step in ("pretraining", "attention"):
        assert_same_end(whole / step, tmp_path / step)
        queues = [state_of(folder / step)["more"]["queue"]["features"] for folder in (whole, tmp_path)]
        assert torch.equal(*queues)


def test_files_of_both_steps_load_where_they_are_wanted(whole, tmp_path):
    """Ours, and the same tensors in the layout of the published files: state_dict, module., an optimiser."""
    for step in ("pretraining", "attention"):
        model = state_of(whole / step)["model"]
        published = {
            "epoch": 200,
            "state_dict": {f"module.{name}": tensor for name, tensor in model.items()},
            "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]},
        }
        torch.save(published, tmp_path / f"{step}.pth.tar")
        for path in (whole / step / "last.pth", tmp_path / f"{step}.pth.tar"):
            backbone = make_backbone(tiny.BACKBONE)
            assert f"tensors loaded from {path.name}" in load_backbone(backbone, path)
            for name, tensor in backbone.network.state_dict().items():
                assert torch.equal(tensor, model[name]), name
    for path in (whole / "pretraining/last.pth", tmp_path / "pretraining.pth.tar"):
        network, lines = attention_network(tiny.BACKBONE, path)
        expected = state_of(whole / "pretraining")["model"]
        assert torch.equal(network.prototypes.weight, expected["prototypes.weight"])
        assert torch.equal(network.projection_head[3].bias, expected["projection_head.3.bias"])
        assert "width 32 and 12 prototypes" in lines[1]
        with pytest.raises(InputError, match=r"has no attention \(fbg"):
            attended_backbone(tiny.BACKBONE, path)
    for path in (whole / "attention/last.pth", tmp_path / "attention.pth.tar"):
        _, attention, _ = attended_backbone(tiny.BACKBONE, path)
        expected = state_of(whole / "attention")["model"]
        for name, tensor in attention.state_dict().items():
            assert torch.equal(tensor, expected[f"fbg.{name}"]), name


def test_parts_of_a_file_are_told_by_whole_steps_of_their_names():
    tensors = {
        "fbg.threshold": 1, "module.fbg.atten.0.weight": 2, "fbg.fbg.bias": 3, "nofbg.threshold": 4,
        "fbg": 5, "projection_head_shallow.projection_head_shallow3.0.bias": 6, "projection_head.0.bias": 7,
    }  # fmt: skip
    assert part_of(tensors, "fbg.") == {"threshold": 1, "atten.0.weight": 2, "bias": 3}
    assert part_of(tensors, "projection_head.") == {"0.bias": 7}


def test_a_part_is_loaded_whole_or_not_at_all(tmp_path):
    """But for counts of batches, which older files lack."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    del other["1.num_batches_tracked"]
    path = tmp_path / "part.pth"
    lacking = {name: value for name, value in other.items() if name != "1.bias"}
    with pytest.raises(InputError, match=r"part.pth: 1 tensors of PASS do not fit \(head.1.bias is missing"):
        load_part(module, lacking, "head", path)
    wide = other | {"0.weight": torch.ones(3, 4)}
    with pytest.raises(InputError, match=r"\(head.0.weight is \(3, 4\), wanted \(3, 2\)\)"):
        load_part(module, wide, "head", path)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    load_part(module, other, "head", path)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in other.items())


def test_of_several_copies_in_a_file_the_chosen_one_is_taken(tmp_path):
    """Also by the attention, which then is in evaluation mode, as its backbone is."""
    torch.manual_seed(1)
    networks = {
        name: AttentionNetwork(make_backbone(tiny.BACKBONE), HeadSizes(6, 4))
        for name in ("student", "teacher")
    }
    path = tmp_path / "both.pth"
    torch.save({name: library_state(network) for name, network in networks.items()}, path)
    for name, network in networks.items():
        found, _ = attention_network(tiny.BACKBONE, path, name)
        expected = network.state_dict()
        state = {k: v for k, v in found.state_dict().items() if not k.startswith("fbg.")}
        assert state and all(torch.equal(expected[key], value) for key, value in state.items())
        backbone, attention, lines = attended_backbone(tiny.BACKBONE, path, name)
        assert not backbone.training and not attention.training
        assert lines[1] == "attention loaded from both.pth"
        own = network.backbone.network.state_dict()
        assert all(torch.equal(own[key], value) for key, value in backbone.network.state_dict().items())
        assert torch.equal(attention.atten[0].weight, network.fbg.atten[0].weight)


@pytest.mark.parametrize("lacking", ["projection_head.", "prototypes."])
def test_a_checkpoint_without_heads_is_refused(tmp_path, lacking):
    network = AttentionNetwork(make_backbone(tiny.BACKBONE), HeadSizes(6, 4))
    state = {name: value for name, value in library_state(network).items() if not name.startswith(lacking)}
    torch.save(state, tmp_path / "plain.pth")
    with pytest.raises(InputError, match=r"plain.pth: has no projection_head and prototypes"):
        attention_network(tiny.BACKBONE, tmp_path / "plain.pth")


def looks(nearest, vectors, prototypes):
    """Pooled features, and scores by which each crop is nearest to a prototype."""
    return vectors, nn.functional.one_hot(torch.tensor(nearest), prototypes).float()


def around(mean, axis):
    """Unit vectors, as many as there are signs, that spread by ``axis`` around ``mean``."""
    return torch.tensor([[mean, axis], [mean, -axis]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("prototypes", "in_use", "spread", "collapsed"),
    [
        (300, 4, 0.0101, False),
        (300, 4, 0.0099, True),  # the spread is below 0.01
        (300, 3, 0.5, True),  # one in a hundred
        (12, 2, 0.5, False),
        (12, 1, 0.5, True),  # of few prototypes, one alone
    ],
)
def test_when_a_run_has_collapsed(prototypes, in_use, spread, collapsed):
    """Two crops a prototype; of unit vectors (c, ±s) the mean is (c, 0), and the variance s²."""
    said = []
    watch = CollapseWatch(prototypes, ALONE, said.append)
    crops = around((1 - spread**2) ** 0.5, spread)
    for prototype in range(in_use):
        watch.look(*looks([prototype] * 2, crops, prototypes))
    scores = watch.scores(3)
    assert scores == {"prototypes_in_use": in_use, "spread": pytest.approx(spread, rel=1e-6)}
    assert bool(said) == collapsed
    if collapsed:
        assert said[0].startswith(
            f"epoch 3: this run has collapsed, all pictures look alike to it: {in_use} of"
        )
    watch.look(*looks([0, 1], crops, prototypes))
    expected = {"prototypes_in_use": 2, "spread": pytest.approx(spread, rel=1e-6)}
    assert watch.scores(4) == expected, "the next epoch counts anew"


def test_the_watch_goes_on_within_an_epoch_and_only_the_first_process_has_what_was_saved():
    generator = torch.manual_seed(0)
    steps = [
        (nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1), torch.rand(6, 9))
        for _ in range(4)
    ]
    whole, begun, resumed = (CollapseWatch(9, ALONE, no_log) for _ in range(3))
    for step in steps:
        whole.look(*step)
    for step in steps[:2]:
        begun.look(*step)
    saved = begun.state_dict()
    resumed.load_state_dict(saved)
    for step in steps[2:]:
        resumed.look(*step)
    assert resumed.counts.tolist() == whole.counts.tolist()
    torch.testing.assert_close(resumed.sum, whole.sum)
    assert begun.counts.sum() == 12, "what was saved is no part of the watch that goes on"
    said = []
    second = CollapseWatch(9, Processes(1, 2, torch.device("cpu")), said.append)
    second.load_state_dict(saved)
    assert not second.counts.any() and not second.sum.any()


def test_the_watch_counts_what_all_processes_see(monkeypatch):
    """Two crops here, two there, that are orthogonal: of the mean (½, ½), the variance is 1 - ½."""
    there, here = (
        CollapseWatch(200, ALONE, no_log),
        CollapseWatch(200, Processes(0, 2, ALONE.device), no_log),
    )
    there.look(*looks([1, 1], around(0.0, 1.0).abs(), 200))
    here.look(*looks([0, 0], around(1.0, 0.0), 200))
    monkeypatch.setattr(
        Processes, "sum", lambda self, own: own + (there.sum if own.is_floating_point() else there.counts)
    )
    saved = here.state_dict()
    assert saved["counts"][:3].tolist() == [2, 2, 0] and saved["sum"].tolist() == [2, 2]
    assert here.scores(1) == {"prototypes_in_use": 2, "spread": pytest.approx(0.5**0.5)}


def test_only_the_first_process_speaks_of_a_collapse(monkeypatch):
    said = []
    for rank in (0, 1):
        watch = CollapseWatch(200, Processes(rank, 2, torch.device("cpu")), said.append)
        monkeypatch.setattr(Processes, "sum", lambda self, values: 2 * values)  # of two that see the same
        watch.look(*looks([0, 0], around(1.0, 0.0), 200))
        assert watch.scores(1) == {"prototypes_in_use": 1, "spread": 0}
    assert len(said) == 1


def test_a_queues_state_is_taken_back():
    """Of one that is full for one crop alone."""
    queue = FeatureQueue(8, 4, 3)
    for batch in nn.functional.normalize(torch.randn(3, 4, 3), dim=2):
        queue.push(1, batch)
    queue.push(0, torch.ones(4, 3))
    state = queue.state_dict()
    queue.push(0, torch.full((4, 3), 2.0))
    again = FeatureQueue(8, 4, 3)
    again.load_state_dict(state)
    assert torch.equal(again.features[1], queue.features[1])
    assert again.features[0].tolist() == [[1, 1, 1]] * 4 + [[0, 0, 0]] * 4, "as it was when it was saved"
    assert [again.filled(crop) for crop in (0, 1)] == [False, True]


def test_a_queue_is_shared_out_anew_when_processes_change(monkeypatch):
    """What one process gathered, two take by batch: their own rows of each."""
    queue = FeatureQueue(8, 4, 1)
    queue.features.copy_(torch.arange(16.0).view(2, 8, 1))
    kept = queue.gathered()
    monkeypatch.setattr("imagenets.learning.pass_method.sinkhorn._processes", lambda: 2)
    monkeypatch.setattr("imagenets.learning.pass_method.sinkhorn._rank", lambda: 1)
    second = FeatureQueue(8, 4, 1)
    second.restore(kept)
    assert second.features[0, :, 0].tolist() == [2, 3, 6, 7]


def test_crops_of_a_batch_are_ordered_by_view():
    crops = torch.arange(6).view(3, 2)  # three pictures, two crops
    assert views(crops).tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("colours", [None, Colours(0.5, 0.1, 0.3, 1.5)])
def test_crops_written_out(images, colours):
    """Of each size in turn: a rectangle, its crop, its colours, all drawn from the picture's one stream."""
    names = sorted(f"{path.parent.name}/{path.name}" for path in images.glob("*/*.JPEG"))
    sizes = CropSettings(2, 24, (0.14, 1)), CropSettings(3, 16, (0.05, 0.14))
    rectangles, *found = CropReader(images, names, 5, *sizes, *filter(None, [colours])).read(2, 7)
    picture, random = read_image(images / names[7]), generator(seed=5, epoch=2, index=7)
    drawn = []
    for size, crops in zip(sizes, found, strict=True):
        assert crops.shape == (size.count, 3, size.side, size.side) and crops.dtype == torch.uint8
        for crop in crops:
            drawn.append(random_crop(random, picture.width, picture.height, size.scale))
            expected = distort(random, cropped(picture, drawn[-1], size.side), colours or Colours())
            np.testing.assert_array_equal(crop.permute(1, 2, 0), np.asarray(expected))
    assert rectangles.tolist() == [list(map(float, rectangle)) for rectangle in drawn[:2]]


def test_names_of_pictures_may_be_any_bytes(tmp_path):
    names = ["n0/plain.JPEG", os.fsdecode(b"n1/caf\xe9.JPEG")]
    reader = CropReader(tmp_path, names, 0, CropSettings(2, 24, (0.14, 1)), None)
    assert [reader.name(index) for index in (0, 1)] == names


def test_published_settings():
    """docs/pass.md, Settings: every value of every mode."""
    two = CropSettings(2, 224, (0.08, 1))
    common = {
        "batch": 256, "queue_from": 15, "lr": 0.6, "final_lr": 0.0006, "weight_decay": 1e-6,
        "weights": (1, 1), "colours": Colours(0.8, 0.2, 0.2, 2.0), "seed": 10010,
    }  # fmt: skip
    fifty = Pretraining(
        backbone="resnet18", epochs=200, large=CropSettings(2, 224, (0.14, 1)),
        small=CropSettings(6, 96, (0.05, 0.14)), hidden=512, prototypes=500, queue=2048, frozen_steps=1001,
        **common,
    )  # fmt: skip
    hundreds = Pretraining(
        backbone="resnet50", epochs=100, large=two, small=None, hidden=2048, prototypes=3000, queue=3840,
        frozen_steps=5005, **common,
    )  # fmt: skip
    rates = {"50": 6.0, "300": 0.6, "919": 0.6}
    for mode, expected in (("50", fifty), ("300", hundreds), ("919", hundreds)):
        assert pretraining_recipe("pass", mode) == expected
        assert attention_recipe("pass", mode) == Attention(
            epochs=20, batch=256, large=two, queue=3840, lr=rates[mode], final_lr=0.0006, weight_decay=1e-6,
            colours=Colours(0.8, 0.2, 0.2, 2.0), seed=10010,
        )  # fmt: skip
    assert pretraining_recipe("pass", "my own") == fifty
    assert attention_recipe("pass", "my own") == attention_recipe("pass", "50")
    assert as_settings(hundreds)["small"] is None
    assert (str(fifty.large), str(fifty.small)) == ("2 x 224 of 0.14..1", "6 x 96 of 0.05..0.14")


def test_small_settings():
    """docs/pass.md, Settings, for 576 pictures: batches of 32, the queue six of them, frozen for an epoch."""
    common = {
        "batch": 32, "queue": 6 * 32, "final_lr": 0.0006, "weight_decay": 1e-6,
        "colours": Colours(strength=0.8, hue=0.02, grey=0, blur=1.0), "seed": 10010,
    }  # fmt: skip
    for mode in ("50", "300", "919", "my own"):
        assert pretraining_recipe("small", mode) == Pretraining(
            backbone="timm/test_resnet", epochs=3, large=CropSettings(2, 64, (0.08, 0.3)), small=None,
            hidden=128, prototypes=50, queue_from=1, frozen_steps=18, lr=2.0, weights=(1, 1), **common,
        )  # fmt: skip
        assert attention_recipe("small", mode) == Attention(
            epochs=4, large=CropSettings(2, 96, (0.2, 1)), lr=6.0, **common
        )
