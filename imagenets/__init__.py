"""The ImageNet-S toolbox as a library: classes, masks, data sets, contingency tables, matchings, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagenets.dataset import ImageNetS
    from imagenets.reporting.published import published
    from imagenets.segmentation_scores import SegmentationScores

__all__ = ["ImageNetS", "SegmentationScores", "published"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: PyTorch, which most need, takes two seconds to load."""
    if name == "ImageNetS":
        from imagenets.dataset import ImageNetS

        return ImageNetS
    if name == "SegmentationScores":
        from imagenets.segmentation_scores import SegmentationScores

        return SegmentationScores
    if name == "published":
        from imagenets.reporting.published import published

        return published
    raise AttributeError(f"module 'imagenets' has no attribute {name!r}")
