"""Score files, the JSON that ``evaluator.py`` writes: read again, and refused if they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenets.common.errors import InputError, quantity
from imagenets.scoring.metrics import SCORES
from imagenets.scoring.protocols import PROTOCOLS


@dataclass(frozen=True)
class ScoreFile:
    """Scores of one run: percentages by name, nan if one does not exist.

    The names are those of SCORES; of accuracies (``task`` classification), the file's own.
    ``images`` is the number of images, ``images_sha256`` identifies them, ``definition`` by which
    definition of the scores they were computed (see SCORE_DEFINITION); None in files that do not say.
    ``protocol`` is the run's, ``class_list`` the digest of your own class list, or None.
    """

    path: Path
    mode: str
    images: int
    images_sha256: str | None
    definition: int | None
    scores: dict[str, float]
    protocol: str | None = None
    class_list: str | None = None
    task: str = "segmentation"


def read_scores(path: Path) -> ScoreFile:
    """Read a score file; InputError if it is not one."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such score file; evaluator.py writes them") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); name a JSON file written by evaluator.py") from error
    if not isinstance(content, dict) or not _is_score_file(content):
        raise InputError(f"{path}: not a score file; name a JSON file written by evaluator.py")
    definition, images_sha256 = content.get("definition"), content.get("images_sha256")
    scores = {name: content["scores"][name] for name in _names(content)}
    return ScoreFile(
        path,
        content["mode"],
        content["images"],
        images_sha256 if isinstance(images_sha256, str) else None,
        definition if type(definition) is int else None,
        {name: math.nan if score is None else float(score) for name, score in scores.items()},
        protocol if (protocol := content.get("protocol")) in PROTOCOLS else None,
        content.get("class_list_sha256"),
        "classification" if content.get("task") == "classification" else "segmentation",
    )


def _names(content: dict[str, Any]) -> Sequence[str]:
    """The scores that a file has: those of SCORES, or classify.py's accuracies."""
    return tuple(content["scores"]) if content.get("task") == "classification" else SCORES


def _is_score_file(content: dict[str, Any]) -> bool:
    scores = content.get("scores")
    return (
        isinstance(content.get("mode"), str)
        and type(content.get("images")) is int
        and isinstance(scores, dict)
        and all(name in scores and _is_score(scores[name]) for name in _names(content))
    )


def _is_score(value: object) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 100)  # type: ignore[operator]


def refuse_unlike(files: Sequence[ScoreFile]) -> None:
    """Raise InputError, with all differences, if scores are of different modes, images or definitions."""
    differences: list[str] = []
    for what, values in (
        ("task", [file.task for file in files]),
        ("scores", [", ".join(file.scores) for file in files]),
        ("mode", [file.mode for file in files]),
        ("class list", [file.class_list for file in files]),
        ("number of images", [file.images for file in files]),
        ("definition of the scores", [file.definition for file in files]),
    ):
        differences += _difference(what, values, files)
    if not differences:
        differences = _difference("images", [file.images_sha256 for file in files], files)
    if differences:
        raise InputError(
            f"{quantity(len(files), 'score file')} do not fit into one table; score the same images in the "
            "same mode, with one version of the toolbox:\n" + "\n".join(differences)
        )


def _difference(what: str, values: Sequence[object], files: Sequence[ScoreFile]) -> list[str]:
    known = list(dict.fromkeys(value for value in values if value is not None))
    if len(known) < 2:
        return []
    lines = [f"  different {what}:"]
    for number, value in enumerate(known, start=1):
        paths = [str(file.path) for file, own in zip(files, values, strict=True) if own == value]
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        name = f"set {number}" if what == "images" else value
        lines.append(f"    {name}: {', '.join(paths[:3])}{more}")
    return lines


def silent_files(files: Sequence[ScoreFile]) -> list[Path]:
    """List older files, which do not record their images or the definition of their scores."""
    return [file.path for file in files if file.definition is None or file.images_sha256 is None]
