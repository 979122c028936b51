"""Time a call."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(
    call: Callable[[], object], repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time a call by ``clock``: the best of some repeats."""
    times = []
    for _ in range(repeats):
        begun = clock()
        call()
        times.append(clock() - begun)
    return min(times)
