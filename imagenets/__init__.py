"""The ImageNet-S toolbox as a library: classes, masks, data sets, contingency tables, matchings, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagenets.dataset import ImageNetS
    from imagenets.segmentation_scores import SegmentationScores

__all__ = ["ImageNetS", "SegmentationScores"]


def __getattr__(name: str) -> object:
    """Import the two names that need PyTorch when they are first used: PyTorch takes two seconds to load."""
    if name == "ImageNetS":
        from imagenets.dataset import ImageNetS

        return ImageNetS
    if name == "SegmentationScores":
        from imagenets.segmentation_scores import SegmentationScores

        return SegmentationScores
    raise AttributeError(f"module 'imagenets' has no attribute {name!r}")
