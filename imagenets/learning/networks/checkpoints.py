"""Checkpoints in the forms that people have them: read without running code in them, and fitted to a network.

A file is one tree of named tensors; where the network's own lie in it (``model``, ``state_dict``,
``teacher.backbone``, ``module.encoder_q`` …) is found by what fits. docs/methods.md, Checkpoints, has the
forms that are known to load.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.position_embeddings import resized

Tensors = dict[str, torch.Tensor]

RANDOM = Path("none")  # in a checkpoint's place: random weights

# Besides tensors and plain containers: what training scripts store beside the weights.
_ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]
# Of two copies that fit alike, the one without such a word: the teacher, not the student; the query's
# encoder, not the key's; the online network, not its target.
_SECOND_CHOICE = re.compile(r"student|momentum|encoder_k|target|ema(?![a-z])|_k\.")
_POSITIONS = ("pos_embed", "encoder.pos_embedding")
# Made from a network's settings, and stored by some versions of a library only.
_DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
_SHOWN = 3


def read_checkpoint(path: Path | str) -> dict[Any, Any]:
    """Read a checkpoint, on the CPU: what ``torch.save`` saved, or a ``.safetensors`` file's tensors.

    Only tensors, plain values, ``argparse.Namespace`` and NumPy numbers are read (``weights_only=True``).
    Raises InputError, naming the file, for anything else, OSError when there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder; give a file of weights, of a run here {path / 'last.pth'}")
    with path.open("rb") as file:  # a missing file is told as everywhere
        file.read(1)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if refused is None:
            raise _unreadable(path) from error
        raise InputError(
            f"{path}: holds a Python object ({refused[1]}) that could run code, and is not read; "
            "save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds no weights but a {type(content).__name__}; save a state_dict")
    return dict(content)


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: cannot be read as weights; is it whole? Checkpoints are what "
        "torch.save(model.state_dict(), FILE) saves, or .safetensors"
    )


def _read_safetensors(path: Path) -> dict[Any, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: needs safetensors: bash setup.sh methods") from error
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}); is it whole?") from error


def file_digest(path: Path | str) -> str:
    """Digest of a file's bytes, 32 hexadecimal digits; of RANDOM its name. OSError when it cannot be read."""
    if Path(path) == RANDOM:
        return str(RANDOM)
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def named_tensors(checkpoint: Mapping[Any, Any]) -> Tensors:
    """All tensors of a checkpoint by their full names: nested names are joined by dots."""
    found: Tensors = {}

    def walk(part: Mapping[Any, Any], prefix: str) -> None:
        for key, value in part.items():
            if isinstance(value, torch.Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, Mapping) and key != "optimizer":
                walk(value, f"{prefix}{key}.")

    walk(checkpoint, "")
    return found


def load_backbone(backbone: Backbone, path: Path | str) -> str:
    """Load a checkpoint into a backbone; gives one line to print: what was loaded, and what was left over.

    All tensors of the backbone must be there, in their shapes; position embeddings of another resolution
    are brought to the network's (bicubic). Where the last norm is missing, that of the averaged tokens
    (``fc_norm``) takes its place. Raises InputError, naming the file, when anything is missing or the file is
    another network's, OSError when it cannot be read. RANDOM in place of a file gives random weights.
    """
    if Path(path) == RANDOM:
        return _randomize(backbone)
    return load_tensors(backbone, named_tensors(read_checkpoint(path)), path)


def _randomize(backbone: Backbone) -> str:
    """Give a backbone random weights, the same in every run and every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone.network.load_state_dict(make_backbone(backbone.name).network.state_dict())
    return f"{backbone.name}: random weights (seed 0)"


def load_tensors(backbone: Backbone, tensors: Tensors, path: Path | str) -> str:
    """Do what ``load_backbone`` does, with tensors that ``named_tensors`` gave; ``path`` is for messages."""
    wanted = {
        name: tensor for name, tensor in backbone.network.state_dict().items() if not name.endswith(_DERIVED)
    }
    fits = [_best_fit(wanted, spelling) for spelling in _spellings(backbone, tensors)]
    best = max(fits, key=lambda fit: len(fit.found))  # the first of equals
    problem = best.problem(wanted)
    if problem:
        raise InputError(
            f"{path}: not the weights of a {backbone.name}: {problem}; give the --backbone that it was "
            "trained as"
        )
    derived = {
        name: best.beside.pop(name)
        for name, like in backbone.network.state_dict().items()
        if name not in wanted and name in best.beside and best.beside[name].shape == like.shape
    }
    backbone.network.load_state_dict(best.found | derived, strict=False)
    return f"{backbone.name}: {best.line(Path(path).name, len(tensors) - len(derived))}"


@dataclass(frozen=True)
class _Fit:
    """What a network finds in a file: tensors ``found`` behind ``prefix``, others ``beside`` them there."""

    prefix: str
    found: Tensors
    beside: Tensors
    others: tuple[str, ...]  # names elsewhere in the file

    def problem(self, wanted: Tensors) -> str | None:
        """Say why this is not the network, if it is not."""
        missing = [name for name in wanted if name not in self.found]
        shapes = [
            f"{name} is {tuple(self.beside[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in missing
            if name in self.beside
        ]
        absent = [name for name in missing if name not in self.beside]
        parts = {name.partition(".")[0] for name in wanted}
        surplus = [
            name
            for name in self.beside
            if name.partition(".")[0] in parts and name not in wanted and not name.endswith(_DERIVED)
        ]
        if not (missing or surplus):
            return None
        said = []
        if absent:
            near = difflib.get_close_matches(absent[0], [*self.beside, *self.others], _SHOWN, cutoff=0.4)
            said.append(f"{len(absent)} of {len(wanted)} tensors are missing ({_some(absent)})")
            said.append(f"nearest names in it: {', '.join(near)}" if near else "no name in it is near")
        if shapes:
            said.append(f"{len(shapes)} of another shape ({_some(shapes)})")
        if surplus:
            said.append(f"{len(surplus)} too many ({_some(surplus)})")
        return "; ".join(said)

    def line(self, file: str, tensors: int) -> str:
        """Say what was loaded and what was not."""
        place = f" under {self.prefix.removesuffix('.')}" if self.prefix else ""
        left = f"{len(self.beside)} there ({_some(list(self.beside))})" if self.beside else "none there"
        elsewhere = tensors - len(self.found) - len(self.beside)
        more = f", {elsewhere} elsewhere in the file" if elsewhere else ""
        return f"{len(self.found)} tensors loaded from {file}{place}; left over: {left}{more}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _best_fit(wanted: Tensors, tensors: Tensors) -> _Fit:
    """Find the prefix behind which most of the wanted names and shapes are."""
    counts: Counter[str] = Counter()
    for name in tensors:
        for prefix, rest in _splits(name):
            if rest in wanted:
                counts[prefix] += 1
    prefixes = [prefix for prefix, number in counts.items() if number == max(counts.values())] or [""]
    prefix = min(prefixes, key=lambda prefix: bool(_SECOND_CHOICE.search(prefix)))  # the first of equals
    there = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    found = {
        name: value
        for name, like in wanted.items()
        if (value := _in_shape(name, there.get(name), like)) is not None
    }
    beside = {name: value for name, value in there.items() if name not in found}
    return _Fit(prefix, found, beside, tuple(name for name in tensors if not name.startswith(prefix)))


def _splits(name: str) -> Iterable[tuple[str, str]]:
    """All ways to split a name into a prefix, with its dot, and the rest."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _in_shape(name: str, value: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Give ``value`` if it has the shape of ``like`` or, for position embeddings, can be brought to it."""
    if value is None or value.shape == like.shape:
        return value
    if name not in _POSITIONS or value.ndim != 3 or value.shape[2] != like.shape[2]:
        return None
    for prefix in range(8):  # class and register tokens: the number with which both are squares
        try:
            moved = resized(value, prefix, like.shape[1] - prefix)
        except ValueError:
            continue
        if moved.shape == like.shape:
            return moved
    return None


def _spellings(backbone: Backbone, tensors: Tensors) -> Iterable[Tensors]:
    """Give the tensors under the names that this network may have for them: first as they are."""
    network = backbone.network
    norms = {"norm.weight", "norm.bias"} & network.state_dict().keys()
    yield tensors if not norms else _renamed(tensors, _norm_of_tokens)
    if backbone.is_resnet:
        yield _renamed(tensors, _numbered_resnet)
    if hasattr(network, "stages") and hasattr(network, "stem"):
        yield _renamed(tensors, _convnext)
    if hasattr(network, "blocks"):
        yield _dinov2(_renamed(tensors, _chunked_blocks), getattr(network, "reg_token", None) is not None)


def _renamed(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    """Rename tensors, but never onto a name that is there."""
    return {new if (new := rename(name)) not in tensors else name: tensors[name] for name in tensors}


def _norm_of_tokens(name: str) -> str:
    """Name of a norm behind the average of the tokens, which MAE's fine-tuning and ImageNet-S models have."""
    return re.sub(r"(^|\.)fc_norm\.(weight|bias)$", r"\1norm.\2", name)


_RESNET_CHILDREN = {
    "0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"
}  # fmt: skip


def _numbered_resnet(name: str) -> str:
    """Name of a tensor of ``nn.Sequential(*resnet.children())``, as lightly's models hold it."""
    return re.sub(
        r"(^|\.)([014567])\.((?:\d+\.\w+\.(?:\d+\.)?)?(?:weight|bias|running_mean|running_var|num_batches_tracked))$",
        lambda match: f"{match[1]}{_RESNET_CHILDREN[match[2]]}.{match[3]}",
        name,
    )


def _convnext(name: str) -> str:
    """timm's name of a tensor of Facebook's ConvNeXt."""
    name = re.sub(r"(^|\.)downsample_layers\.0\.", r"\1stem.", name)
    name = re.sub(r"(^|\.)downsample_layers\.(\d+)\.", r"\1stages.\2.downsample.", name)
    name = re.sub(r"(^|\.)stages\.(\d+)\.(\d+)\.", r"\1stages.\2.blocks.\3.", name)
    return name.replace(".dwconv.", ".conv_dw.").replace(".pwconv", ".mlp.fc")


def _chunked_blocks(name: str) -> str:
    """Name of a tensor of DINOv2's training, which holds the blocks in chunks (``blocks.CHUNK.BLOCK.``)."""
    name = re.sub(r"(^|\.)blocks\.\d+\.(\d+)\.", r"\1blocks.\2.", name)
    name = re.sub(r"(^|\.)mlp\.w12\.", r"\1mlp.fc1.", name)
    return re.sub(r"(^|\.)mlp\.w3\.", r"\1mlp.fc2.", name)


def _dinov2(tensors: Tensors, registers: bool) -> Tensors:
    """DINOv2 with registers: timm adds the class token's position embedding to the class token itself."""
    changed = dict(tensors)
    for name in tensors if registers else ():
        prefix = name.removesuffix("register_tokens")
        token, positions = f"{prefix}cls_token", f"{prefix}pos_embed"
        if prefix != name and token in tensors and positions in tensors:
            changed[f"{prefix}reg_token"] = changed.pop(name)
            changed[token] = tensors[token] + tensors[positions][:, :1]
            changed[positions] = tensors[positions][:, 1:]
    return changed
