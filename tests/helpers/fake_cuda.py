"""CUDA's code without a GPU: tensors of device ``cuda`` that hold no values, with CUDA's autocast.

Under ``fake_cuda`` a mix of devices raises, each result has the dtype that CUDA would give it, and what reads
a value (``item``, a test of a mask) raises: a GPU would make the host wait there.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from imagenets.learning.networks import precision

CUDA = torch.device("cuda", 0)


@contextmanager
def autocast(device_type, dtype):
    """``torch.autocast``, which refuses CUDA where there is none: by its switches."""
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, True)
    torch.set_autocast_dtype(device_type, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])


class Transfers(TorchDispatchMode):
    """Copies between host and device, ``cpu -> cuda`` and back, in their order."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if source is not None and isinstance(result, torch.Tensor) and source.device != result.device:
            self.seen.append(f"{source.device.type} -> {result.device.type}")
        return result


@contextmanager
def fake_cuda(monkeypatch):
    """Make all tensors hold no values; gives a function that moves a module to the fake device, in place."""
    monkeypatch.setattr(precision, "autocast", autocast)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def moved(module):
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    fake = mode.from_tensor(value.detach()).to(CUDA)
                    part._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = mode.from_tensor(value.detach()).to(CUDA)
        return module

    with mode:
        yield moved
