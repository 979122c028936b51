"""Features of a torchvision or timm model whose weights the user has; nothing is downloaded."""

from __future__ import annotations

import difflib
import hashlib
import math
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, normalize

from imagenets.common.errors import InputError
from imagenets.learning.extraction import library_versions
from imagenets.learning.handmade_features import Features, picture_and_mask

# Modules behind the feature map: their weights may be absent, or of another number of classes.
_HEADS = ("fc", "classifier", "head", "heads", "AuxLogits", "aux1", "aux2")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 224
_BATCH = 32


class Backbone(NamedTuple):
    """A model, the name of its module that gives the last feature map, and what the model takes."""

    model: torch.nn.Module
    layer: str
    side: int  # of the square input, pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_backbone(name: str, checkpoint: Path) -> Features:
    """Features of the model ``name``: its last feature map, averaged over the foreground, as unit vectors.

    Raises InputError when there is no such model, or the checkpoint does not fit it, OSError when it cannot
    be read.
    """
    with checkpoint.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 20):
            digest.update(block)
    backbone = build(name)
    load_weights(backbone.model, checkpoint, name)
    if torch.cuda.is_available():
        backbone.model.cuda()
    prepare = partial(picture_and_mask, side=backbone.side)
    libraries = library_versions("torch", "torchvision", "timm")
    return Features(f"{name} {digest.hexdigest()}, {libraries}", prepare, partial(finish, backbone))


def build(name: str) -> Backbone:
    """Make a model without weights: torchvision's where it has one of this name, else timm's."""
    known: list[str] = []
    try:
        import torchvision.models

        known += torchvision.models.list_models(module=torchvision.models)
        if name in known:
            model = torchvision.models.get_model(name, weights=None).eval()
            return Backbone(model, last_map(model, _SIDE), _SIDE, _IMAGENET_MEAN, _IMAGENET_STD)
    except ImportError:
        pass
    try:
        import timm

        if timm.is_model(name):
            model = timm.create_model(name, pretrained=False, num_classes=0).eval()
            data = timm.data.resolve_model_data_config(model)
            side = data["input_size"][-1]
            return Backbone(model, last_map(model, side), side, data["mean"], data["std"])
        known += timm.list_models()
    except ImportError:
        pass
    if not known:
        raise InputError(
            "--backbone needs torchvision or timm, and neither is installed: bash setup.sh methods"
        )
    near = difflib.get_close_matches(name, sorted(set(known)))
    hint = f"; near: {', '.join(near)}" if near else ""
    raise InputError(f"--backbone {name}: neither torchvision nor timm as installed has this model{hint}")


def last_map(model: torch.nn.Module, side: int) -> str:
    """Name of the module, before the head, that gives the last feature map of square images of ``side``.

    A feature map is (B, C, H, W) or (B, H, W, C), or tokens (B, T, C), of more than one place.
    Raises InputError when there is none.
    """
    found: list[str] = []

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and _is_map(output):
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name and not _is_head(name)
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    if not found:
        raise InputError(f"{type(model).__name__} gives no feature map; take another --backbone")
    return found[-1]


def _is_map(output: torch.Tensor) -> bool:
    if output.ndim == 4:
        return min(sorted(output.shape[1:])[:2]) > 1
    return output.ndim == 3 and output.shape[1] > 1


def as_map(output: torch.Tensor) -> torch.Tensor:
    """Bring a feature map of a square image to (B, C, H, W); tokens before the image's own are left out."""
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        tokens = output[:, output.shape[1] - side**2 :]
        return tokens.transpose(1, 2).unflatten(2, (side, side))
    if output.shape[2] != output.shape[3]:  # channels last
        return output.permute(0, 3, 1, 2)
    return output


def load_weights(model: torch.nn.Module, checkpoint: Path, name: str) -> None:
    """Load a checkpoint: the weights themselves, or under ``state_dict`` or ``model``; also ``module.…``.

    The head may be absent or another one, and parts that the model does not have at all (a projector, say)
    are left out. Everything else must fit: InputError tells what does not.
    """
    weights = _read_weights(checkpoint)
    wanted = {key: value for key, value in model.state_dict().items() if not _is_head(key)}
    parts = {key.split(".")[0] for key in wanted}
    given = {key: value for key, value in weights.items() if not _is_head(key) and key.split(".")[0] in parts}
    missing = [key for key in wanted if key not in given and not key.endswith(".num_batches_tracked")]
    surplus = [key for key in given if key not in wanted]
    shapes = [
        f"{key} is {tuple(given[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    faults = [
        f"{len(what)} {kind} ({what[0]})"
        for what, kind in ((missing, "missing"), (surplus, "too many"), (shapes, "of another shape"))
        if what
    ]
    if faults:
        raise InputError(f"{checkpoint}: no weights of {name}: {', '.join(faults)}")
    model.load_state_dict(given, strict=False)


def _is_head(key: str) -> bool:
    return key.split(".")[0] in _HEADS


def _read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    try:
        content: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # OSError is torch's for a file that is cut short.
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{checkpoint}: cannot be read as weights; save them with torch.save(model.state_dict(), FILE)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise InputError(f"{checkpoint}: no state_dict, neither by itself nor as 'state_dict' or 'model'")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def finish(backbone: Backbone, prepared: list[np.ndarray]) -> np.ndarray:
    """Run the model on what ``picture_and_mask`` gave (n arrays): (n, C) float32, unit vectors."""
    batches = [prepared[start : start + _BATCH] for start in range(0, len(prepared), _BATCH)]
    return np.concatenate([pooled(backbone, np.stack(batch)) for batch in batches])


def pooled(backbone: Backbone, batch: np.ndarray) -> np.ndarray:
    """Mean of the last feature map over the foreground, (B, side, side, 4) uint8 → (B, C), of length 1."""
    maps: list[torch.Tensor] = []
    layer = backbone.model.get_submodule(backbone.layer)
    device = next(backbone.model.parameters()).device
    values = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(of, device=device).view(3, 1, 1) for of in (backbone.mean, backbone.std))
    hook = layer.register_forward_hook(lambda module, inputs, output: maps.append(as_map(output)))
    with torch.inference_mode():
        backbone.model((values[:, :3] - mean) / std)
        height, width = maps[-1].shape[2:]
        weights = adaptive_avg_pool2d(values[:, 3:], (height, width))
        means = (maps[-1] * weights).sum((2, 3)) / weights.sum((2, 3))
        vectors = normalize(means.float()).cpu().numpy()
    hook.remove()
    return vectors
