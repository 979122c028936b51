"""What one process says and does among several, by function; ``torch.distributed`` is replaced."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from imagenets.common.errors import InputError
from imagenets.learning import processes
from imagenets.learning.processes import Processes, described, started

CPU = torch.device("cpu")
GROUP = object()


def of_two(rank):
    return Processes(rank, 2, CPU, GROUP)


def others_hold(monkeypatch, value):
    """Let the other process of two, the second, hold ``value``."""

    def all_gather_object(values, own, group):
        assert group is GROUP
        values[:] = [own, value]

    monkeypatch.setattr(processes.dist, "all_gather_object", all_gather_object)


def test_a_sum_leaves_what_was_given(monkeypatch):
    monkeypatch.setattr(processes.dist, "all_reduce", lambda values: values.mul_(2))
    own = torch.tensor([1.0, 2.0])
    assert of_two(0).sum(own).tolist() == [2, 4] and own.tolist() == [1, 2]
    assert Processes(0, 1, CPU).sum(own) is own


def test_a_flag_of_any_process_is_set_in_all(monkeypatch):
    def all_reduce(held, operation, group):
        other = torch.tensor([0, 1, 0], dtype=torch.uint8)
        assert operation == processes.dist.ReduceOp.MAX and group is GROUP
        held.copy_(torch.maximum(held, other))

    monkeypatch.setattr(processes.dist, "all_reduce", all_reduce)
    assert of_two(0).any(True, False, False) == [True, True, False]
    assert Processes(0, 1, CPU).any(True, False) == [True, False]


def test_problems_of_all_processes_are_told_in_all_each_once(monkeypatch):
    def bad():
        raise InputError("a mask is missing")

    for other, told in (
        ("", "a mask is missing"),
        ("a mask is missing", "a mask is missing"),
        ("an image is missing", "a mask is missing\nan image is missing"),
    ):
        others_hold(monkeypatch, other)
        with pytest.raises(InputError) as raised:
            of_two(0).together(bad)
        assert str(raised.value) == told
    with pytest.raises(InputError, match=r"^an image is missing$"):
        of_two(0).together(lambda: 5)
    others_hold(monkeypatch, "")
    assert of_two(0).together(lambda: 5) == 5


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.pth"), "a.pth: No space left on device"),
        (OSError("no file at all"), "no file at all"),
    ],
)
def test_errors_of_files_are_told_as_bad_input(error, told):
    def fails():
        raise error

    with pytest.raises(InputError, match=f"^{told}$"):
        Processes(0, 1, CPU).together(fails)


def test_only_the_first_process_makes_what_all_get(monkeypatch):
    sent = []

    def broadcast(held, src, group):
        assert (src, group) == (0, GROUP)
        sent.append(held[0])
        held[0] = "made"

    others_hold(monkeypatch, "")
    monkeypatch.setattr(processes.dist, "broadcast_object_list", broadcast)
    assert of_two(0).from_first(lambda: "made") == "made"
    assert of_two(1).from_first(lambda: pytest.fail("made twice")) == "made"
    assert sent == ["made", None]
    assert Processes(0, 1, CPU).from_first(lambda: "own") == "own"


def test_gradients_are_the_mean_in_the_order_of_ranks(monkeypatch):
    """Of three processes, the large gradients of two of which cancel only when they are added first."""
    gradients = [torch.tensor([value, 3.0]) for value in (2.0**30, -(2.0**30), 3.0)]

    class Gathering:
        def get_future(self):
            future = torch.futures.Future()
            future.set_result(None)
            return future

    def all_gather(parts, own, async_op):
        for part, gradient in zip(parts, gradients, strict=True):
            part.copy_(gradient)
        return Gathering()

    monkeypatch.setattr(processes.dist, "all_gather", all_gather)
    found = processes._mean_in_order(Processes(2, 3, CPU), gradients[2]).wait()
    assert found.tolist() == [1, 3]


def test_a_process_without_torchrun_is_the_only_one(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    kept = []
    monkeypatch.setattr(processes, "_keep_memory", lambda: kept.append("memory"))
    with started("cpu", lambda: True) as alone:
        assert (alone.rank, alone.number, alone.first, alone.device) == (0, 1, True, CPU)
        assert alone.stop_asked() and kept == ["memory"]
    assert not of_two(1).first and not Processes(0, 1, CPU).stop_asked()


def test_a_process_joins_at_its_place_and_can_be_asked_to_stop(monkeypatch):
    def init(backend, timeout):
        assert backend == "gloo" and timeout.days == 365

    monkeypatch.setattr(processes.dist, "init_process_group", init)
    found = processes._joined(processes.Place(3, 4, 1, 2), CPU, lambda: True)
    assert (found.rank, found.number, found.device, found.waiting) == (3, 4, CPU, None)
    assert found.stop_asked()


def test_each_process_has_a_gpu_of_its_own_or_is_refused(monkeypatch):
    cuda = processes.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    assert processes._device("auto", 0) == processes._device("cpu", 3) == CPU
    with pytest.raises(InputError, match="finds no CUDA device"):
        processes._device("cuda", 0)
    chosen = []
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "set_device", chosen.append)
    assert processes._device("cpu", 0) == CPU and chosen == []
    for name in ("auto", "cuda"):
        assert processes._device(name, 1) == torch.device("cuda", 1)
        with pytest.raises(InputError, match="process 2 of this machine has no GPU of its own, there are 2"):
            processes._device(name, 2)
    assert chosen == [1, 1]


def test_workers_are_not_forked_off_cuda_and_the_line_says_what_norms_see():
    cuda = Processes(0, 2, torch.device("cuda", 0))
    assert (of_two(0).start, cuda.start) == ("fork", "forkserver")
    assert described(Processes(0, 1, CPU)) == "1 process on cpu"
    assert described(of_two(0)) == "2 processes on cpu, batch norms over each process's own images"
    assert described(cuda) == "2 processes on cuda, batch norms over all images"
