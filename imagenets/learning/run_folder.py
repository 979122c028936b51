"""The folder of one run, training or inference: it records which run it holds, and takes no other's files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenets.common.errors import InputError
from imagenets.common.locks import locked
from imagenets.common.whole_files import remove_leftovers, write_whole
from imagenets.learning.images import fingerprint

if TYPE_CHECKING:
    from imagenets.learning.images import Images
    from imagenets.learning.processes import Processes

_LIBRARIES = (
    "torch", "torchvision", "timm", "open_clip_torch", "numpy", "opencv-python", "opencv-python-headless",
    "pillow", "scipy", "scikit-learn",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """All that decides what a run writes; kept as JSON in the file ``file`` of its folder.

    ``settings`` by name, values as JSON has them. ``images`` are digests of the pictures that label maps are
    written for, by split; None for a training, whose settings say which pictures it learns from.
    ``owned`` are the names in the folder that only runs of this script make.
    """

    file: str
    settings: Mapping[str, Any]
    owned: Sequence[str]
    images: Mapping[str, str] | None = None

    def identity(self, *names: str) -> str:
        """Write these settings in a line (all of them by default), to name what is stored on the way."""
        return " ".join(str(self.settings[name]) for name in names or self.settings)


def digests_of(images: Mapping[str, Images]) -> dict[str, str]:
    """Digests of the images of each split, for a ``Record``."""
    return {name: fingerprint(of_split.folder, of_split.names) for name, of_split in images.items()}


@contextmanager
def held_folder(folder: Path, record: Record, processes: Processes) -> Iterator[bool]:
    """Make a run's folder where it is not there, and hold it against other runs; called on all processes.

    Yields whether the run is new. A later run may add splits, but change neither its settings nor its
    images.
    Half-written files go: those of a killed run at the beginning, and this one's where it is stopped, so its
    own workers must have ended by then.

    Raises InputError when the folder holds a run that differs, naming what does; when it holds what no run
    made; and when another process is at work in it.
    """
    with ExitStack() as held:

        def enter() -> bool:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock"))
            is_new = not (folder / record.file).exists()
            _keep(record, folder)
            remove_leftovers(folder)
            held.push(lambda kind, *_: remove_leftovers(folder) if kind else None)
            return is_new

        yield processes.from_first(enter)


def _keep(record: Record, folder: Path) -> None:
    """Write down which run the folder holds; InputError where it holds results of another."""
    path = folder / record.file
    images = record.images
    there = [name for name in record.owned if (folder / name).exists()]
    if there:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            settings_before = before if images is None else before["settings"]
            images_before = {} if images is None else before["images"]
            changed = _differences(settings_before, record.settings)
            changed += [
                f"{split}: other images then"
                for split, digest in (images or {}).items()
                if images_before.get(split, digest) != digest
            ]
        except FileNotFoundError:
            raise InputError(
                f"{folder / there[0]}: not made by this script; name another output folder"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: damaged; name another output folder") from error
        if changed:
            raise InputError(
                f"{folder}: holds a run with other settings ({'; '.join(changed)}); "
                "name another output folder"
            )
        images = images and {**images_before, **images}
    settings = dict(record.settings)
    content = settings if images is None else {"settings": settings, "images": images}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ; one that is not in the record is one that is not set."""
    names = dict.fromkeys([*before, *now])
    pairs = {name: (_shown(before.get(name)), _shown(now.get(name))) for name in names}
    return [f"{name}: {old} then, {new} now" for name, (old, new) in pairs.items() if old != new]


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value)


def made_by(code: str) -> str:
    """Say what results are made by: the ``code`` of a step, a number raised by hand, and the libraries."""
    found = [code]
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)
