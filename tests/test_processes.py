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
ONE, FIRST, SECOND = Processes(0, 1, CPU), Processes(0, 2, CPU, GROUP), Processes(1, 2, CPU, GROUP)


@pytest.fixture
def other(monkeypatch):
    """What the other of two processes holds, in a list of one."""
    held = [""]

    def all_gather_object(values, own, group):
        assert group is GROUP
        values[:] = [own, held[0]]

    def all_reduce(values, operation=None, group=None):
        """Sums of tensors go over the default group, flags over the one that waits."""
        is_sum = operation is None
        assert is_sum or (operation, group) == (processes.dist.ReduceOp.MAX, GROUP)
        values.copy_(values + held[0] if is_sum else torch.maximum(values, held[0]))

    for function in (all_gather_object, all_reduce):
        monkeypatch.setattr(processes.dist, function.__name__, function)
    return held


def test_a_sum_leaves_what_was_given(other):
    own = torch.tensor([1.0, 2.0])
    other[0] = torch.tensor([1.0, 3.0])
    assert FIRST.sum(own).tolist() == [2, 5] and own.tolist() == [1, 2]
    assert ONE.sum(own) is own


def test_a_flag_of_any_process_is_set_in_all(other):
    other[0] = torch.tensor([0, 1, 0], dtype=torch.uint8)
    assert FIRST.any(True, False, False) == [True, True, False]
    assert ONE.any(True, False) == [True, False]


def failing(error):
    def check():
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "others", "told"),
    [
        (InputError("a mask is missing"), "", "a mask is missing"),
        (InputError("a mask is missing"), "a mask is missing", "a mask is missing"),
        (InputError("a mask is missing"), "an image is missing", "a mask is missing\nan image is missing"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a"), "", "a: No space left on device"),
        (OSError("no file at all"), "", "no file at all"),
    ],
)
def test_problems_of_all_processes_are_told_in_all_each_once(other, error, others, told):
    other[0] = others
    with pytest.raises(InputError) as raised:
        FIRST.together(failing(error))
    assert str(raised.value) == told
    if others:
        with pytest.raises(InputError, match=f"^{others}$"):
            FIRST.together(lambda: 5)
    other[0] = ""
    assert FIRST.together(lambda: 5) == ONE.together(lambda: 5) == 5


def test_only_the_first_process_makes_what_all_get(other, monkeypatch):
    def broadcast(values, src, group):
        assert (src, group) == (0, GROUP)
        sent.append(values[0])
        values[0] = "made"

    sent = []
    monkeypatch.setattr(processes.dist, "broadcast_object_list", broadcast)
    assert FIRST.from_first(lambda: "made") == "made"
    assert SECOND.from_first(lambda: pytest.fail("made twice")) == "made"
    assert sent == ["made", None]
    assert ONE.from_first(lambda: "own") == "own"


def test_gradients_are_the_mean_in_the_order_of_ranks(monkeypatch):
    """Of three processes, the large gradients of two of which cancel only when they are added first."""
    gradients = torch.tensor([[2.0**30, 3], [-(2.0**30), 3], [3, 3]])

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


def test_a_process_joins_at_its_place_and_can_be_asked_to_stop(monkeypatch):
    kept, joined = [], []
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(processes, "_keep_memory", lambda: kept.append("memory"))
    with started("cpu", lambda: True) as alone:
        assert (alone.rank, alone.number, alone.first, alone.device) == (0, 1, True, CPU)
        assert alone.stop_asked() and kept == ["memory"]
    assert not SECOND.first and not ONE.stop_asked()
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *how, **more: joined.append((how, more)))
    found = processes._joined(processes.Place(3, 4, 1, 2), CPU, lambda: True)
    assert (found.rank, found.number, found.device, found.waiting) == (3, 4, CPU, None)
    assert found.stop_asked()
    assert joined == [(("gloo",), {"timeout": processes._NO_TIMEOUT})] and processes._NO_TIMEOUT.days == 365


def test_each_process_has_a_gpu_of_its_own_or_is_refused(monkeypatch):
    cuda, chosen = processes.torch.cuda, []
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    assert processes._device("auto", 0) == processes._device("cpu", 3) == CPU
    with pytest.raises(InputError, match="finds no CUDA device"):
        processes._device("cuda", 0)
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
    assert (FIRST.start, cuda.start) == ("fork", "forkserver")
    assert described(ONE) == "1 process on cpu"
    assert described(FIRST) == "2 processes on cpu, batch norms over each process's own images"
    assert described(cuda) == "2 processes on cuda, batch norms over all images"
