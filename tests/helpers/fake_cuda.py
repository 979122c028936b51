"""CUDA's code without a GPU: tensors of device ``cuda`` that hold no values, with CUDA's autocast.

Under ``fake_cuda`` a mix of devices raises, each result has the dtype that CUDA would give it, and what reads
a value (``item``, a test of a mask) raises: a GPU would make the host wait there.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


SOME = 3  # rows of a result whose size depends on values: here there are none


class Waits(TorchDispatchMode):
    """What makes the host wait for the device: names in ``seen``, in order.

    That is reading a value; an operation whose result has a size that depends on values, such as ``nonzero``
    (here it has SOME rows); and a copy between host and device that does not say ``non_blocking``, or is one
    of memory that is not pinned (``pinned``). All copies, waited for or not, are in ``copies``.
    A value that is read is ``value``.
    """

    def __init__(self, value=0):
        super().__init__()
        self.value = value
        self.seen, self.copies = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "aten" and func._can_decompose():  # inference mode leaves them whole
            with self:
                return func.decompose(*args, **kwargs)
        name = func.overloadpacket.__name__
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is not None and first.device.type == "cuda":
            if name in _READ:
                self.seen.append("value")
                return bool(self.value) if first.dtype == torch.bool else self.value
            if name in ("index", "index_put_", "_index_put_impl_"):
                return self._indexed(func, *args, **kwargs)
            if torch.Tag.dynamic_output_shape in func.tags:
                self.seen.append(name)
                return _SIZED_BY_VALUES[name](*args, **kwargs)
        result = func(*args, **kwargs)
        self._note_copy(func, args, kwargs, result)
        return result

    def _indexed(self, func, tensor, indices, *values, **options):
        """A mask needs its places; to set one value there is no waiting."""
        masks = [index for index in indices if index is not None and index.dtype == torch.bool]
        if not masks:
            return func(tensor, indices, *values, **options)
        if not values or values[0].numel() != 1:
            self.seen.append("mask")
        if values:
            return tensor
        places = []
        for index in indices:
            is_mask = any(index is mask for mask in masks)
            places += [_some(index, SOME)] * index.ndim if is_mask else [index]
        return func(tensor, places)

    def _note_copy(self, func, args, kwargs, result):
        source, to = args[0] if args else None, result
        if func.overloadpacket.__name__ == "copy_":
            to, source = args[:2]
        if not isinstance(source, torch.Tensor) or not isinstance(to, torch.Tensor):
            return
        if source.device.type == to.device.type:
            return
        copy = f"{source.device.type} -> {to.device.type}"
        self.copies.append(copy)
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        waits = source.device.type == "cpu" and not getattr(source, "pinned", False)
        if waits or not given.get("non_blocking"):
            self.seen.append(copy)


def pinned(tensor):
    """Mark a tensor of the host as one in pinned memory."""
    tensor = tensor.view_as(tensor)
    tensor.pinned = True
    return tensor


def _some(tensor, *size, dtype=torch.int64):
    return tensor.new_empty(size, dtype=dtype)


_READ = ("item", "_local_scalar_dense", "is_nonzero", "equal", "allclose")
_SIZED_BY_VALUES = {
    "nonzero": lambda of: _some(of, SOME, of.ndim),
    "bincount": lambda of, weights=None, minlength=0: _some(of, max(SOME, minlength)),
    "_unique2": lambda of, *_, **__: (_some(of, SOME, dtype=of.dtype), _some(of, *of.shape), _some(of, SOME)),
}


def listed(tensor):
    """``tolist``, which reads all values at once."""
    return np.full(tensor.shape, tensor.flatten()[0].item()).tolist()


@torch.no_grad()
def backward(loss):
    """``loss.backward()``, node by node: PyTorch's own has a thread for each GPU, and there is none."""
    gradients = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in _from_the_loss(loss.grad_fn):
        if node not in gradients:
            continue
        found = node(*gradients.pop(node))
        for (following, place), gradient in zip(
            node.next_functions, found if isinstance(found, tuple) else (found,), strict=True
        ):
            if following is None or gradient is None:
                continue
            inputs = following._input_metadata
            gradient = gradient.sum_to_size(inputs[place].shape).to(inputs[place].dtype)
            held = gradients.setdefault(following, [None] * len(inputs))
            held[place] = gradient if held[place] is None else held[place] + gradient


def _from_the_loss(root):
    """All nodes of a graph, each before those that its gradients go to: the latest first, weights last."""
    met, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is not None and node not in met:
            met.add(node)
            todo += [following for following, _ in node.next_functions]
    return sorted(met, key=lambda node: (bool(node.next_functions), node._sequence_nr()), reverse=True)


@contextmanager
def fake_cuda(monkeypatch):
    """Make all tensors hold no values; gives a function that moves a module to the fake device, in place."""
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(FakeTensor, "tolist", listed)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def moved(module):
        for part in module.modules():
            for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                fake = mode.from_tensor(value.detach()).to(CUDA)
                if isinstance(value, torch.nn.Parameter):
                    fake = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
                setattr(part, name, fake)
        return module

    with mode:
        yield moved
