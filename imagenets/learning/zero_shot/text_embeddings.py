"""Class names as text embeddings: names, prompt templates, one unit vector a class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch.nn.functional import normalize

from imagenets.classes import ClassInfo, label_name
from imagenets.common.errors import InputError
from imagenets.common.progress import Show, no_bar
from imagenets.common.whole_files import whole_file
from imagenets.learning.images import digest

NAME_SOURCES = ("openai", "toolbox")
TEMPLATE_COUNTS = (1, 80, 85)
_ONE_TEMPLATE = "a photo of a {}."
# What MaskCLIP, NamedMask and ZUTIS add to OpenAI's 80.
_IN_THE_SCENE = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
_TEXTS_AT_ONCE = 256


def class_names(source: str | Path, table: Sequence[ClassInfo]) -> list[str]:
    """Names of the classes 1..N, in the order of their ids.

    ``source``: ``openai`` has the names that CLIP's authors evaluate ImageNet with, ``toolbox`` those of the
    class table, a path a text file of N lines. A merged class has its target's name. Raises InputError when
    the file has not N names, or a class is not one of ImageNet-1k's (``openai``).
    """
    if source == "toolbox":
        return [label_name(label) for label in table[1:]]
    if source == "openai":
        return _openai_names(table)
    path = Path(source)
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != len(table) - 1:
        raise InputError(
            f"{path}: {len(names)} names for {len(table) - 1} classes; one a line, in the order of ids"
        )
    return names


def _openai_names(table: Sequence[ClassInfo]) -> list[str]:
    from open_clip import IMAGENET_CLASSNAMES

    foreign = [label_name(label) for label in table[1:] if label.imagenet_index is None]
    if foreign:
        raise InputError(
            f"{foreign[0]}: not a class of ImageNet-1k, whose names OpenAI's list has; take the toolbox's "
            "names, or a file of names"
        )
    return [IMAGENET_CLASSNAMES[label.imagenet_index] for label in table[1:]]


def prompts(name: str, templates: int) -> list[str]:
    """Put a name into 1, 80 (OpenAI's) or 85 (MaskCLIP's, NamedMask's) sentences."""
    if templates == 1:
        return [_ONE_TEMPLATE.format(name)]
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    sentences = [template(name) for template in OPENAI_IMAGENET_TEMPLATES]
    return sentences if templates == 80 else sentences + [text.format(name) for text in _IN_THE_SCENE]


def tied_names(names: Sequence[str], tokenizer: Any) -> list[list[str]]:  # noqa: ANN401
    """Group names that are one text to the tokenizer, which lower-cases: their scores are always equal."""
    groups = defaultdict(list)
    for name, tokens in zip(names, tokenizer(list(names)).tolist(), strict=True):
        groups[tuple(tokens)].append(name)
    return [group for group in groups.values() if len(group) > 1]


@torch.inference_mode()
def embed_names(
    model: Any,  # noqa: ANN401 - open_clip's
    tokenizer: Any,  # noqa: ANN401
    names: Sequence[str],
    templates: int,
    device: torch.device,
    show: Show = no_bar,
) -> torch.Tensor:
    """Embed names (N) as unit vectors (N, E) float32, on the CPU.

    Each sentence becomes a unit vector; their mean, brought to length 1, is the name's. Source: Radford et
    al., CLIP, ICML 2021.
    """
    sentences = [sentence for name in names for sentence in prompts(name, templates)]
    parts = []
    with show("text", len(sentences), unit="prompts") as advance:
        for start in range(0, len(sentences), _TEXTS_AT_ONCE):
            tokens = tokenizer(sentences[start : start + _TEXTS_AT_ONCE]).to(device)
            parts.append(model.encode_text(tokens, normalize=True).float().cpu())
            advance(len(tokens))
    vectors = torch.cat(parts).view(len(names), -1, parts[0].shape[1])
    return normalize(vectors.mean(dim=1), dim=-1)


def embeddings_file(folder: Path, names: Sequence[str], templates: int, weights: str) -> Path:
    """Path in ``folder`` of the embeddings of these names and templates by weights of this digest."""
    return folder / f"text-{digest([weights, str(templates), *names])}.npz"


def save_embeddings(path: Path, embeddings: torch.Tensor) -> None:
    """Save embeddings (N, E)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, embeddings=embeddings.numpy())


def load_embeddings(path: Path) -> torch.Tensor:
    """Read what ``save_embeddings`` wrote. Raises InputError when the file is damaged."""
    try:
        with np.load(path) as arrays:
            return torch.from_numpy(arrays["embeddings"])
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: damaged; remove it, and run this again") from error
