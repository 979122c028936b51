"""How every script starts and ends; importing this changes the process.

A script imports it before any package: from then on an interrupt and a missing package end it in one line.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from imagenets.common.errors import InputError

# Threads of a network that spin while they wait take the cores from the processes that read images, and from
# whoever shares the machine: several times slower there. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What `setup.sh methods` installs besides.
_OF_METHODS = ("torchvision", "timm", "safetensors", "pyarrow")
_OWN = ("imagenets", "command_line")


def missing_package(error: ModuleNotFoundError) -> str | None:
    """Say which package this Python lacks, and which command installs it with versions that fit.

    None where the toolbox itself lacks a module.
    """
    package = (error.name or "").partition(".")[0]
    if package in _OWN:
        return None
    command = "bash setup.sh methods" if package in _OF_METHODS else "bash setup.sh"
    return f"error: this Python lacks {package or 'a package'}: {command}; source .venv/bin/activate"


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    message = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
    if message:
        print(message, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _interrupted(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # nothing has begun that would have to be cleaned up


# For a script of the toolbox alone, and until run() takes over: packages take seconds to import. What they
# load stays, and to look through it for garbage again and again takes a quarter of that time.
if Path(sys.argv[0]).resolve().parent.parent == Path(__file__).resolve().parent.parent:
    gc.disable()
    sys.excepthook = _uncaught
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupted)


_succeeded = False


def _leave() -> None:
    if not _succeeded:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


# A rank of torchrun that has done its work leaves before Python takes itself apart: a thread of the group
# that is still putting a tensor back then aborts the process, and torchrun calls the run failed. What is
# registered first is called last.
if "TORCHELASTIC_RUN_ID" in os.environ:
    atexit.register(_leave)


class _Terminated(SystemExit):
    """SIGTERM, on its way through every ``finally``."""


def run(main: Callable[[], None], goes_on: bool = False) -> NoReturn:
    """Run a script's ``main`` and end the process: 0, or 1 after one clear message on stderr.

    argparse itself ends with 2 for wrong usage. An interrupt ends with 130 and SIGTERM with 143, as in a
    shell, after what is half-done has been removed; a script that ``goes_on`` when it is started again says
    so then.
    """
    global _succeeded
    gc.freeze()
    gc.enable()
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without some letter must not end the run
    try:
        main()
        sys.stdout.flush()
        _succeeded = True
    except InputError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:  # of a package that only some runs need
        message = missing_package(error)
        if message is None:
            raise
        sys.exit(message)
    except BrokenPipeError:
        # The reader of our output (head, say) has left; point stdout elsewhere so that exit does not flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    except KeyboardInterrupt:
        _say_stopped("interrupted", goes_on)
        sys.exit(130)
    except _Terminated:
        _say_stopped("terminated", goes_on)
        raise
    finally:
        if "RANK" not in os.environ:  # of torchrun's processes, threads of their group must end in order
            gc.freeze()  # what is left ends with the process, which need not look through it before
    sys.exit(0)


def _say_stopped(how: str, goes_on: bool) -> None:
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, which are all stopped, one says so
        print(f"{how}: run the same command again to go on" if goes_on else how, file=sys.stderr)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End as on an interrupt, through every ``finally``; a second signal ends the process as it stands."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Terminated(143)
