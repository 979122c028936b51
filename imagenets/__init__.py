"""The ImageNet-S toolbox as a library. Its packages and modules, in the order in which data flows:

- ``common``: errors (InputError), folders, files written whole, locks, downloads, disk space, progress,
  worker processes, the version
- ``classes``: modes 50, 300 and 919, class names, merged classes; your own class lists
- ``lists``: the official lists of images and classes; downloaded, checked, cached
- ``images``: opening pictures, EXIF orientation, layouts of ``<wnid>/<name>``
- ``masks``: the PNG format, label = R + 256 G: decode, encode, resize; width of a boundary
- ``class_ids``: conversion of ids between modes, ImageNet-1k's indices to classes, 1000-way logits to a mode
- ``dataset``: ImageNetS, a prepared set as a PyTorch data set
- ``mask_forms``: masks of other tools: gray PNGs of 8 and 16 bits, arrays
- ``batches``: batches of images of different sizes, with outputs resized to each image's own
- ``regions``: the region of each image's own class, for region-aware models: masks, COCO's run lengths
- ``composites``: pictures with only the object, only its background, or another background
- ``preparation``: from a copy of ImageNet to a prepared set

  - ``layouts``: what a copy looks like: class folders, flat val, Kaggle's root, tars, ZIP, parquet
    (in full: ``folder_layouts``, ``tar_layouts``, ``zip_layout``, ``parquet``); ``other_data``: what is none
  - ``plans``, ``image_folders``: train, train-semi, validation, test, planned and made
  - ``annotations``: the masks, out of the official archive
  - ``verification``: what is missing, left over or broken in a prepared set
- ``scoring``: from pairs of masks to scores

  - ``pairs``: prediction and ground truth by name
  - ``run_length``: masks as runs; where boundaries lie (boundary IoU)
  - ``contingency``: pixels of every (image, predicted label, true label), on and off boundaries; the pass
  over the masks
  - ``table_cache``: that table, kept on disk
  - ``counting``: a request for such a table: masks are listed, counted, checked, refused
  - ``matching``: matching of clusters to classes: found, read, written; match.json
  - ``matching_record``: the masks that a matching was made from
  - ``metrics``: mIoU, boundary IoU, object sizes S MS ML L, FMeasure, Acc
  - ``plausibility``, ``protocols``: warnings about scores; rules on matching
  - ``bootstrap``, ``comparison``: 95% intervals; is A better than B
  - ``localization``, ``attribution_scores``, ``map_geometry``, ``attribution_maps``: attribution maps against
    objects, the formulas, how maps lie on their images, and their files
  - ``classification``, ``classifier_files``: accuracies of a classifier, from its outputs
  - ``submission``: the ZIP for the test server, made and checked
- ``segmentation_scores``: SegmentationScores, the same scores in a training loop
- ``reporting``: text, HTML report, charts, overlays, confusions, scores of single images, published results
- ``learning``: used by ``methods/``

  - ``processes``, ``run_folder``, ``images``: this process among torchrun's, the folder of a run,
    which pictures it reads and how
  - ``networks``: backbones by name and their families, checkpoints (files, wrappers, layouts),
    position embeddings, a backbone with a head
  - ``engine``: batched inference: decode in workers, run the network, write label maps or arrays;
    ``segmentation``: for your own method
  - ``training``: the loop, order of the images, augmentation, optimisers and schedules
  - ``distance_matching``: the bank of embeddings, nearest neighbours
  - ``finetuning``: recipes and losses of the semi-supervised protocol, self-training and PASS's third step
  - ``pass_method``: PASS: crops, heads, Sinkhorn, losses, attention, centroids, thresholds
  - ``kmeans``: foregrounds, features and clusters, hand-made or from a network
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from imagenets.common.version import __version__ as __version__

if TYPE_CHECKING:  # type checkers cannot follow __getattr__; tests/test_package.py holds that both agree
    from imagenets.class_ids import convert_labels as convert_labels
    from imagenets.class_ids import logits_to_mode as logits_to_mode
    from imagenets.classes import MODES as MODES
    from imagenets.classes import class_table as class_table
    from imagenets.common.errors import InputError as InputError
    from imagenets.composites import composite as composite
    from imagenets.dataset import ImageNetS as ImageNetS
    from imagenets.masks import decode_mask as decode_mask
    from imagenets.masks import encode_mask as encode_mask
    from imagenets.regions import target_regions as target_regions
    from imagenets.reporting.published import published as published
    from imagenets.scoring.matching import find_matching as find_matching
    from imagenets.scoring.metrics import evaluate as evaluate
    from imagenets.segmentation_scores import SegmentationScores as SegmentationScores

_PUBLIC = {
    "class_ids": ("convert_labels", "logits_to_mode"),
    "classes": ("MODES", "class_table"),
    "common.errors": ("InputError",),
    "composites": ("composite",),
    "dataset": ("ImageNetS",),
    "masks": ("decode_mask", "encode_mask"),
    "regions": ("target_regions",),
    "reporting.published": ("published",),
    "scoring.matching": ("find_matching",),
    "scoring.metrics": ("evaluate",),
    "segmentation_scores": ("SegmentationScores",),
}
_MODULES = {name: f"imagenets.{module}" for module, names in _PUBLIC.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: PyTorch, which some need, takes two seconds to load."""
    if name not in _MODULES:
        raise AttributeError(f"module 'imagenets' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
