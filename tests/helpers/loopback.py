"""An HTTP server on loopback that plays the official hosts, also on their bad days."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer."""

    status: int = 200  # an error of this status
    cut_after: int | None = None  # close after so many bytes of the body
    reset: bool = False  # with a TCP reset
    stall: float = 0.0  # seconds of silence, at the cut or at the beginning
    html: bool = False  # a web page in place of the file
    location: str | None = None  # sent on to there
    chunked: bool = False  # the first byte alone
    announce: int | None = None  # a Content-Length that is not the body's


@dataclass
class Host:
    """Files by path, the faults of the next answers, and what was asked."""

    url: str
    files: dict[str, bytes]
    faults: list[Fault] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"one"'
    pause: float = 0.0  # seconds after each piece of a body
    piece: int = 1 << 16
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Host]:
    """Serve files by path, ``lists/a.txt``, until the block ends."""
    host = Host("", files)

    class Handler(_Handler):
        def do_GET(self) -> None:
            self.answer(host)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def answer(self, host: Host) -> None:
        path, asked_range = self.path.lstrip("/"), self.headers.get("Range")
        host.asked.append((path, asked_range))
        fault = host.faults.pop(0) if host.faults else Fault()
        self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):
            if fault.stall and fault.cut_after is None:
                time.sleep(fault.stall)
            if fault.status != 200 or path not in host.files:
                self.send_error(fault.status if fault.status != 200 else 404)
            elif fault.location:
                self._begin(302, {"Location": fault.location})
            elif fault.chunked:
                self._begin(200, {"Transfer-Encoding": "chunked"})
                for chunk in (host.files[path][:1], host.files[path][1:], b""):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            else:
                self._send_file(host, host.files[path], asked_range, fault)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_file(self, host: Host, body: bytes, asked_range: str | None, fault: Fault) -> None:
        headers = {"Content-Type": "text/html; charset=utf-8" if fault.html else "application/zip"}
        if host.etag:
            headers["ETag"] = host.etag
        start = 0
        if fault.html:
            body = b"<!DOCTYPE html><html><body>Sign in to the hotel's network</body></html>"
        elif asked_range and host.ranges:
            start = int(asked_range.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        length = len(body) - start if fault.announce is None else fault.announce
        self._begin(206 if "Content-Range" in headers else 200, headers | {"Content-Length": str(length)})
        body = body[start:][: fault.cut_after]
        for begin in range(0, len(body), host.piece):
            self.wfile.write(body[begin : begin + host.piece])
            self.wfile.flush()
            time.sleep(host.pause)
        if fault.cut_after is not None and fault.stall:
            time.sleep(fault.stall)
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
