"""A stand-in for Python whose scripts begin with their libraries loaded: real processes, forked off a server.

PyTorch takes seconds to load, and shell scripts of methods/ start Python eight times. What they start here
is a process of its own, with the arguments, folder, environment, output and exit status that it would have.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm", "cv2", "sklearn.cluster", "scipy.optimize", "matplotlib.figure")
CLIENT = """\
#!{python} -SE
import json, os, socket, sys

asked = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
    status = int(server.recv(100))
sys.exit(status if status >= 0 else 128 - status)
"""


@contextmanager
def quick_python(path, environment):
    """Write the stand-in to ``path``; its server, and whatever it has started, ends with the block."""
    server = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        path.write_text(CLIENT.format(python=sys.executable, address=server.stdout.readline().rstrip("\n")))
        path.chmod(0o755)
        yield path
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def serve():
    """Fork a process for each connection, which starts the script and answers with its exit status."""
    for name in LIBRARIES:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        address = f"\0imagenets-quick-python-{os.getpid()}"  # in no folder, so that nothing is left
        listening.bind(address)
        listening.listen()
        print(address, flush=True)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                answer(connection)
            connection.close()


def answer(connection):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    script = os.fork()
    if script == 0:
        begin(descriptors=descriptors, **json.loads(message))
    _, status = os.waitpid(script, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def begin(arguments, folder, environment, descriptors):
    """Be what ``python ARGUMENTS`` would be."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 0
    try:
        if not arguments:
            exec(sys.stdin.read(), {"__name__": "__main__"})
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
