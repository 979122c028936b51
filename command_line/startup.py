"""How every script starts and ends; importing this changes the process.

A script imports it before any package: from then on an interrupt and a missing package end it in one line.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from imagenets.common.errors import InputError, StoppedError, problem_of
from imagenets.common.torchrun import inside_other_job, leave_job, place
from imagenets.common.workers import die_with_parent

# Threads of a network that spin while they wait take the cores from the processes that read images, and from
# whoever shares the machine: several times slower there. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Commands that install what setup.sh without an argument does not.
_SETUP = dict.fromkeys(("torchvision", "timm", "safetensors", "pyarrow"), "bash setup.sh methods") | {
    "open_clip": "bash setup.sh zero-shot"
}
_OWN = ("imagenets", "command_line")

_STOPPING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGUSR1: "asked to stop"}
# Seconds until a process that was asked to stop leaves as it stands: for a step of a training, or for what is
# half done to be removed; and where it does not listen, being in a package's own code.
_STEP, _DEAF = 20.0, 2.0
# Seconds for which a rank that fails in silence lets the one that says why go first: torchrun ends them all.
_LAST_WORDS = 2.0


def missing_package(error: BaseException) -> str | None:
    """Say which package this Python lacks, and which command installs it with versions that fit.

    None for other errors, and where the toolbox itself lacks a module.
    """
    if not isinstance(error, ModuleNotFoundError):
        return None
    package = (error.name or "").partition(".")[0]
    if package in _OWN:
        return None
    command = _SETUP.get(package, "bash setup.sh")
    return f"error: this Python lacks {package or 'a package'}: {command}; source .venv/bin/activate"


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    message = missing_package(error)
    if not message:
        sys.__excepthook__(kind, error, traceback)
    else:
        _report(message)
        _leave(1)


def _interrupted(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # nothing has begun that would have to be cleaned up


# Only for a script of the toolbox, and until run() takes over: packages take seconds to import. What they
# load stays, and to look through it for garbage again and again takes a quarter of that time.
if Path(sys.argv[0]).resolve().parent.parent == Path(__file__).resolve().parent.parent:
    gc.disable()
    sys.excepthook = _uncaught
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupted)


@cache
def _first_to_report() -> bool:
    """Return whether this process reports how the job ends: without torchrun, always; else the first to ask.

    torchrun's store counts the calls. Where it cannot be reached, it is the first process of each machine.
    """
    here = place()
    if here is None:
        return True
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*address, is_master=False, wait_for_workers=False)
        return bool(store.add(f"imagenets/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/told", 1) == 1)
    except (ImportError, KeyError, RuntimeError):
        if here.local_rank != 0:
            time.sleep(_LAST_WORDS)
        return here.local_rank == 0


class _Stop(BaseException):
    """A signal that stops the script, on its way through every ``finally``."""


_asked = 0  # the signal that asked this process to stop
_polled = False  # somebody asks after each step whether it came
_heard = threading.Event()


def stop_asked() -> bool:
    """Return whether a signal has asked this process to stop; a caller has to keep polling.

    From the first call on, signals raise nothing here: a training saves its state, and raises StoppedError.
    """
    global _polled
    _polled = True
    return _asked != 0


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked:  # torchrun and a scheduler both send it
        return
    _asked = number
    _heard.set()
    if not _polled:
        raise _Stop


def _listen_for_signals() -> None:
    """Answer signals also while the main thread waits in a package's own code, where handlers do not run."""
    heard, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell has background jobs ignore SIGINT
            signal.signal(number, _on_signal)
    threading.Thread(target=_leave_after_signal, args=(heard,), daemon=True).start()


def _leave_after_signal(heard: int) -> None:
    """Wait for a signal; end the process where the main thread has not done so in time."""
    number = 0
    while number not in _STOPPING:
        select.select([heard], [], [])
        number = os.read(heard, 1)[0]
    if _polled or _heard.wait(_DEAF):
        time.sleep(_STEP)
    _report(_STOPPING[signal.Signals(number)])
    _leave(128 + number)


def run(main: Callable[[], None], resumes: bool = False, on_all_ranks: bool = False) -> NoReturn:
    """Run a script's ``main`` and end the process: 0, or 1 after one clear message on stderr.

    argparse itself ends with 2 for wrong usage. SIGINT ends with 130 and SIGTERM with 143, as in a shell,
    after what is half-done has been removed; a script that ``resumes`` when it is started again says so then.
    Under torchrun the first process works and the others leave with 0, unless the script works
    ``on_all_ranks``; of those, one says what is wrong.
    """
    here = place()
    if here is not None and not on_all_ranks:
        if here.rank > 0 and not inside_other_job():
            _leave(0)
        leave_job()
    elif here is not None and not inside_other_job():
        die_with_parent()
    _listen_for_signals()
    gc.freeze()
    gc.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without some letter must not end the run
    if place() is not None:
        _print_usage_once()
    _leave(_status_of(main, resumes))


def _print_usage_once() -> None:
    """Have one of torchrun's processes print what argparse prints."""
    usual = argparse.ArgumentParser._print_message

    def once(parser: argparse.ArgumentParser, message: str, file: io.TextIOBase | None = None) -> None:
        if _first_to_report():
            usual(parser, message, file)

    argparse.ArgumentParser._print_message = once  # type: ignore[method-assign,assignment]


def _status_of(main: Callable[[], None], resumes: bool) -> int:
    """Run ``main``, say what ended it if that is not its end, and return the exit status."""
    try:
        main()
        sys.stdout.flush()
        return 0
    except SystemExit as error:  # argparse's
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (_Stop, StoppedError) as error:
        number = _asked or signal.SIGTERM  # another rank may have got it
        saved = f", {error}" if isinstance(error, StoppedError) else ""
        again = ": run the same command again to resume" if resumes else ""
        _report(f"{_STOPPING[signal.Signals(number)]}{saved}{again}")
        return 128 + number
    except BrokenPipeError:
        # The reader of our output (head, say) has left; point stdout elsewhere so that nothing is flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        _report(f"error: {problem_of(error)}")
    except Exception as error:
        message = missing_package(error)
        if message:  # of a package that only some runs need
            _report(message)
        elif _first_to_report():
            sys.__excepthook__(type(error), error, error.__traceback__)
    return 1


def _report(message: str) -> None:
    if _first_to_report():
        print(message, file=sys.stderr)


def _leave(status: int) -> NoReturn:
    """End the process as it stands.

    Python would first take itself apart: wait for threads, join workers that wait for a file, run destructors
    of packages. That takes time, aborts a rank whose group still has threads, and has been seen to spin.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1
    os._exit(status)
