"""What trainings put around a network's names: wrappers, prefixes, and several copies of the network."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from imagenets.common.errors import InputError

Tensors = dict[str, torch.Tensor]

# Segments of names that torch.compile, FSDP and activation checkpointing put in, at any place.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# The moving average of the weights, by which timm, DeiT and ConvNeXt report their numbers.
_EMA = re.compile(r"(^|[._])ema(?![a-z])")
# Of two copies that fit equally well, the one without such a word: the teacher, not the student; the query's
# encoder, not the key's; the online network, not its target.
_SECOND_CHOICE = re.compile(r"student|momentum|encoder_k|target|_k\.")
_TARGET = re.compile(r"(^|\.)target_encoder\.")
_SHOWN = 8


def without_wrappers(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Take the wrappers' segments out of all names; a name that is there already keeps them."""
    bare: Tensors = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        bare[name if short in bare else short] = tensor
    return bare


def of_branch(tensors: Tensors, branch: str | None, path: object) -> Tensors:
    """Select the tensors below ``branch``, a part of names (``student``, ``state_dict.model``); None: all.

    Raises InputError, naming the file ``path`` and what there is, when there are none.
    """
    if branch is None:
        return tensors
    step = re.compile(rf"(^|\.){re.escape(branch)}\.")
    chosen = {name: tensor for name, tensor in tensors.items() if step.search(name)}
    if not chosen:
        there = list(dict.fromkeys(name.partition(".")[0] for name in tensors))
        more = ", …" if len(there) > _SHOWN else ""
        raise InputError(f"{path}: has no weights {branch}; there are {', '.join(there[:_SHOWN])}{more}")
    return chosen


def is_ema(prefix: str) -> bool:
    """Return whether a prefix is that of a moving average of the weights."""
    return bool(_EMA.search(prefix))


def first_choice(prefixes: Collection[str]) -> str:
    """Choose among the prefixes of copies that fit equally well; the first of equals.

    The moving average (EMA); a ``target_encoder`` beside an ``encoder`` (I-JEPA, MSN: the network that is
    evaluated), but not beside an online network (BYOL); never a student, a momentum encoder …, where there
    is another.
    """

    def rank(prefix: str) -> int:
        beside = _TARGET.sub(r"\1encoder.", prefix)
        if is_ema(prefix) or (beside != prefix and beside in prefixes):
            return 0
        return 2 if _SECOND_CHOICE.search(prefix) else 1

    return min(prefixes, key=rank)
