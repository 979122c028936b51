"""The folder of one run over images: it tells which run it holds, and takes no other's results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
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


def run_record(settings: Mapping[str, object], images: Mapping[str, Images]) -> dict[str, dict[str, object]]:
    """All that decides what a run writes: its settings, and the images by the split, say, they belong to."""
    of_images: dict[str, object] = {
        name: fingerprint(some.folder, some.names) for name, some in images.items()
    }
    return {"settings": dict(settings), "images": of_images}


@contextmanager
def opened(
    folder: Path,
    record_name: str,
    record: Mapping[str, Mapping[str, Any]],
    owned: Sequence[str],
    processes: Processes,
) -> Iterator[None]:
    """Hold an output folder against other runs; make it where it is not there.

    ``record`` has all that decides what the run writes, in two levels; it is kept in the folder's file
    ``record_name``. Entries may be added by a later run (a split, say), but not change. ``owned`` are the
    names in the folder that only a run of this method makes.

    Raises InputError when the folder holds another run, saying what differs, or what no run made, and when
    another process is at work in it.
    """
    with ExitStack() as held:

        def enter() -> None:
            if processes.first:
                held.enter_context(held_by_run(folder, record_name, record, owned))

        processes.together(enter)
        yield


@contextmanager
def held_by_run(
    folder: Path, record_name: str, record: Mapping[str, Mapping[str, Any]], owned: Sequence[str]
) -> Iterator[None]:
    """Do what ``opened`` does, in one process.

    Half-written files go: those of a killed run at the beginning, and this one's where it is stopped. So its
    own workers must have ended before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        keep_record(folder / record_name, record, owned)
        remove_leftovers(folder)
        try:
            yield
        except BaseException:
            remove_leftovers(folder)
            raise


def keep_record(path: Path, record: Mapping[str, Mapping[str, Any]], owned: Sequence[str]) -> None:
    """Write down which run the folder of ``path`` holds; InputError where it holds results of another."""
    folder = path.parent
    merged = {part: dict(values) for part, values in record.items()}
    if any((folder / name).exists() for name in owned):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [
                f"{key}: other images then"
                if part == "images"
                else f"{key}: {before[part][key]} then, {value} now"
                for part, values in record.items()
                for key, value in values.items()
                if before[part].get(key, value) != value
            ]
            merged = {part: before[part] | values for part, values in merged.items()}
        except FileNotFoundError:
            raise InputError(
                f"{folder}: holds what this script did not make; name another --output-dir"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: damaged; name another --output-dir") from error
        if changed:
            raise InputError(f"{folder}: holds another run ({'; '.join(changed)}); name another --output-dir")
    write_whole(path, json.dumps(merged, indent=2) + "\n")


_LIBRARIES = (
    "torch", "torchvision", "timm", "open_clip_torch", "numpy", "opencv-python", "opencv-python-headless",
    "pillow", "scipy", "scikit-learn",
)  # fmt: skip


def made_by(code: str) -> str:
    """Say what results are made by: the ``code`` of a step, a number raised by hand, and the libraries."""
    found = [code]
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)
