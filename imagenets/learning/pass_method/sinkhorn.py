"""SwAV's soft assignments of views to prototypes (its "codes"), balanced over batch, queue and processes.

Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS
2020; docs/pass.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed

from imagenets.learning.networks.precision import at_least_float32

EPSILON = 0.05
ITERATIONS = 3


@torch.no_grad()
def balanced_assignments(scores: torch.Tensor) -> torch.Tensor:
    """Sinkhorn's algorithm on this process's rows: scores (R, K) → assignments (R, K) float32.

    Over the rows of all processes together, every prototype is used equally often; each row sums up to 1.
    ``scores`` are cosines; they may be of half precision, which exp(1 / EPSILON) would overflow.
    """
    assignments = torch.exp(at_least_float32(scores) / EPSILON)
    prototypes = assignments.shape[1]
    rows = assignments.shape[0] * _processes()
    assignments /= _sum_over_processes(assignments.sum())
    for _ in range(ITERATIONS):
        assignments /= prototypes * _sum_over_processes(assignments.sum(0, keepdim=True))
        assignments /= rows * assignments.sum(1, keepdim=True)
    return assignments * rows


class FeatureQueue:
    """The last features of both large crops, which make the assignments of a small batch less coarse.

    Every process holds the features of its own images: ``features`` (2, length / processes, D) float32, zeros
    at first, newest in front.
    """

    def __init__(self, length: int, batch: int, dimensions: int, device: torch.device | str = "cpu") -> None:
        """Hold ``length`` features a crop, rounded down to whole batches; both are of all processes."""
        own = length // batch * batch // _processes()
        self.batch = batch // _processes()
        self.features = torch.zeros(2, own, dimensions, device=device)
        self.rows = [0, 0]  # that have been put into the queue of each crop; known without asking the device

    def filled(self, crop: int) -> bool:
        """Return whether the queue of ``crop`` (0, 1) has no empty place left, and is used from now on."""
        return 0 < self.features.shape[1] <= self.rows[crop]

    @torch.no_grad()
    def scores(self, crop: int, prototypes: torch.Tensor) -> torch.Tensor:
        """Scores of the queue of ``crop`` against the current prototypes (K, D): (rows, K), maybe no rows."""
        if not self.filled(crop):
            return prototypes.new_zeros(0, len(prototypes))
        return self.features[crop] @ prototypes.detach().float().T

    @torch.no_grad()
    def push(self, crop: int, features: torch.Tensor) -> None:
        """Put a batch's features (B, D) of ``crop`` in front; the oldest leave."""
        kept = self.features[crop, : self.features.shape[1] - len(features)]
        self.features[crop] = torch.cat((features.detach().float(), kept))[: self.features.shape[1]]
        self.rows[crop] += len(features)

    def state_dict(self) -> dict[str, Any]:
        """Return the ``features`` of all processes, which must all call it."""
        return {"features": self.gathered()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process's share back."""
        self.restore(state["features"])

    def gathered(self) -> torch.Tensor:
        """Return the queue of all processes, (2, length, D) on the CPU, as one process would have it.

        All processes must call it. Rows are a batch's in the order of the processes, batch after batch.
        """
        if _processes() == 1 or not self.features.shape[1]:
            return self.features.cpu().clone()
        own = self.features.view(2, -1, self.batch, self.features.shape[2])
        parts = [torch.empty_like(own) for _ in range(_processes())]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.stack(parts, 2).flatten(1, 3).cpu()

    def restore(self, gathered: torch.Tensor) -> None:
        """Take this process's share of what ``gathered`` returned, also if the processes were others then."""
        if self.features.shape[1]:
            batches = gathered.view(2, -1, _processes(), self.batch, gathered.shape[2])
            own = batches[:, :, _rank()].flatten(1, 2)
            self.features.copy_(own)
            self.rows = own.any(2).sum(1).tolist()  # features have length 1, empty places 0


@torch.no_grad()
def assignments_of_views(
    features: torch.Tensor,
    scores: Sequence[torch.Tensor],
    queue: FeatureQueue | None,
    prototypes: torch.Tensor,
) -> list[torch.Tensor]:
    """Assignments (B, K) float32 of both large crops from their ``scores`` (B, K), each with its queue.

    Their ``features`` (2B, D), unit vectors, enter the queue afterwards. ``prototypes`` (K, D) are those that
    the scores are of.
    """
    assignments = []
    for crop, (own, of_crop) in enumerate(zip(features.chunk(2), scores, strict=True)):
        rows = of_crop.detach()
        if queue is not None:
            rows = torch.cat((queue.scores(crop, prototypes), rows))
            queue.push(crop, own)
        assignments.append(balanced_assignments(rows)[-len(of_crop) :])
    return assignments


def _processes() -> int:
    return torch.distributed.get_world_size() if _distributed() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    if _distributed():
        torch.distributed.all_reduce(values)
    return values
