"""Mean and std that a Hugging Face folder states beside its weights, against those of the backbone's name."""

from __future__ import annotations

import json
import math
from pathlib import Path

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import Backbone

Values = tuple[float, ...]

_FILE = "preprocessor_config.json"
_TOLERANCE = 1e-3  # some files round


def remark(backbone: Backbone, weights: Path) -> str:
    """Say that the file beside ``weights`` has another mean or std than the backbone, and whose they are.

    Empty where both agree, or nothing is stated. Raises InputError, naming the file, when it is no JSON.
    Source: docs/checkpoints.md, Mean and standard deviation.
    """
    stated = _stated(weights.with_name(_FILE))
    if stated is None or _equal(stated, (backbone.mean, backbone.std)):
        return ""
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in stated)
    names = [name for name, values in _tagged(backbone.name) if _equal(stated, values)]
    cure = f"; the backbone {names[0]} has these" if names else ""
    return f"; but {_FILE} beside it has mean {mean}, std {std}{cure}"


def _stated(file: Path) -> tuple[Values, Values] | None:
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: no JSON ({error}); mend or remove it") from error
    found = [content.get(key) for key in ("image_mean", "image_std")] if isinstance(content, dict) else []
    values = [tuple(part) for part in found if isinstance(part, list) and len(part) == 3]
    return (values[0], values[1]) if len(values) == 2 else None


def _equal(stated: tuple[Values, Values], own: tuple[Values, Values]) -> bool:
    pairs = zip((*stated[0], *stated[1]), (*own[0], *own[1]), strict=True)
    return all(math.isclose(one, other, abs_tol=_TOLERANCE) for one, other in pairs)


def _tagged(name: str) -> list[tuple[str, tuple[Values, Values]]]:
    """timm's names of this architecture with a tag, and their mean and std; none without timm."""
    try:
        import timm
    except ImportError:
        return []
    bare = name.rpartition("/")[2].partition(".")[0]
    configs = {tagged: timm.get_pretrained_cfg(tagged) for tagged in timm.list_pretrained(f"{bare}.*")}
    return [(tagged, (config.mean, config.std)) for tagged, config in configs.items() if config is not None]
