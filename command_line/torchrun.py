#!/usr/bin/env python3
"""torchrun, with its options, but no traceback of its own where it is stopped or a process fails."""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def status_of(error: ChildFailedError) -> int:
    """Exit status of the process that failed first, as a shell has it."""
    _, failure = error.get_first_failure()
    return int(failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # the process that failed has said why
    try:
        main()
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        sys.exit(status_of(error))
