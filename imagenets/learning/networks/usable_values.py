"""Tensors whose numbers a network can have: those of a damaged or quantised file are found and named."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from imagenets.common.errors import InputError
from imagenets.learning.networks.checkpoint_files import Tensors, some

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def like_the_worst(parts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Bring tensors that become one to the device and dtype of the first that holds no usable numbers.

    Joined with floats, integers would turn into floats without a word, and tensors without values (device
    meta) would raise an error that names nothing; so ``refuse_unusable`` finds either in the whole.
    """
    found = list(parts)
    worst = next((part for part in found if part.is_meta or part.dtype not in _FLOATS), None)
    if worst is None:
        return found
    return [torch.empty_like(part, device=worst.device, dtype=worst.dtype) for part in found]


def refuse_unusable(path: Path, found: Tensors, wanted: Tensors) -> None:
    """Refuse tensors ``found`` in a file whose values no trained network has; ``wanted`` are the network's.

    Raises InputError, naming the file and the tensors.
    """
    floats = {name: value for name, value in found.items() if wanted[name].is_floating_point()}
    faults: dict[str, list[str]] = {}
    for name, value in floats.items():
        norm = f"{name.rpartition('.')[0]}.running_var" not in wanted and re.search(r"norm\d?\.weight$", name)
        if fault := _fault(name, value, bool(norm)):
            faults.setdefault(fault, []).append(name)
    for fault, names in faults.items():
        raise InputError(f"{path}: {len(names)} of {len(floats)} tensors {fault} ({some(names)})")


def _fault(name: str, value: torch.Tensor, of_a_norm: bool) -> str | None:
    if value.is_meta:
        return "have no values (device meta): save the weights after they were loaded"
    if value.dtype not in _FLOATS:
        kind = str(value.dtype).removeprefix("torch.")
        return f"are {kind}, without their scale: take a file that is not quantised"
    if not torch.isfinite(value).all():
        return "are not finite: the training failed, or the file is damaged"
    matrix = value.ndim > 1 and name.endswith(("weight", "pos_embed", "pos_embedding"))
    # A batch norm in front of a sum may start at zero, the norm of tokens is never zero after a training.
    if (matrix or of_a_norm) and not value.any():
        return "are zero throughout: the weights were not saved"
    if name.endswith("qkv.weight") and not all(part.any() for part in value.chunk(3)):
        return "are zero throughout in queries, keys or values: the weights were not saved"
    return None
