"""Weights of other people's files, fitted to a network so that every tensor of it comes from the file.

A file is one tree of named tensors. Wrappers are taken off the names; where the network's own lie (``model``,
``state_dict``, ``teacher.backbone``, ``module.encoder_q`` …) is found by what fits; names of other libraries
are changed to timm's (``layouts``). docs/checkpoints.md has the forms that are known to load.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.checkpoint_files import RANDOM, Checkpoint, Tensors, read_checkpoint, some
from imagenets.learning.networks.families import PLAIN
from imagenets.learning.networks.layouts import Candidate, candidates, settled_biases
from imagenets.learning.networks.position_embeddings import BICUBIC, RULES, on_a_square, resized
from imagenets.learning.networks.transformers_names import FLOATS

_POSITIONS = ("pos_embed", "encoder.pos_embedding")
# Made from a network's settings, and stored by some versions of a library only.
_DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
# A network that loses such tokens returns other features.
_TOKENS = ("register_tokens", "storage_tokens", "reg_token", "dist_token")
# The moving average of the weights, by which timm, DeiT and ConvNeXt report their numbers.
_EMA = re.compile(r"(^|[._])ema(?![a-z])")
# Of two copies that fit equally well, the one without such a word: the teacher, not the student; the query's
# encoder, not the key's; the online network, not its target.
_SECOND_CHOICE = re.compile(r"student|momentum|encoder_k|target|_k\.")
_PREPROCESSOR = "preprocessor_config.json"  # of Hugging Face's folders
# Whose files have tensors of such names, and which backbones take them.
_SIGNS = (
    (r"\bmlp\.w12\.", "Franca or DINOv2's giant: vit_base_patch14_franca …, vit_giant_patch14_dinov2"),
    (r"\bstorage_tokens$", "DINOv3: vit_small_patch16_dinov3 …"),
    (r"\bnorms\.3\.|\bdownsample_layers\.0\.", "a ConvNeXt: convnext_tiny …, convnextv2_tiny …"),
    (r"\bregister_tokens$", "DINOv2 or DINOv3 with registers: vit_small_patch14_reg4_dinov2 …"),
    (r"\bpatch_generator\.", "C-RADIO: vit_base_patch16_radio_v3 …"),
    (r"\bpatchifier\.", "AIMv2: aimv2_large_patch14_224 …"),
    (r"\binner_attn_ln\.|\bffn_ln\.", "EVA02-CLIP: eva02_base_patch16_clip_224 …"),
    (r"\battn_pool\.(probe|attn)\b", "PE: vit_pe_core_base_patch16_224 …"),
    (r"\btransformer\.resblocks\.", "CLIP or PE: vit_base_patch16_clip_224, vit_pe_core_base_patch16_224 …"),
    (r"\bvision_model\.", "CLIP or SigLIP: vit_base_patch16_clip_224 …, vit_base_patch16_siglip_224 …"),
    (r"\brelative_position_bias", "BEiT or data2vec: beit_base_patch16_224, beitv2_base_patch16_224 …"),
    (r"\blora_[AB]\b", "a LoRA adapter, no network: merge both first (merge_and_unload of peft)"),
    (r"\.kernel$", "the sparse training of ConvNeXt V2 (FCMAE), which is not read: take a dense file"),
)  # fmt: skip


def load_backbone(backbone: Backbone, path: Path | str, branch: str | None = None) -> str:
    """Load a checkpoint into a backbone; returns one line to print: what was loaded, and what was left over.

    All tensors of the backbone must be there, in their shapes; position embeddings keep the resolution of
    the file, and are interpolated for each picture (their rule may become that of the file's family). Where
    the last norm is missing, that of the averaged tokens (``fc_norm``) takes its place. ``branch`` chooses
    among several copies (``student``, ``model``); without it ``first_choice`` does.

    Raises InputError, naming the file, when anything is missing, the file is another network's, or its
    numbers are none of a network (not finite, all zero, integers), OSError when it cannot be read. RANDOM in
    place of a file leaves the weights random.
    """
    if Path(path) == RANDOM:
        return _randomize(backbone)
    return load_checkpoint(backbone, read_checkpoint(path, branch))


def _randomize(backbone: Backbone) -> str:
    """Initialise a backbone at random, the same in every run and every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone.network.load_state_dict(make_backbone(backbone.name).network.state_dict())
    return f"{backbone.name}: random weights (seed 0); {backbone.about}"


def load_checkpoint(backbone: Backbone, checkpoint: Checkpoint, *, own_grid: bool = False) -> str:
    """Do what ``load_backbone`` does, with a file that was read.

    With ``own_grid`` position embeddings of another resolution are brought to the network's (bicubic), as
    fine-tuning does it.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    _prepare(backbone, tensors)
    network = backbone.network
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(_DERIVED)}
    best = _best_fit(
        [_fit(backbone, wanted, candidate) for candidate in candidates(tensors, backbone, wanted)], wanted
    )
    _refuse_lookalikes(backbone, best, path)
    problem = best.problem(wanted)
    if problem:
        raise InputError(
            f"{path}: not the weights of a {backbone.name}: {problem}; {_hint(tensors)}"
            f"{checkpoint.left_out_line}"
        )
    _refuse_unusable(path, best.found, wanted)
    derived = {
        name: best.beside.pop(name)
        for name, like in network.state_dict().items()
        if name not in wanted and name in best.beside and best.beside[name].shape == like.shape
    }
    _set_positions(backbone, best.found, own_grid)
    network.load_state_dict(best.found | derived, strict=False)
    backbone.positions = _position_rule(backbone, best, checkpoint, tensors)
    line = f"{backbone.name}: {best.line(path.name)}; {backbone.about}{checkpoint.left_out_line}"
    return line + _remark(backbone, path)


@dataclass(frozen=True)
class _Fit:
    """What a network finds in a file: tensors ``found`` behind ``prefix``, others ``beside`` them there."""

    layout: str
    prefix: str
    found: Tensors
    beside: Tensors
    elsewhere: tuple[str, ...]  # names
    rivals: tuple[str, ...] = ()  # other prefixes, behind which as much was found

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
            if (name.partition(".")[0] in parts or name in _TOKENS)
            and name not in wanted
            and not name.endswith(_DERIVED)
        ]
        if not (missing or surplus):
            return None
        said = []
        if absent:
            near = difflib.get_close_matches(absent[0], [*self.beside, *self.elsewhere], 3, cutoff=0.4)
            said.append(f"{len(absent)} of {len(wanted)} tensors are missing ({some(absent)})")
            said.append(f"nearest names in it: {', '.join(near)}" if near else "no name in it is near")
        if shapes:
            said.append(f"{len(shapes)} of another shape ({some(shapes)})")
        if surplus:
            said.append(f"{len(surplus)} too many ({some(surplus)})")
        return "; ".join(said)

    def line(self, file: str) -> str:
        """Say what was loaded and what was not."""
        place = f" under {self.prefix.removesuffix('.')}" if self.prefix else ""
        if is_ema(self.prefix):
            plain = [rival.removesuffix(".") for rival in self.rivals if not is_ema(rival)]
            place += f" (EMA, not {plain[0]})" if plain else " (EMA)"
        left = f"{len(self.beside)} there ({some(list(self.beside))})" if self.beside else "none there"
        more = f", {len(self.elsewhere)} elsewhere in the file" if self.elsewhere else ""
        return f"{len(self.found)} tensors loaded from {file}{place}; left over: {left}{more}"


def _fit(backbone: Backbone, wanted: Tensors, candidate: Candidate) -> _Fit:
    """Take the tensors that fit."""
    there = settled_biases(candidate.tensors, wanted)
    found = {
        name: value
        for name, like in wanted.items()
        if (value := _in_shape(backbone, name, there.get(name), like)) is not None
    }
    beside = {name: value for name, value in there.items() if name not in found}
    return _Fit(candidate.layout, candidate.prefix, found, beside, candidate.elsewhere)


def _best_fit(fits: list[_Fit], wanted: Tensors) -> _Fit:
    """The fit that finds most tensors; of equals, the one with most of the network's names.

    Of several prefixes the first choice, of several layouts the first.
    """
    scores = [(len(fit.found), len(fit.beside.keys() & wanted.keys())) for fit in fits]
    equals = [fit for fit, score in zip(fits, scores, strict=True) if score == max(scores)]
    prefixes = list(dict.fromkeys(fit.prefix for fit in equals))
    chosen = first_choice(prefixes)
    best = next(fit for fit in equals if fit.prefix == chosen)
    return replace(best, rivals=tuple(prefix for prefix in prefixes if prefix != chosen))


def _in_shape(
    backbone: Backbone, name: str, value: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Return ``value`` if it has the shape of ``like`` or, for position embeddings, that of another grid."""
    if value is None or value.shape == like.shape:
        return value
    if name not in _POSITIONS or value.ndim != 3 or value.shape[2] != like.shape[2]:
        return None
    covered = backbone.covered_tokens
    if covered is not None:
        return value if on_a_square(value, covered) else None
    for prefix in range(8):  # class and register tokens: the number with which both are squares
        try:
            moved = resized(value, prefix, like.shape[1] - prefix)
        except ValueError:
            continue
        if moved.shape == like.shape:
            return moved
    return None


def _prepare(backbone: Backbone, tensors: Tensors) -> None:
    """Add to a ConvNeXt the norm at every place that DINOv3's has."""
    theirs = any(re.search(r"\bnorms\.3\.|\bstages\.0\.downsample_layers\.", name) for name in tensors)
    if theirs and type(backbone.network).__name__ == "ConvNeXt":
        import timm.layers

        norm: Any = timm.layers.LayerNorm2d  # type: ignore[attr-defined]
        backbone.network.norm = norm(backbone.channels, eps=1e-6)


def _set_positions(backbone: Backbone, found: Tensors, own_grid: bool) -> None:
    """Resize the network's position embeddings to the file's resolution, or the file's to the network's."""
    covered, network = backbone.covered_tokens, backbone.network
    name = next((name for name in _POSITIONS if name in found), None)
    if covered is None or name is None:
        return
    own = network.get_parameter(name)
    if own.shape == found[name].shape:
        return
    if own_grid:
        found[name] = resized(found[name].float(), covered, own.shape[1] - covered)
    else:
        module, _, last = name.rpartition(".")
        setattr(network.get_submodule(module), last, nn.Parameter(found[name].to(own.dtype)))


def _position_rule(backbone: Backbone, best: _Fit, checkpoint: Checkpoint, tensors: Tensors) -> str:
    """Rule for position embeddings: of the file's family where the backbone's name does not say it."""
    recorded = checkpoint.content.get("positions")  # in what finetune.py wrote
    if recorded in RULES:
        return str(recorded)
    if backbone.family is not PLAIN:
        return backbone.positions
    positions = best.found.get("pos_embed")
    is_bicubic = (
        best.layout == "transformers"
        or re.search(r"target_encoder|base_encoder|momentum_encoder", best.prefix)  # MSN, I-JEPA; MoCo v3
        or any(re.search(r"(^|\.)decoder_embed\.", name) for name in tensors)  # MAE
        or (best.prefix == "model." and any(re.search(r"\bfc_norm\.", name) for name in tensors))
        # MAE's are fixed, of sine and cosine
        or (positions is not None and "cls_token" in best.found and not positions[:, 0].any())
    )
    return BICUBIC if is_bicubic else backbone.positions


def _refuse_lookalikes(backbone: Backbone, best: _Fit, path: Path) -> None:
    """Refuse files that fit by names and shapes, but belong to another network."""
    name, bare = backbone.name, backbone.name.partition(".")[0]
    biases = [each for each in best.beside if re.search(r"^blocks\.\d+\.attn\.(qkv|q|v)\.bias$", each)]
    if "vit_small" in name and "moco" not in name and re.search("base_encoder|momentum_encoder", best.prefix):
        what = f"MoCo v3's ViT-S has 12 heads, those of {name} are fewer"
        fits = "vit_small_patch16_mocov3"
    elif "dinov3" in name and "sat493m" not in name and any("sat493m" in part for part in path.parts[-2:]):
        what = "DINOv3 of satellite images, which has a mean and std of its own"
        fits = f"{name}.sat493m"
    elif (
        backbone.family.name == "CLIP"
        and "quickgelu" not in name
        and any(re.search(r"\b(input_resolution|context_length)$", each) for each in best.elsewhere)
    ):
        what, fits = "OpenAI's CLIP, which has QuickGELU", name.replace("_clip_", "_clip_quickgelu_")
    elif biases and bare.endswith("dinov3"):
        what = f"has biases of queries and values that are not zero ({some(biases)}), and {name} has none"
        fits = f"{bare}_qkvb"
    else:
        return
    raise InputError(f"{path}: {what}; the backbone that fits is {fits}")


def _refuse_unusable(path: Path, found: Tensors, wanted: Tensors) -> None:
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
    if value.dtype not in FLOATS:
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


def _hint(tensors: Tensors) -> str:
    """Say whose weights these look like."""
    for pattern, whose in _SIGNS:
        if any(re.search(pattern, name) for name in tensors):
            return f"it looks like {whose}"
    return "name the backbone that it was trained as"


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
        beside = re.sub(r"(^|\.)target_encoder\.", r"\1encoder.", prefix)
        if is_ema(prefix) or (beside != prefix and beside in prefixes):
            return 0
        return 2 if _SECOND_CHOICE.search(prefix) else 1

    return min(prefixes, key=rank)


def _remark(backbone: Backbone, weights: Path) -> str:
    """Say that a Hugging Face folder has another mean or std than the backbone, and whose they are.

    Empty where both agree, or nothing is stated. Raises InputError, naming the file, when it is no JSON.
    Source: docs/checkpoints.md, Mean and standard deviation.
    """
    file = weights.with_name(_PREPROCESSOR)
    if not file.exists():
        return ""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: no JSON ({error}); mend or remove it") from error
    keys = ("image_mean", "image_std") if isinstance(content, dict) else ()
    stated: list[Any] = [content.get(key) for key in keys]
    if not stated or not all(isinstance(values, list) and len(values) == 3 for values in stated):
        return ""
    if _equal(stated, (backbone.mean, backbone.std)):
        return ""
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in stated)
    tagged = next((name for name, values in _tagged(backbone.name) if _equal(stated, values)), None)
    cure = f"; the backbone {tagged} has these" if tagged else ""
    return f"; but {_PREPROCESSOR} beside it has mean {mean}, std {std}{cure}"


def _equal(stated: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> bool:
    pairs = zip((*stated[0], *stated[1]), (*own[0], *own[1]), strict=True)
    return all(math.isclose(one, other, abs_tol=1e-3) for one, other in pairs)  # some files round


def _tagged(name: str) -> Iterator[tuple[str, tuple[Sequence[float], Sequence[float]]]]:
    """timm's names of this architecture with a tag, and their mean and std; none without timm."""
    try:
        import timm
    except ImportError:
        return
    bare = name.rpartition("/")[2].partition(".")[0]
    for tagged in timm.list_pretrained(f"{bare}.*"):
        config = timm.get_pretrained_cfg(tagged)
        if config is not None:
            yield tagged, (config.mean, config.std)
