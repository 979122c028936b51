"""Learning rates as functions of the progress of a run."""

from __future__ import annotations

import math


def cosine(progress: float, highest: float, lowest: float) -> float:
    """Fall from ``highest`` to ``lowest`` along half a cosine; ``progress`` from 0 to 1.

    lowest + ½ (highest − lowest)(1 + cos(π progress)). Source: Loshchilov & Hutter, SGDR, ICLR 2017;
    docs/methods.md, Schedules.
    """
    return lowest + 0.5 * (highest - lowest) * (1 + math.cos(math.pi * progress))


def warm_up_and_cosine(epoch: float, epochs: float, warm_up: float, highest: float, lowest: float) -> float:
    """Rise linearly from 0 in the first ``warm_up`` epochs, then ``cosine`` over the rest.

    ``epoch`` counts with its fraction: at step s of S in epoch e it is e + s / S.
    """
    if epoch < warm_up:
        return highest * epoch / warm_up
    return cosine((epoch - warm_up) / (epochs - warm_up), highest, lowest)
