"""Batched inference shared by all methods.

Workers decode and resize, the network runs on batches of one size, and workers write label maps, or arrays
are stored.

A method has a ``step``: a function of a ``Batch`` that runs its network and returns, for each picture of
the batch, what it found. ``write_label_maps`` takes label maps, ``store_arrays`` takes arrays.

- Which pictures stand in one batch depends on the list of images and on the batch size only: not on the
  number of processes, and not on what an earlier run has left. So the same files come out of any of them,
  byte for byte, on one machine with one number of threads. Other batches, threads or builds of PyTorch round
  sums differently, by 1e-6 or so: labels then differ where two are equal except for that.
- The list is cut into chunks. Under torchrun each process takes every n-th chunk; only the disk is shared.
- What is there is not made again. Files are whole or absent. All images are tried, and the bad ones
  reported together.

Under torchrun call both functions on all processes, in ``processes.together``, which raises their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from imagenets.common.errors import InputError, listed, problem_of
from imagenets.common.progress import Advance, Show, no_bar
from imagenets.common.whole_files import whole_file
from imagenets.common.workers import load_tensors
from imagenets.learning.engine.label_files import LabelFile, writing
from imagenets.learning.images import Images, Picture, Reading, fingerprint, read_picture
from imagenets.learning.networks.precision import Normalisation, cuda_switches, memory_named, run_network
from imagenets.learning.processes import Processes

# Part of what stored results are known by; raised by hand whenever pictures, networks' maps or files change.
ENGINE = "engine 2"
_LARGEST_CHUNK = 1024  # images; their pictures may all wait for others of their size: 300 MB
_CHUNKS = 16  # at least, so that several processes have a share each, except of tiny sets
_BLOCK = 8  # images that a worker decodes at a time
_HIGHEST_LABEL = 65_535  # of a file
_FILES_AHEAD = 64  # batches whose files are not written yet


@dataclass(frozen=True)
class Running:
    """How a run uses the machine.

    ``workers`` processes decode, and as many encode (0: this one does both); ``batch_size`` pictures are in
    a batch at most; ``precision`` is the network's: float32 (exact on GPUs too, no TF32), bfloat16 or
    float16. ``show`` opens a progress bar.
    """

    processes: Processes
    workers: int = 0
    batch_size: int = 16
    precision: str = "float32"
    show: Show = no_bar


@dataclass(frozen=True)
class Batch:
    """Pictures of one size: ``pictures`` (B, 3, H, W) float32, normalised, on the device.

    ``indices`` are their places in the list of images, ``sizes`` their images' full sizes (height, width),
    ``shown`` how much of each, from the upper left, the picture shows (all of it, unless ``Reading.cut`` has
    cut something off), ``beside`` their masks (height, width) uint16 or what ``Reading.beside`` found, where
    a method asks for either.
    """

    indices: list[int]
    pictures: torch.Tensor
    sizes: list[tuple[int, int]]
    shown: list[tuple[int, int]]
    beside: list[Any]
    precision: str = "float32"

    def through(self, network: nn.Module) -> torch.Tensor:
        """Run the network on the pictures, in the run's precision; returns float32."""
        found: torch.Tensor = run_network(network, self.pictures, precision=self.precision)
        return found

    @property
    def masks(self) -> list[np.ndarray]:
        """What was asked for ``with_masks``."""
        return self.beside

    @property
    def shown_masks(self) -> list[np.ndarray]:
        """The part of each mask that its picture shows, at the image's size."""
        return [mask[:rows, :columns] for mask, (rows, columns) in zip(self.masks, self.shown, strict=True)]


# What a step returns for each picture: a label map (h, w) of any size; or arrays by name, rows first.
LabelStep = Callable[[Batch], Sequence[torch.Tensor] | torch.Tensor]
ArrayStep = Callable[[Batch], Sequence[Mapping[str, torch.Tensor]]]


def write_label_maps(
    images: Images, targets: Sequence[Path], step: LabelStep, reading: Reading, running: Running
) -> int:
    """Write the label map of each image to its path in ``targets``, if it is not there; returns how many.

    ``step`` returns labels 0..65535, (h, w), for each picture of a batch; they are laid on the part of the
    image that the picture shows by ``laid``, and pixels beyond take the nearest label. Under torchrun these
    are this process's share, and their number.

    Raises InputError for images that cannot be read, after all have been tried, for label maps that are not
    such integers, and where the device's memory does not suffice.
    """

    def absent(index: int) -> bool:
        return not targets[index].exists()

    chunks = _share(chunks_of(len(images.names), running.batch_size), running)
    todo = [chunk for chunk in chunks if any(map(absent, chunk))]
    made = 0
    with writing(running.workers, _FILES_AHEAD, _begin_worker, running.processes.start) as write:
        work = _Work(images, todo, reading, running, absent)
        for batch, labels in _results(work, step):
            _check_labels(batch, labels)
            rows = zip(batch.indices, labels, batch.sizes, batch.shown, strict=True)
            files = [
                LabelFile(targets[index], of_one.numpy(), size, shown)
                for index, of_one, size, shown in rows
                if absent(index)
            ]
            write(files)
            made += len(files)
    work.refuse_bad()
    return made


def _check_labels(batch: Batch, labels: Sequence[torch.Tensor]) -> None:
    """Raise InputError unless there is one map of labels 0..65535 for each picture."""
    if len(labels) != len(batch.indices):
        raise InputError(f"{len(labels)} label maps for the {len(batch.indices)} pictures of a batch")
    for of_one in labels:
        kind = f"{str(of_one.dtype).removeprefix('torch.')} of shape {tuple(of_one.shape)}"
        if of_one.ndim != 2 or of_one.is_floating_point() or of_one.is_complex():
            raise InputError(f"label maps must be integers (h, w), one for each picture, not {kind}")
        lowest, highest = map(int, of_one.aminmax())
        if lowest < 0 or highest > _HIGHEST_LABEL:
            raise InputError(
                f"label maps must hold labels 0..{_HIGHEST_LABEL}, not {lowest if lowest < 0 else highest}"
            )


def visit(
    images: Images, step: Callable[[Batch], Any], reading: Reading, running: Running, with_masks: bool = False
) -> Iterator[tuple[Batch, list[Any]]]:
    """Run ``step`` on all images; yield each batch with its results, on the CPU, and keep nothing.

    Under torchrun each process gets its share, no image twice. Raises as ``write_label_maps`` does, at the
    end.
    """
    chunks = _share(chunks_of(len(images.names), running.batch_size), running)
    work = _Work(images, chunks, reading, running, with_masks=with_masks)
    yield from _results(work, step)
    work.refuse_bad()


def store_arrays(
    images: Images,
    store: Path,
    identity: str,
    step: ArrayStep,
    reading: Reading,
    running: Running,
    with_masks: bool = False,
) -> list[Path]:
    """Store what ``step`` finds in files in ``store``, if they are not there; returns all paths, in order.

    ``step`` returns a dictionary of arrays, rows first, for each picture of a batch. A file (.npz, for
    ``load_arrays``) holds the rows of one chunk's images, in the order of the list. Its name is a digest of
    the images, their sizes and times, and ``identity``, which must name the network and all settings of
    the step: files of other runs are used where they fit, and are no obstacle where they do not. Under
    torchrun a process makes its share; all files are there when all processes have returned.

    Raises as ``write_label_maps`` does.
    """
    store.mkdir(parents=True, exist_ok=True)
    chunks = chunks_of(len(images.names), running.batch_size)
    paths = [
        store / f"{fingerprint(images.folder, [images.names[i] for i in chunk], identity)}.npz"
        for chunk in chunks
    ]
    by_chunk = dict(zip(chunks, paths, strict=True))
    todo = [chunk for chunk in _share(chunks, running) if not by_chunk[chunk].exists()]
    work = _Work(images, todo, reading, running, with_masks=with_masks)
    found: dict[int, Mapping[str, torch.Tensor]] = {}
    for batch, arrays in _results(work, step):
        found.update(zip(batch.indices, arrays, strict=True))
        chunk = next(chunk for chunk in todo if batch.indices[0] in chunk)
        if all(index in found for index in chunk):
            _save(by_chunk[chunk], [found.pop(index) for index in chunk])
    work.refuse_bad()
    return paths


def _save(path: Path, of_images: Sequence[Mapping[str, torch.Tensor]]) -> None:
    arrays: dict[str, Any] = {
        name: np.concatenate([of_one[name].numpy() for of_one in of_images]) for name in of_images[0]
    }
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_arrays(paths: Iterable[Path], name: str) -> np.ndarray:
    """Join one array of the files of ``store_arrays``. Raises InputError, naming the file, for a bad one."""
    parts = []
    for path in paths:
        try:
            with np.load(path) as arrays:
                parts.append(arrays[name])
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"{path}: damaged; remove it, and run this again") from error
    return np.concatenate(parts)


def chunks_of(count: int, batch_size: int) -> list[range]:
    """Cut ``count`` images into chunks, which depend on nothing else but the batch size."""
    size = min(_LARGEST_CHUNK, max(batch_size, -(-count // _CHUNKS)))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _share(chunks: Sequence[range], running: Running) -> Sequence[range]:
    return chunks[running.processes.rank :: running.processes.number]


@dataclass
class _Work:
    """The chunks that this process has to do, and the images that turn out to be bad."""

    images: Images
    chunks: Sequence[range]
    reading: Reading
    running: Running
    needed: Callable[[int], bool] = lambda index: True
    with_masks: bool = False
    problems: list[str] = field(default_factory=list)

    def refuse_bad(self) -> None:
        """Raise InputError when images were bad."""
        if self.problems:
            what = "image is" if len(self.problems) == 1 else "images are"
            raise InputError(f"{len(self.problems)} {what} bad:\n{listed(sorted(self.problems))}")


class _Group(NamedTuple):
    """Pictures of one size out of a block: ``pixels`` (n, h, w, 3) uint8, and the rest of ``_Waiting``."""

    indices: list[int]
    pixels: torch.Tensor
    rest: list[tuple[Any, ...]]


class _Block(NamedTuple):
    chunk: int
    groups: list[_Group]
    problems: list[str]


class _Blocks(Dataset[_Block]):
    """A few images of a chunk at a time, decoded and resized; runs in the workers."""

    def __init__(self, work: _Work) -> None:
        self._read = partial(read_picture, work.images, reading=work.reading, with_mask=work.with_masks)
        self._names = work.images.names

    def __getitem__(self, block: tuple[int, range]) -> _Block:
        number, indices = block
        pictures: dict[tuple[int, ...], list[tuple[int, Picture]]] = {}
        problems = []
        for index in indices:
            try:
                picture = self._read(self._names[index])
            except (InputError, OSError) as error:
                problems.append(problem_of(error))
            else:
                pictures.setdefault(picture.pixels.shape, []).append((index, picture))
        groups = [
            _Group(
                [index for index, _ in group],
                torch.from_numpy(np.stack([of_one.pixels for _, of_one in group])),
                [(of_one.size, of_one.shown, of_one.beside) for _, of_one in group],
            )
            for group in pictures.values()
        ]
        return _Block(number, groups, problems)


def _begin_worker() -> None:
    torch.set_num_threads(1)  # those of the process that this one was forked from are not here
    cv2.setNumThreads(0)


@dataclass(frozen=True)
class _Waiting:
    index: int
    pixels: np.ndarray
    size: tuple[int, int]
    shown: tuple[int, int]
    beside: Any


def _waiting_batches(work: _Work, advance: Advance) -> Iterator[list[_Waiting]]:
    """Yield the images of the chunks in batches of one size; what fills none comes at its chunk's end."""
    waiting: dict[tuple[int, ...], list[_Waiting]] = {}
    chunk = 0
    running = work.running
    blocks = [
        (number, indices[start : start + _BLOCK])
        for number, indices in enumerate(work.chunks)
        for start in range(0, len(indices), _BLOCK)
    ]
    for block in load_tensors(
        _Blocks(work), running.workers, keys=blocks, begin=_begin_worker, start=running.processes.start
    ):
        if block.chunk != chunk:
            yield from filter(None, waiting.values())
            waiting.clear()
            chunk = block.chunk
        work.problems += block.problems
        advance(len(block.problems))
        for group in block.groups:
            pixels = group.pixels.numpy().copy()  # out of the workers' shared memory, which may be small
            full = waiting.setdefault(pixels.shape[1:], [])
            for index, row, rest in zip(group.indices, pixels, group.rest, strict=True):
                full.append(_Waiting(index, row, *rest))
                if len(full) == running.batch_size:
                    yield full[:]
                    full.clear()
    yield from filter(None, waiting.values())


def _results(work: _Work, step: Callable[[Batch], Any]) -> Iterator[tuple[Batch, list[Any]]]:
    """Run ``step`` on all batches in which something is needed; its results come on the CPU.

    On CUDA they are copied there behind their own step, and waited for when the next one has been queued.
    """
    if not work.chunks:
        return
    device, number = work.running.processes.device, work.running.processes.number
    normalised = Normalisation(work.reading.mean, work.reading.std, device)
    one_size = bool(work.reading.fixed_size or work.reading.crop)
    title = work.images.folder.name + f" (one of {number} shares)" * (number > 1)
    before: tuple[Batch, Callable[[], list[Any]]] | None = None
    with (
        work.running.show(title, sum(map(len, work.chunks)), unit="images") as advance,
        memory_named(device, "lower the batch size"),
        cuda_switches(device, one_size=one_size),
    ):
        for waiting in _waiting_batches(work, advance):
            if any(work.needed(one.index) for one in waiting):
                with torch.inference_mode():
                    batch = _to_device(waiting, normalised, device, work.running.precision)
                    begun = batch, _fetching(step(batch), device)
                if before is not None:
                    yield before[0], before[1]()
                before = begun
            advance(len(waiting))
        if before is not None:
            yield before[0], before[1]()


def _to_device(
    waiting: Sequence[_Waiting], normalised: Normalisation, device: torch.device, precision: str
) -> Batch:
    pixels = torch.from_numpy(np.stack([one.pixels for one in waiting]))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    return Batch(
        [one.index for one in waiting],
        # The channels stay last in memory: convolutions are faster so.
        normalised(pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)),
        [one.size for one in waiting],
        [one.shown for one in waiting],
        [one.beside for one in waiting if one.beside is not None],
        precision,
    )


def _fetching(results: Any, device: torch.device) -> Callable[[], list[Any]]:  # noqa: ANN401 - as _on_cpu
    """Begin to copy results to the CPU; returns a function that waits for them."""
    copied = _on_cpu(results)
    if device.type != "cuda":
        return lambda: copied
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def fetch() -> list[Any]:
        event.synchronize()
        return copied

    return fetch


def _on_cpu(results: Any) -> list[Any]:  # noqa: ANN401 - a tensor, or a list of tensors or of dictionaries
    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to("cpu", non_blocking=True)  # from CUDA into pinned memory

    if isinstance(results, torch.Tensor):
        return list(copy(results))
    return [
        copy(one) if isinstance(one, torch.Tensor) else {name: copy(value) for name, value in one.items()}
        for one in results
    ]
