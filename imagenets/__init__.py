"""The ImageNet-S toolbox as a library. Its rooms, in the order in which data flows:

- ``common``: errors (InputError), folders, files written whole, locks, downloads, disk space, progress,
  worker processes
- ``classes``: what ImageNet-S is: modes 50, 300 and 919, class names, merged classes
- ``lists``: the official lists: which image belongs where; downloaded, checked, cached
- ``images``: opening pictures, EXIF orientation, layouts of ``<wnid>/<name>``
- ``masks``: the PNG format, label = R + 256 G: decode, encode, resize; width of a boundary
- ``label_maps``: ids of one mode to another's, ImageNet-1k's index to a class, 1000-way logits to a mode
- ``dataset``: ImageNetS, a prepared set as a PyTorch data set
- ``mask_forms``: masks as other tools have them: gray PNGs of 8 and 16 bits, arrays
- ``batches``: batches of images of different sizes, and outputs taken back to each image's own
- ``preparation``: from a copy of ImageNet to a prepared set

  - ``layouts``: what a copy looks like: class folders, flat val, Kaggle's root, tars, parquet
    (in full: ``folder_layouts``, ``tar_layouts``, ``parquet``)
  - ``image_folders``: train, train-semi, validation, test, planned and made
  - ``annotations``: the masks, out of the official archive
  - ``verification``: what is missing, left over or broken in a prepared set
- ``scoring``: from pairs of masks to scores

  - ``pairs``: prediction and ground truth by name
  - ``run_length``: masks as runs; where boundaries lie (boundary IoU)
  - ``contingency``: pixels of every (image, predicted label, true label), on and off boundaries; the one pass
  - ``table_cache``: that table, kept on disk
  - ``counting``: a request for such a table: masks listed, counted, checked, refused
  - ``matching``: which class a cluster stands for: found, read, written; match.json
  - ``matching_record``: of which masks a matching was made
  - ``metrics``: mIoU, boundary IoU, object sizes S MS ML L, FMeasure, Acc
  - ``bootstrap``, ``comparison``: 95% intervals; is A better than B
  - ``localization``: attribution maps against objects
  - ``submission``: the ZIP for the test server, made and checked
  - ``ranks``: all that under torchrun
- ``segmentation_scores``: SegmentationScores, the same scores in a training loop
- ``reporting``: text, HTML report, charts, overlays, confusions, scores of single images, published results
- ``learning``: what ``methods/`` runs

  - ``processes``, ``run_folder``, ``output_folder``, ``images``: this process among torchrun's, the folder of
    a run, which pictures it reads and how
  - ``networks``: backbones by name, checkpoints, position embeddings, a backbone with a head
  - ``engine``: batched inference: decode in workers, run the network, write label maps or arrays
  - ``training``: the loop, order of the images, augmentation, optimisers and schedules
  - ``distance_matching``: the bank of embeddings, nearest neighbours
  - ``finetuning``: recipes and losses of the semi-supervised protocol and of PASS's third step
  - ``pass_method``: PASS: crops, heads, Sinkhorn, losses, attention, centroids, thresholds
  - ``kmeans``: foregrounds, features and clusters, by hand or by a network
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagenets.classes import MODES, class_table
    from imagenets.common.errors import InputError
    from imagenets.dataset import ImageNetS
    from imagenets.label_maps import convert_labels, logits_to_mode
    from imagenets.masks import decode_mask, encode_mask
    from imagenets.reporting.published import published
    from imagenets.scoring.matching import find_matching
    from imagenets.scoring.metrics import evaluate
    from imagenets.segmentation_scores import SegmentationScores

__version__ = "0.2.0"

__all__ = [
    "MODES",
    "ImageNetS",
    "InputError",
    "SegmentationScores",
    "class_table",
    "convert_labels",
    "decode_mask",
    "encode_mask",
    "evaluate",
    "find_matching",
    "logits_to_mode",
    "published",
]

_HOMES = {
    "MODES": "imagenets.classes",
    "ImageNetS": "imagenets.dataset",
    "InputError": "imagenets.common.errors",
    "SegmentationScores": "imagenets.segmentation_scores",
    "class_table": "imagenets.classes",
    "convert_labels": "imagenets.label_maps",
    "decode_mask": "imagenets.masks",
    "encode_mask": "imagenets.masks",
    "evaluate": "imagenets.scoring.metrics",
    "find_matching": "imagenets.scoring.matching",
    "logits_to_mode": "imagenets.label_maps",
    "published": "imagenets.reporting.published",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: PyTorch, which some need, takes two seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'imagenets' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
