"""How a network computes: its precision (whatever follows it is float32), device and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import autocast, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from imagenets.common.errors import InputError


def training_precision(wanted: str, device: torch.device) -> str:
    """Precision of a training: ``wanted``, or what ``auto`` stands for on this device.

    That is bfloat16 on CUDA where the card computes in it, float16 on older cards, float32 on CPUs.
    """
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def run_network(network: Callable[..., Any], *inputs: Any, precision: str) -> Any:  # noqa: ANN401 - as the network's
    """Call a network, or a function of one, in a precision (autocast).

    Returns its tensor, or its tuple or dictionary of tensors, as float32. Nothing else computes in less than
    float32.
    """
    if precision == "float32":
        return network(*inputs)
    with autocast(inputs[0].device.type, getattr(torch, precision)):
        found = network(*inputs)
    if isinstance(found, torch.Tensor):
        return at_least_float32(found)
    if isinstance(found, Mapping):
        return {name: at_least_float32(tensor) for name, tensor in found.items()}
    converted = map(at_least_float32, found)
    return found._make(converted) if hasattr(found, "_make") else type(found)(converted)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Bring half precision to float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def cuda_switches(device: torch.device, *, one_size: bool) -> Iterator[None]:
    """Set PyTorch's global switches for CUDA, and put them back: float32 is never rounded to TF32.

    ``one_size`` says that all pictures have one size, for which cuDNN's fastest kernels are looked for.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = False, False, one_size
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def memory_named(device: torch.device, cure: str) -> Iterator[None]:
    """Turn a lack of the device's memory, or of this machine's, into one InputError with a ``cure``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"the memory of {device} does not suffice: {cure}") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise InputError(
                "memory does not suffice: lower the batch size or the number of workers"
            ) from error
        raise


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in place; on CUDA channels come last, as convolutions are fastest there."""
    if device.type == "cuda":
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    return network.to(device)


def fold_batch_norms(network: nn.Module) -> None:
    """Work the batch norms of torchvision's ResNets into the convolutions before them, in place.

    Other networks stay as they are.

    In those ResNets a batch norm that stands behind a convolution is the only one to take its output.
    The output is the same except for rounding (1e-6 of the largest value), in a twentieth less
    time on a CPU. It must be in evaluation mode, and cannot be trained or saved under its names afterwards.
    """
    try:
        from torchvision.models import ResNet
    except ImportError:
        return
    resnets = [module for module in network.modules() if isinstance(module, ResNet)]
    for module in [part for resnet in resnets for part in resnet.modules()]:
        for (first, convolution), (second, norm) in pairwise(list(module.named_children())):
            if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())


class Normalisation:
    """Normalises pictures with constants that are made once, and lie on the device."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        """Normalise by ``mean`` and ``std`` (R, G, B) of values in 0..1."""
        self.mean, self.std = (torch.tensor(of, device=device).view(3, 1, 1) for of in (mean, std))

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Bring pictures (B, 3, H, W) uint8 to [0, 1], minus mean, by std: float32, on their device."""
        if pictures.device.type == "cuda":
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        return pictures.float().div_(255).sub_(self.mean).div_(self.std)
