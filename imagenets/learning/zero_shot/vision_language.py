"""CLIP and SigLIP from the user's files, by open_clip: image tower, text tower, tokenizer, preprocessing.

What a file of weights does not say, and open_clip does not check, is checked or said here: QuickGELU, mean
and standard deviation, the size of the position grid.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.networks.checkpoint_files import file_digest, is_torchscript, read_checkpoint, some
from imagenets.learning.zero_shot.dense_features import LAST_BLOCKS, clip_embeddings, siglip_embeddings

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_DENSE = "siglip"
_CONFIG = "open_clip_config.json"
_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
# Buffers that only files derived from OpenAI's archives hold.
_OPENAI_BUFFERS = ("input_resolution", "context_length", "vocab_size")
_WANTS_QUICK_GELU = re.compile(r"openai|metaclip|dfn", re.IGNORECASE)
_WANTS_GELU = re.compile(r"laion|datacomp|commonpool", re.IGNORECASE)


@dataclass(frozen=True)
class VisionLanguage:
    """A vision-language model, in evaluation mode, float32.

    ``model`` and ``tokenizer`` are open_clip's; ``mean`` and ``std`` (R, G, B) normalise values in 0..1;
    ``patch`` is the side of a patch in pixels, ``digest`` that of the weights' file; ``lines`` say what was
    loaded and what was assumed.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int
    digest: str
    lines: tuple[str, ...]

    @property
    def is_siglip(self) -> bool:
        """Is the image tower timm's, with an attention pooling for a head?"""
        return hasattr(self.model.visual, "trunk")

    def patch_embeddings(self, pictures: torch.Tensor, dense: str) -> torch.Tensor:
        """Embed the patches of normalised pictures (B, 3, H, W): unit vectors (B, E, h, w) float32.

        ``dense`` is a row of ``LAST_BLOCKS``, or SIGLIP_DENSE.
        """
        visual: Any = self.model.visual
        if dense == SIGLIP_DENSE:
            return siglip_embeddings(visual.trunk, pictures)
        return clip_embeddings(visual, pictures, LAST_BLOCKS[dense])

    def probability_scale(self, dense: str) -> tuple[float, float]:
        """Factor and offset that turn a cosine into a logit: the method's; SigLIP's own, for its sigmoid."""
        if dense != SIGLIP_DENSE:
            return LAST_BLOCKS[dense].scale, 0.0
        model: Any = self.model
        return float(model.logit_scale.exp()), float(model.logit_bias)


def load_vision_language(name: str | None, path: Path) -> VisionLanguage:
    """Load open_clip's model ``name`` from a file, or the model that a folder's open_clip_config.json names.

    A file is open_clip's or OpenAI's (also their TorchScript archives). Raises InputError for a model without
    a known dense path, for files of other layouts, and where name and weights do not go together.
    """
    if path.is_dir():
        return _from_folder(path)
    if name is None:
        raise InputError(
            f"{path}: a file of weights does not say which model it is; name open_clip's model, or take "
            "the folder that holds open_clip_config.json as the checkpoint"
        )
    config = _config(name)
    if "hf_tokenizer_name" in config["text_cfg"] or "hf_model_name" in config["text_cfg"]:
        raise InputError(
            f"{name}: its tokenizer and preprocessing come with its folder; name the folder that holds "
            f"{_CONFIG}, not only the weights"
        )
    quick = bool(config.get("quick_gelu"))
    if is_torchscript(path):
        tensors, openai = _torchscript_tensors(path), True
    else:
        tensors = read_checkpoint(path).tensors
        openai = any(key.rpartition(".")[2] in _OPENAI_BUFFERS for key in tensors)
    _refuse_wrong_activation(name, path, quick, openai)
    model = _model(name)
    line = _load(model, tensors, path)
    activation = "QuickGELU" if quick else "GELU"
    said = f"activation {activation}; mean and std of CLIP; position embeddings by DINO's rule"
    patch = _patch_of(name, model)
    return VisionLanguage(
        name, model, _tokenizer(name), CLIP_MEAN, CLIP_STD, patch, file_digest(path), (line, said)
    )


def _from_folder(folder: Path) -> VisionLanguage:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        preprocess = config["preprocess_cfg"]
        mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {_CONFIG}; name a file of weights and its model") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _CONFIG}: damaged, or without mean and std") from error
    files = [folder / name for name in _WEIGHT_FILES if (folder / name).is_file()]
    if not files:
        raise InputError(f"{folder}: none of {', '.join(_WEIGHT_FILES)} is there")
    name = f"local-dir:{folder}"
    model = _model(name)
    line = _load(model, read_checkpoint(files[0]).tensors, files[0])
    said = f"preprocessing of {_CONFIG}: mean {mean}, std {std}"
    patch = _patch_of(folder.name, model)
    return VisionLanguage(
        folder.name, model, _tokenizer(name), mean, std, patch, file_digest(files[0]), (line, said)
    )


def _patch_of(name: str, model: nn.Module) -> int:
    """Side of the patches of an image tower. Raises InputError for those that have no known dense path."""
    visual: Any = model.visual
    pool = getattr(getattr(visual, "trunk", None), "attn_pool", None)
    if pool is not None and not any(True for _ in visual.head.parameters()):
        return int(visual.trunk.patch_embed.patch_size[0])
    if hasattr(visual, "transformer") and getattr(visual, "attn_pool", None) is None:
        if isinstance(visual.transformer.resblocks[-1].attn, nn.MultiheadAttention):
            return int(visual.patch_size[0])
        raise InputError(f"{name}: its last block is not CLIP's; no dense features are defined for it")
    raise InputError(
        f"{name}: {type(visual).__name__} is neither CLIP's ViT nor a SigLIP tower; no dense features are "
        "defined for it"
    )


def _config(name: str) -> Mapping[str, Any]:
    import open_clip

    config: Mapping[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models())
        hint = f"; near: {', '.join(near)}" if near else ""
        raise InputError(f"{name}: not a model of open_clip as installed{hint}")
    return config


def _model(name: str) -> nn.Module:
    import open_clip

    logging.disable(logging.WARNING)  # that the weights are random: they are loaded next
    try:
        model: nn.Module = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    finally:
        logging.disable(logging.NOTSET)
    return model.eval()


def _tokenizer(name: str) -> Any:  # noqa: ANN401
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except (ImportError, OSError, AssertionError) as error:
        raise InputError(
            f"{name}: its tokenizer cannot be made ({error}); it needs the package transformers, and the "
            "tokenizer's files in the model's folder"
        ) from error


def _torchscript_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of OpenAI's archives, float16 in the file, as float32; the program in it is not run."""
    try:
        state = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise InputError(f"{path}: a TorchScript archive that cannot be read; is it whole?") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _refuse_wrong_activation(name: str, path: Path, quick: bool, openai: bool) -> None:
    """Refuse GELU for weights that want QuickGELU and the reverse, as far as the file says."""
    wants_quick = openai or _WANTS_QUICK_GELU.search(path.name) is not None
    if wants_quick and not quick:
        raise InputError(f"{path}: weights of OpenAI, MetaCLIP and DFN want QuickGELU; take {name}-quickgelu")
    if quick and not wants_quick and _WANTS_GELU.search(path.name):
        plain = name.removesuffix("-quickgelu")
        raise InputError(f"{path}: weights of LAION and DataComp want GELU; take {plain}")


def _load(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Load every tensor of the model, shape for shape; returns a line that says so."""
    if any("vision_model.embeddings" in name for name in tensors):
        raise InputError(
            f"{path}: has transformers' names, which open_clip does not read; take the model's "
            "open_clip_model.safetensors"
        )
    prefix = next((name.partition("visual.")[0] for name in tensors if "visual." in name), "")
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if hasattr(model, "text") and not any(name.startswith("text.") for name in state):
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].numel() != value.numel()
    ]
    if missing or shapes:
        raise InputError(
            f"{path}: weights of another model: of {len(wanted)} tensors {len(missing)} are missing and "
            f"{len(shapes)} have another shape ({some(missing + shapes)})"
        )
    model.load_state_dict({name: state[name].reshape(value.shape) for name, value in wanted.items()})
    return f"{len(wanted)} tensors loaded from {path.name}"
