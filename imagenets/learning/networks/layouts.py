"""Layouts of other people's files: the names of their tensors, and the way to timm's.

A layout is known by its anchor, a name that stands in no other, and what stands before it is the prefix.
docs/checkpoints.md has them as a table.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from imagenets.learning.networks.backbones import Backbone
from imagenets.learning.networks.transformers_names import (
    CONVNEXT_ANCHOR,
    VIT_ANCHORS,
    convnext_to_timm,
    like_the_worst,
    vit_to_timm,
)

Tensors = dict[str, torch.Tensor]
Convert = Callable[[Tensors, Any], Tensors]
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]  # patterns, replacements
POSITIONS, PATCHES = "pos_embed", "patch_embed.proj.weight"


class Candidate(NamedTuple):
    """Tensors of a file under the names that a network may have for them."""

    layout: str
    prefix: str  # what stood before the names, with its dot
    tensors: Tensors
    elsewhere: tuple[str, ...]  # names that have another prefix


def _from_transformers(tensors: Tensors, network: Any) -> Tensors:  # noqa: ANN401 - of timm
    named = vit_to_timm(tensors, network.state_dict().keys())
    return _by_timm(named, network) if hasattr(network, "embeds") else named


def _by_timm(
    tensors: Tensors, network: Any, prefix: str = "", kept: Mapping[str, str] | None = None  # noqa: ANN401
) -> Tensors:  # fmt: skip
    """Let timm rename the tensors of one network, by the filter of the network's own module.

    ``prefix`` is what the filter expects before the names. Tensors in ``kept`` (timm's name: the file's) are
    taken as they are in the file, for the filter resizes positions and patches without a word. Biases of
    queries, keys and values are left to ``settled_biases``, for it drops them.
    """
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return {}
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith("attn.qkv.bias")}
    given = {f"{prefix}{name}": tensor for name, tensor in tensors.items() if name not in biases}
    try:
        renamed: Tensors = rename(given, network)
    except (KeyError, ValueError, RuntimeError, AttributeError):  # the layout is not this network's
        return {}
    for name, theirs in (kept or {}).items():
        if theirs in tensors and name in renamed and tensors[theirs].shape != renamed[name].shape:
            whole = tensors[theirs]
            renamed[name] = whole[None] if name == POSITIONS and whole.ndim == 2 else whole
    return renamed | biases


_PLAIN = {POSITIONS: POSITIONS, PATCHES: PATCHES}
_CLIP = {POSITIONS: "positional_embedding", PATCHES: "conv1.weight"}
# The way to timm's names from those of each layout, by its name and anchor.
_LAYOUTS: Mapping[tuple[str, str], Convert] = {
    **dict.fromkeys(VIT_ANCHORS.items(), _from_transformers),
    ("DINOv3 ConvNeXt", CONVNEXT_ANCHOR): lambda tensors, _: convnext_to_timm(tensors),
    ("CLIP, PE", r"transformer\.resblocks\.0\.ln_1\.weight"): partial(_by_timm, prefix="visual.", kept=_CLIP),
    ("EVA02-CLIP", r"blocks\.0\.attn\.(q_proj\.weight|q_bias)"): partial(_by_timm, kept=_PLAIN),
    ("DINOv3", "storage_tokens"): partial(_by_timm, kept=_PLAIN),
    ("AIMv2", r"preprocessor\.patchifier\.proj\.weight"): partial(
        _by_timm, kept={POSITIONS: "preprocessor.pos_embed"}
    ),
    ("C-RADIO", r"patch_generator\.embedder\.weight"): partial(
        _by_timm, prefix="radio_model.model.", kept={POSITIONS: "patch_generator.pos_embed"}
    ),
}


def candidates(tensors: Tensors, backbone: Backbone, wanted: Collection[str]) -> Iterator[Candidate]:
    """Return the tensors of a file under each set of names that this network may have for them.

    First as they are, behind each prefix that most of the ``wanted`` names have.
    """
    network = backbone.network
    registers = getattr(network, "reg_token", None) is not None
    for layout, spelled in _spellings(tensors, backbone, registers):
        for prefix in _prefixes(spelled, wanted):
            yield Candidate(layout, prefix, *_behind(spelled, prefix))
    for (layout, anchor), convert in _LAYOUTS.items():
        for prefix in _anchored(tensors, anchor):
            there, elsewhere = _behind(tensors, prefix)
            yield Candidate(layout, prefix, _dinov2(convert(there, network), registers), elsewhere)


def _spellings(tensors: Tensors, backbone: Backbone, registers: bool) -> Iterator[tuple[str, Tensors]]:
    """Rename single tensors, whatever their prefix."""
    network = backbone.network
    norms = {"norm.weight", "norm.bias"} & network.state_dict().keys()
    yield "", tensors if not norms else _renamed(tensors, _NORM_OF_TOKENS)
    if backbone.is_resnet:
        yield "lightly", _renamed(tensors, _NUMBERED_RESNET)
    if hasattr(network, "stages") and hasattr(network, "stem"):
        yield "Facebook's ConvNeXt", _grn(_renamed(tensors, _CONVNEXT))
    if hasattr(network, "blocks"):
        yield "DINOv2, DeiT III", _dinov2(_renamed(tensors, _DINOV2), registers)
        yield "BEiT", _shared_bias(tensors)


def _prefixes(tensors: Tensors, wanted: Collection[str]) -> list[str]:
    """Prefixes behind which most of the wanted names are."""
    counts = Counter(prefix for name in tensors for prefix, rest in _splits(name) if rest in wanted)
    most = max(counts.values(), default=0)
    return [prefix for prefix, number in counts.items() if number == most] or [""]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """All ways to split a name into a prefix, with its dot, and the rest."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _anchored(tensors: Tensors, anchor: str) -> list[str]:
    """Prefixes behind which the anchor of a layout is."""
    pattern = re.compile(rf"(?P<prefix>(?:.*?\.)??)(?:{anchor})")
    found = (pattern.fullmatch(name) for name in tensors)
    return list(dict.fromkeys(match["prefix"] for match in found if match))


def _behind(tensors: Tensors, prefix: str) -> tuple[Tensors, tuple[str, ...]]:
    """Tensors behind a prefix, without it, and the names of the others."""
    there = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return there, tuple(name for name in tensors if not name.startswith(prefix))


def settled_biases(tensors: Tensors, wanted: Tensors) -> Tensors:
    """Bring biases of queries, keys and values (DINOv3) to the form that a network has, or drop zeros.

    timm's ``_qkvb`` models have one of q and one of v; that of k stands behind a mask of zeros. Its others
    have none: biases that are all zero are dropped, others stay, and are then reported.
    """
    settled = dict(tensors)
    for name in tensors:
        found = re.match(r"(blocks\.\d+\.attn\.)qkv\.bias$", name)
        if found is None or name in wanted or tensors[name].is_meta:
            continue
        q, _, v = tensors[name].chunk(3)
        if f"{found[1]}q_bias" in wanted:
            settled[f"{found[1]}q_bias"], settled[f"{found[1]}v_bias"] = q, v
            del settled[name]
        elif not q.any() and not v.any():
            del settled[name]
    return settled


def _renamed(tensors: Tensors, rules: Rules) -> Tensors:
    """Rename tensors by all rules in turn, but never onto a name that is there."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        new = name
        for old, by in rules:
            new = re.sub(old, by, new)
        renamed[name if new in tensors else new] = tensor
    return renamed


_CONVNEXT = (
    (r"(^|\.)downsample_layers\.0\.", r"\1stem."),
    (r"(^|\.)downsample_layers\.(\d+)\.", r"\1stages.\2.downsample."),
    (r"(^|\.)stages\.(\d+)\.(\d+)\.", r"\1stages.\2.blocks.\3."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"(^|\.)head\.norm\.", r"\1norm."),  # the last norm is that of the map
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv", ".mlp.fc"),
)
# In a block: DINOv2's training holds the blocks in chunks (blocks.CHUNK.BLOCK.), its giant and Franca have
# SwiGLU, DeiT III names the layer scale otherwise.
_DINOV2 = (
    (r"(^|\.)blocks\.\d+\.(\d+)\.", r"\1blocks.\2."),
    (r"(^|\.)mlp\.w12\.", r"\1mlp.fc1."),
    (r"(^|\.)(blocks\.\d+)\.gamma_([12])$", r"\1\2.ls\3.gamma"),
    (r"(^|\.)mlp\.w3\.", r"\1mlp.fc2."),
)
# A norm behind the average of the tokens, which MAE's fine-tuning and ImageNet-S models have.
_NORM_OF_TOKENS = ((r"(^|\.)fc_norm\.(weight|bias)$", r"\1norm.\2"),)
# nn.Sequential(*resnet.children()), as lightly's models hold it.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_IN_RESNET = r"(?:\d+\.\w+\.(?:\d+\.)?)?(?:weight|bias|running_mean|running_var|num_batches_tracked)$"
_NUMBERED_RESNET: Rules = (
    (rf"(^|\.)([014567])\.({_IN_RESNET})", lambda found: f"{found[1]}{_CHILDREN[found[2]]}.{found[3]}"),
)


def _grn(tensors: Tensors) -> Tensors:
    """ConvNeXt V2: (1, 1, 1, C) or (1, C) in the files, (C) in timm."""
    return {name: tensor.flatten() if ".mlp.grn." in name else tensor for name, tensor in tensors.items()}


def _shared_bias(tensors: Tensors) -> Tensors:
    """BEiT's pre-training: one table of relative positions for all blocks; timm has it in each block."""
    copied = dict(tensors)
    for name in tensors:
        found = re.match(r"(.*?)(blocks\.\d+\.attn\.)qkv\.weight$", name)
        shared = tensors.get(f"{found[1]}rel_pos_bias.relative_position_bias_table") if found else None
        if found and shared is not None:
            copied[f"{found[1]}{found[2]}relative_position_bias_table"] = shared
    return copied


def _dinov2(tensors: Tensors, registers: bool) -> Tensors:
    """DINOv2 with registers: timm adds the class token's position embedding to the class token itself."""
    changed = dict(tensors)
    for name in tensors if registers else ():
        prefix = re.sub(r"(register_tokens|reg_token)$", "", name)
        token, positions = f"{prefix}cls_token", f"{prefix}pos_embed"
        if prefix == name or token not in tensors or positions not in tensors:
            continue
        theirs = tensors[positions]
        if int((theirs.shape[1] - 1) ** 0.5) ** 2 != theirs.shape[1] - 1:  # it has no row for the class token
            continue
        changed[f"{prefix}reg_token"] = changed.pop(name)
        first = like_the_worst([tensors[token], theirs[:, :1]])
        changed[token] = first[0] + first[1]
        changed[positions] = theirs[:, 1:]
    return changed
