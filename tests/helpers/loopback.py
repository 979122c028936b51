"""An HTTP server on loopback that plays the official hosts, also on their bad days."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(lambda: host))
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


def _handler(current: Callable[[], Host]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            host = current()
            path = self.path.lstrip("/")
            asked_range = self.headers.get("Range")
            host.asked.append((path, asked_range))
            fault = host.faults.pop(0) if host.faults else Fault()
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):
                self._answer(host, path, asked_range, fault)

        def _answer(self, host: Host, path: str, asked_range: str | None, fault: Fault) -> None:
            if fault.stall and fault.cut_after is None:
                time.sleep(fault.stall)
            if fault.status != 200 or path not in host.files:
                self.send_error(fault.status if fault.status != 200 else 404)
                return
            if fault.location:
                self.send_response(302)
                self.send_header("Location", fault.location)
                self.end_headers()
                return
            if fault.chunked:
                self._send_chunks(host.files[path])
                return
            body, status, start = host.files[path], 200, 0
            if fault.html:
                body = b"<!DOCTYPE html><html><body>Sign in to the hotel's network</body></html>"
            if asked_range and host.ranges and not fault.html:
                start = int(asked_range.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
                status = 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if host.etag:
                self.send_header("ETag", host.etag)
            self.send_header("Content-Type", "text/html; charset=utf-8" if fault.html else "application/zip")
            length = fault.announce if fault.announce is not None else len(body) - start
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self._send(host, body[start:], fault)

        def _send_chunks(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in (body[:1], body[1:], b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

        def _send(self, host: Host, body: bytes, fault: Fault) -> None:
            body = body if fault.cut_after is None else body[: fault.cut_after]
            for begin in range(0, len(body), host.piece):
                self.wfile.write(body[begin : begin + host.piece])
                self.wfile.flush()
                time.sleep(host.pause)
            if fault.cut_after is not None and fault.stall:
                time.sleep(fault.stall)
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    return Handler
