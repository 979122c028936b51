"""The three losses of PASS; docs/pass.md, Losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cosine_similarity, log_softmax

from imagenets.learning.networks.precision import at_least_float32

TEMPERATURE = 0.1


def image_to_image(assignments: Sequence[torch.Tensor], scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """Teach every view the assignments of the large crops of its picture, as SwAV does: a scalar.

    ``assignments``: one (B, K) for each of the large crops, without gradient. ``scores``: one (B, K) for
    each view; the large crops come first, in the order of ``assignments``. Mean over the other views than
    the assignment's own, over pictures and over assignments.
    """
    log_shares = [_log_shares(view) for view in scores]
    losses = [
        _cross_entropy(assignment, view)
        for own, assignment in enumerate(assignments)
        for index, view in enumerate(log_shares)
        if index != own
    ]
    return torch.stack(losses).mean()


def deep_to_shallow(assignments: Sequence[torch.Tensor], scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """Teach a shallow stage's view of each large crop the deep assignment of the other crop: a scalar.

    ``assignments`` and ``scores``: two (B, K) each, of the large crops 0 and 1.
    """
    losses = [
        _cross_entropy(assignment, _log_shares(scores[1 - own])) for own, assignment in enumerate(assignments)
    ]
    return torch.stack(losses).mean()


def pixel_to_pixel(prediction: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Predict a point of one crop from the same point of the other, as SimSiam does: a scalar in -1..1.

    ``prediction`` and ``projection`` (2B, D, h, w): crop 0 of all pictures, then crop 1. Only predictions get
    a gradient. Pictures whose crops share no point have cosine 0 and stay in the mean.
    """
    one, other = at_least_float32(projection.detach()).chunk(2)
    from_one, from_other = at_least_float32(prediction).chunk(2)
    cosines = (cosine_similarity(from_one, other).mean(), cosine_similarity(from_other, one).mean())
    return -(cosines[0] + cosines[1]) / 2


def pass_loss(
    image: torch.Tensor, shallow: torch.Tensor, pixel: torch.Tensor, weights: tuple[float, float]
) -> torch.Tensor:
    """Add up PASS's loss: the weighted mean of image and shallow loss, and the pixel loss at weight 1."""
    return (weights[0] * image + weights[1] * shallow) / sum(weights) + pixel


def _log_shares(scores: torch.Tensor) -> torch.Tensor:
    return log_softmax(at_least_float32(scores) / TEMPERATURE, dim=1)


def _cross_entropy(assignment: torch.Tensor, log_shares: torch.Tensor) -> torch.Tensor:
    return -(assignment * log_shares).sum(1).mean()
