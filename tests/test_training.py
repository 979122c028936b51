"""The training infrastructure: who sees what when, runs that are killed, several processes, optimisers."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from helpers import train_toy
from helpers.processes import torchrun_variables
from helpers.training import ALONE, TIMEOUT, StopError, assert_same_end, log_of, state_of, timeless
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.processes import Processes, join, synchronised
from imagenets.learning.training import loop
from imagenets.learning.training.loop import TrainingJob, train
from imagenets.learning.training.optimisers import layer_decay_groups, set_rate
from imagenets.learning.training.order import Plan, StepIndex, generator, seed_network
from imagenets.learning.training.run_files import RunFolder, curves_figure, opened_run


def run_toy(context, folder, processes=1, **options):
    """Run the toy in processes as of torchrun; their exit statuses. Their stderr goes to <folder>.<rank>."""
    started = [
        context.Process(target=train_toy.child, args=(folder, variables, f"{folder}.{rank}", options))
        for rank, variables in enumerate(torchrun_variables(processes) if processes > 1 else [{}])
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT)
    return [process.exitcode for process in started]


@pytest.mark.parametrize(("images", "batch", "keep_last"), [(24, 8, True), (23, 8, True), (29, 8, False)])
def test_all_processes_and_parts_together_see_each_batch_once(images, batch, keep_last):
    alone = Plan(images, batch, 3, 7, keep_last)
    for processes, accumulate in ((1, 1), (2, 1), (4, 1), (1, 4), (2, 2)):
        plans = [
            Plan(images, batch, 3, 7, keep_last, accumulate, rank, processes) for rank in range(processes)
        ]
        streams = [plan.after(0, 0) for plan in plans]
        for epoch in range(2):
            seen = []
            for step in range(alone.steps):
                parts = [next(stream)[1] for _ in range(accumulate) for stream in streams]
                joined = np.concatenate(parts)
                expected = alone.batch_of(epoch, step)
                assert joined[: expected.size].tolist() == expected.tolist()
                seen += joined.tolist()
            if keep_last:
                assert set(seen) == set(range(images))
                assert len(seen) - images < processes * accumulate, "no more than what fills the last batch"
            else:
                assert len(seen) == len(set(seen)) == images // batch * batch
    orders = [alone.batch_of(epoch, 0).tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert Plan(images, batch, 3, 8, keep_last).batch_of(0, 0).tolist() != orders[0]


def test_a_last_batch_is_filled_from_the_epochs_beginning():
    """Five are left for two processes of two parts each: three more make eight."""
    plan = Plan(17, 12, 1, 3, True, 2, 0, 2)
    last = plan.batch_of(0, 1)
    assert last[5:].tolist() == plan.batch_of(0, 0)[:3].tolist()
    few = Plan(7, 12, 1, 3, True)
    assert (few.steps, sorted(few.batch_of(0, 0))) == (1, list(range(7)))


def test_order_augmentation_and_network_draw_from_streams_of_their_own(monkeypatch):
    """Also where one's numbers would be a beginning of another's: zeros after it count as nothing."""
    made, default_rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda *seed: made.append(default_rng(*seed)) or made[-1])
    Plan(8, 8, 1, 5, True).batch_of(3, 0)
    generator(5, 3, 0)
    seed_network(5, StepIndex(3, 0, 0, 0), 0)
    streams = [of.bit_generator.seed_seq.generate_state(1, np.uint64)[0] >> np.uint64(1) for of in made]
    assert len({*map(int, streams), torch.initial_seed()}) == 3


def test_a_plan_goes_on_where_it_stopped():
    plan = Plan(23, 4, 3, 0, True)
    everything = [(at, share.tolist()) for at, share in plan.after(0, 0)]
    assert [at.update for at, _ in everything] == list(range(18))
    assert [(m, s.tolist()) for m, s in plan.after(1, 4)] == everything[10:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((24, 9, 1, 0, True, 1, 0, 2), "batch size 9: does not divide by 2 processes; take a multiple"),
        ((24, 8, 1, 0, True, 3, 0, 2), "2 processes times 3 micro-batches; take a multiple of 6"),
        ((7, 8, 1, 0, False), "there are only 7 images"),
    ],
)
def test_batches_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        Plan(*arguments)


def test_killed_before_an_update_it_ends_the_same(context, tmp_path):
    """With dropout, parts of batches and reading ahead; the log has each epoch once. Several: test_faults."""
    options = {"dropout": 0.3, "accumulate": 2, "workers": 1}
    assert run_toy(context, tmp_path / "whole", **options) == [0]
    for update in (0, 4):
        assert run_toy(context, tmp_path / "killed", **options, kill_at=update) == [-signal.SIGKILL]
    assert run_toy(context, tmp_path / "killed", **options) == [0]
    assert not list((tmp_path / "killed").glob(".*.tmp"))
    assert [record["epoch"] for record in log_of(tmp_path / "whole")] == [1, 2, 3]
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_loss_that_is_not_finite_ends_all_processes_and_one_says_so(context, tmp_path):
    assert run_toy(context, tmp_path / "run", processes=2, nan_at=5) == [1, 1]
    (said,) = filter(None, ((tmp_path / f"run.{rank}").read_text() for rank in (0, 1)))
    assert "the loss is not finite in epoch 1, step 2" in said
    assert "  image 5" in said and "these 4 images" in said
    assert "Traceback" not in said


def test_a_damaged_state_is_refused(tmp_path):
    with opened_run(tmp_path, {"lr": 0.1}, ALONE) as run:
        run.save({"model": {}}, [{"epoch": 1, "loss": 2.0}], last=True)
        (tmp_path / "last.pth").write_bytes((tmp_path / "last.pth").read_bytes()[:-20])
        with pytest.raises(InputError, match=r"last\.pth: damaged"):
            run.load()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 300])
def test_curves_have_whole_epochs_on_their_axis(epochs):
    records = [{"epoch": epoch, "loss": 1 / epoch, "step": 7 * epoch} for epoch in range(1, epochs + 1)]
    figure = curves_figure([*records, {"epoch": epochs, "mIoU": 12.5}])
    loss, miou = figure.axes
    assert (loss.get_ylabel(), miou.get_ylabel()) == ("loss", "mIoU")
    low, high = miou.get_xlim()
    ticks = [tick for tick in miou.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks)


def test_synchronised_batch_norms_keep_their_activation():
    """As CUDA's processes have them; in evaluation mode they compute on a CPU too."""
    timm = pytest.importorskip("timm")
    for name in ("test_efficientnet", "test_resnet"):
        network = timm.create_model(name, num_classes=0).eval()
        pictures, names = torch.randn(2, 3, 64, 64), list(network.state_dict())
        expected = network(pictures)
        network = synchronised(network)
        norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
        torch.testing.assert_close(network(pictures), expected)
        assert list(network.state_dict()) == names


def test_one_process_trains_the_network_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    parts = list(network.modules())
    assert join(network, ALONE) is network
    assert all(one is other for one, other in zip(network.modules(), parts, strict=True))


def test_layer_decay_scales_the_rates_of_the_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2))
    network[1].frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    for token in ("pos_embed", "cls_token", "reg_token"):
        network[0].register_parameter(token, nn.Parameter(torch.zeros(1, 2, 3)))
    groups = layer_decay_groups(network, lambda name: int(name[0]), 2, 0.5, 0.05)
    found = {name: (g["scale"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert found == {
        "0.weight": (0.25, 0.05), "0.bias": (0.25, 0.0), "0.pos_embed": (0.25, 0.0),
        "0.cls_token": (0.25, 0.0), "0.reg_token": (0.25, 0.0), "1.weight": (0.5, 0.05), "1.bias": (0.5, 0.0),
        "2.weight": (1.0, 0.05), "2.bias": (1.0, 0.0),
    }  # fmt: skip
    optimiser = torch.optim.AdamW(groups, lr=1.0)
    set_rate(optimiser, 0.1)
    assert sorted({group["lr"] for group in optimiser.param_groups}) == [0.025, 0.05, 0.1]


def test_dropout_is_drawn_anew_for_each_part_of_each_step_in_each_process():
    """Each number that tells a part of a step counts."""
    seeds = set()
    for seed, epoch, step, part, rank in np.ndindex(2, 3, 3, 2, 2):
        seed_network(seed, StepIndex(epoch, step, part, 3 * epoch + step), rank)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 2 * 3 * 3 * 2 * 2


class Numbers:
    """A reader whose image is its index."""

    def read(self, epoch, index):
        return (torch.tensor([float(index)]),)

    def name(self, index):
        return f"image {index}"


def job_of(weight, loss_of, **more):
    """SGD of one number."""

    def load(state):
        weight.data.copy_(state["weight"])

    values = {"rate": lambda at: 0.5 ** (1 + at.update), "about": {}} | more
    return TrainingJob(
        nn.Identity(), torch.optim.SGD([weight], lr=1.0), loss_of,
        weights=lambda: {"weight": weight.detach().clone()}, load_weights=load, **values,
    )  # fmt: skip


def train_numbers(folder, accumulate=1, stop_before=None, broken=None, save_every=0.0):
    """The log of three epochs whose loss is the mean of the images in a batch, stopped before an update."""
    weight = nn.Parameter(torch.zeros(1))

    def loss_of(batch, at):
        if at.update == stop_before and at.part == accumulate - 1:
            raise StopError
        loss = batch.tensors[0].mean() + 0 * weight.sum()
        if (at.update, at.part) == broken:
            loss = loss / 0
        return {"loss": loss, "update": torch.tensor(float(at.update))}

    job = job_of(weight, loss_of, scores=lambda epoch: {"scored": epoch})
    with opened_run(folder, {}, ALONE) as run:
        return train(job, Numbers(), Plan(10, 4, 3, 7, True, accumulate), run, save_every=save_every)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_record_is_the_mean_of_its_steps_whole_or_resumed(tmp_path, accumulate):
    plan = Plan(10, 4, 3, 7, True, accumulate)
    records = train_numbers(tmp_path / "whole", accumulate)
    for stop in (4, 5, 6):
        with pytest.raises(StopError):
            train_numbers(tmp_path / "stopped", accumulate, stop)
    resumed = train_numbers(tmp_path / "stopped", accumulate)
    for epoch, record in enumerate(records):
        parts = [np.split(plan.batch_of(epoch, step), accumulate) for step in range(3)]
        assert timeless(record) == {
            "epoch": epoch + 1, "step": 3 * epoch + 3, "scored": epoch + 1, "lr": 0.5 ** (3 * epoch + 3),
            "loss": pytest.approx(np.mean([np.mean([p.mean() for p in s]) for s in parts])),
            "update": pytest.approx(3 * epoch + 1),
        }  # fmt: skip
    assert list(map(timeless, resumed)) == log_of(tmp_path / "stopped") == list(map(timeless, records))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "stopped") and len(records) == 3


@pytest.mark.parametrize(("every", "within"), [(0.0, (1, 2, 3)), (1e9, ())])
def test_the_state_is_saved_after_each_epoch_and_within_it_when_it_is_time(
    tmp_path, monkeypatch, every, within
):
    saved, expected = [], []

    def save(run, state, records, *, last):
        saved.append((state["epoch"], state["step"], last))

    monkeypatch.setattr(RunFolder, "save", save)
    train_numbers(tmp_path, save_every=every)
    for epoch in range(3):
        expected += [(epoch, step, False) for step in within] + [(epoch + 1, 0, epoch == 2)]
    assert saved == expected


def test_what_is_read_every_few_steps_is_what_is_read_at_each(tmp_path, monkeypatch):
    """As on CUDA: the same records; a loss that is not finite is told of its own step, before a save."""
    whole = train_numbers(tmp_path / "1", 2)
    read = []
    monkeypatch.setattr(loop, "_READ_EVERY", {"cpu": 10})
    monkeypatch.setattr(Processes, "sum", lambda self, values: read.append(len(values)) or values)
    found = train_numbers(tmp_path / "10", 2, save_every=1e9)
    assert list(map(timeless, found)) == list(map(timeless, whole))
    assert read == [3, 3, 3], "steps in each message: one an epoch"
    with pytest.raises(InputError, match=r"not finite in epoch 2, step 2; .* these 2 images"):
        train_numbers(tmp_path / "broken", 2, broken=(4, 1), save_every=1e9)
    assert state_of(tmp_path / "broken")["epoch"] == 1


def test_stopped_while_it_scores_it_goes_on_with_the_scores(tmp_path):
    """No step is done twice, and the end is that of a run that was not stopped."""
    weight = nn.Parameter(torch.zeros(1))
    updates, stopping = [], [True]

    def loss_of(batch, at):
        updates.append(at.update)
        return {"loss": batch.tensors[0].mean() + weight.sum()}

    def scores(epoch):
        if stopping:
            raise StopError
        return {"scored": weight.item()}

    job = job_of(weight, loss_of, rate=lambda at: 1.0, scores=scores, scores_take_long=lambda _: True)
    plan = Plan(8, 4, 2, 7, True)
    with opened_run(tmp_path, {}, ALONE) as run:
        with pytest.raises(StopError):
            train(job, Numbers(), plan, run)
        weight.data.fill_(99)
        stopping.clear()
        records = train(job, Numbers(), plan, run)
    assert updates == [0, 1, 2, 3]
    assert [record["scored"] for record in records] == [-2, -4]


def test_a_lack_of_memory_is_told_with_its_cure(tmp_path, monkeypatch):
    def lacking(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.torch.autograd, "backward", lacking)
    with pytest.raises(InputError, match="memory of cpu does not suffice: accumulate over"):
        train_numbers(tmp_path)


def test_processes_that_would_resume_at_different_steps_refuse(tmp_path, monkeypatch):
    """As where each machine has a disk of its own."""
    others = None
    monkeypatch.setattr(
        Processes, "gathered", lambda _, value: [value] if isinstance(value, str) else [value, others]
    )
    assert len(train_numbers(tmp_path / "none")) == 3
    others = (6, 0)
    with pytest.raises(InputError, match="process 0: none; process 1: epoch 7, step 1"):
        train_numbers(tmp_path / "other")
    assert not (tmp_path / "other/last.pth").exists()
