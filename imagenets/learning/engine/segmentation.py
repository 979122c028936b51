"""From a method to the label maps of all splits, resumed where they were stopped, and their overlays.

A method of one's own takes all it needs from here: docs/own_method.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from imagenets.common.progress import Log
from imagenets.learning.engine.inference import ENGINE, LabelStep, Running, write_label_maps
from imagenets.learning.engine.inference import Batch as Batch
from imagenets.learning.engine.label_overlays import overlay_paths, write_label_overlays
from imagenets.learning.images import Images, digest, target_paths
from imagenets.learning.images import Reading as Reading
from imagenets.learning.networks.precision import on_device
from imagenets.learning.processes import Processes
from imagenets.learning.run_folder import Record, digests_of, held_folder, made_by


@dataclass(frozen=True)
class Method:
    """What a method brings to ``segment``, read and checked.

    - ``make_step(running, record)``: called on all processes when the folder is held; moves the network to
      the device, makes what is still missing, and returns the function from a batch to its label maps.
    - ``images`` by the folder of the output that their label maps go to, and how they are read.
    - ``settings``: all else that decides the label maps, kept in ``record_file`` of the output.
    - ``loaded``: lines for the user. ``owned``: names that the method makes in the output beside label maps.
    - ``names`` of the labels for overlays; without them a label is called "``noun`` 7".
    """

    make_step: Callable[[Running, Record], LabelStep]
    images: Mapping[str, Images]
    reading: Reading
    settings: Mapping[str, object]
    record_file: str
    loaded: Sequence[str] = ()
    owned: Sequence[str] = ()
    names: Sequence[str] | None = None
    noun: str = "class"

    @property
    def record(self) -> Record:
        """Which run the output's folder holds."""
        folders = ("train", "validation", "test", "images")
        return Record(self.record_file, self.settings, (*folders, *self.owned), digests_of(self.images))


def network_method(
    name: str,
    network: nn.Module,
    label_maps: Callable[[nn.Module, Batch], torch.Tensor],
    images: Mapping[str, Images],
    reading: Reading,
    settings: Mapping[str, object],
) -> Method:
    """Make a ``Method`` of any module and a function from it and a batch to label maps (B, h, w), integers.

    ``settings`` are recorded beside the network's modules and weights, and the versions of the libraries.
    """

    def make_step(running: Running, record: Record) -> LabelStep:
        on_device(network.eval(), running.processes.device)
        return partial(label_maps, network)

    weights = (part.cpu().contiguous().view(-1).view(torch.uint8) for part in network.state_dict().values())
    known = digest([str(network), *(part.numpy().tobytes() for part in weights)])
    recorded = {**settings, "network": known, "size": reading.size_text, "code": made_by(ENGINE)}
    return Method(make_step, images, reading, recorded, f"{name}.json")


def segment(method: Method, output: Path, running: Running, log: Log, overlays: bool = False) -> None:
    """Write the label maps of all splits below ``output``, and on request overlays; called on all processes.

    ``log`` receives lines for the user, in the first process only. Raises InputError as ``held_folder`` and
    ``write_label_maps`` do.
    """
    processes = running.processes
    record = processes.together(lambda: method.record)
    targets = processes.together(
        lambda: {name: target_paths(images, output / name) for name, images in method.images.items()}
    )
    with held_folder(output, record, processes):
        step = method.make_step(running, record)
        for name, images in method.images.items():
            write = partial(write_label_maps, images, targets[name], step, method.reading, running)
            write_split(images, output / name, write, processes, log)
        if overlays:

            def draw() -> None:
                for name, images in method.images.items():
                    paths = overlay_paths(targets[name], output)
                    labels = targets[name], paths, method.names, method.noun
                    write_label_overlays(images, *labels, running.workers, running.show)

            processes.from_first(draw)


def write_split(
    images: Images, folder: Path, write: Callable[[], int], processes: Processes, log: Log
) -> None:
    """Have each process ``write`` its share of a split to ``folder``, and say how many were made now."""
    made = sum(processes.gathered(processes.together(write)))
    if processes.first:
        log(f"{folder}: {len(images.names)} predictions, {made} made now")
