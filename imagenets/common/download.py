"""Downloads over bad networks: resumed, retried, and refused if they cannot be right."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import requests

from imagenets.common.disk_space import check_room
from imagenets.common.errors import InputError
from imagenets.common.progress import Show, Warn, no_bar, no_warning

CHUNK = 1 << 16  # bytes; a broken connection loses at most this


# How long a download is tried.
ATTEMPTS = 4  # in a row without a new byte
FIRST_WAIT = 1.0  # seconds, doubled from attempt to attempt
TIME_OUTS = (15.0, 60.0)  # seconds to connect, and without a byte


@dataclass(frozen=True)
class _Version:
    """What distinguishes one version of a remote file from another."""

    url: str
    validator: str | None  # ETag, else Last-Modified
    length: int | None  # bytes of the whole file


class _PassingError(Exception):
    """A failure that may pass: try again."""


def download(
    url: str,
    target: Path,
    *,
    zip_expected: bool = False,
    show: Show = no_bar,
    warn: Warn = no_warning,
) -> None:
    """Download ``url`` to ``target``, which appears only when it is whole; its folder must exist.

    Until then the bytes lie in ``target.part``, and ``target.part.json`` records which version of the remote
    file they belong to. A later call resumes there with a Range request, and starts again if the server does
    not support that (200), or if length or ETag have changed. Time-outs, broken connections and answers 5xx
    are retried with growing waits. Proxies are those of the environment, as in requests.

    Raises InputError (the URL and the reason) on answers 4xx, on a web page instead of a ZIP, if the disk is
    too small, and if all attempts fail.
    """
    part = target.with_name(target.name + ".part")
    failures = furthest = 0
    with requests.Session() as session:
        while True:
            try:
                _one_attempt(session, url, part, zip_expected, show)
                break
            except _PassingError as error:
                reached = _size(part)
                failures = 1 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures >= ATTEMPTS:
                    raise InputError(f"cannot download {url}: {error}") from error
                wait = FIRST_WAIT * 2 ** (failures - 1)
                warn(f"{url}: {error}; trying again in {wait:g} s")
                time.sleep(wait)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    _state(part).unlink()


def discard(target: Path) -> None:
    """Remove what a download to ``target`` left behind, ``target`` itself too."""
    for path in leftovers(target):
        path.unlink()


def leftovers(target: Path) -> list[Path]:
    """What a download to ``target`` left behind, whole or not."""
    return [path for path in places(target) if os.path.lexists(path)]


def places(target: Path) -> list[Path]:
    """All files that a download to ``target`` writes."""
    part = target.with_name(target.name + ".part")
    return [target, part, _state(part)]


def _one_attempt(session: requests.Session, url: str, part: Path, zip_expected: bool, show: Show) -> None:
    """Get the rest of ``part``. Raises _PassingError if another attempt may succeed."""
    known = _read_state(part, url)
    have = _size(part) if known else 0
    if known and have == known.length:
        return
    headers = {"Accept-Encoding": "identity"}  # or lengths and ranges would be those of a compressed form
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIME_OUTS) as response:
            if response.status_code == 416 and have:
                part.unlink()
                raise _PassingError("the server has no more bytes than we hold, starting again")
            _refuse(response, url, zip_expected)
            version = _version(response, url)
            begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if response.status_code == 206 and not (version == known and begins):
                part.unlink(missing_ok=True)
                raise _PassingError("the file has changed on the server, starting again")
            if response.status_code != 206:
                have = 0
                part.unlink(missing_ok=True)  # the old bytes are not of the version that is written now
                with _opened_here(_state(part), "wb") as file:
                    file.write(json.dumps(asdict(version)).encode())
            _receive(response, part, have, version.length, zip_expected, show)
    except (requests.exceptions.SSLError, requests.exceptions.InvalidSchema) as error:
        raise InputError(f"cannot download {url}: {error}") from error
    except (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise _PassingError(_reason(error)) from error
    except (requests.RequestException, ValueError) as error:  # ValueError: sent on to what is no URL
        raise InputError(f"cannot download {url}: {error}") from error
    if version.length is not None and _size(part) != version.length:
        came = _size(part)
        if came > version.length:
            part.unlink()
        raise _PassingError(f"{came} of {version.length} bytes received")


def _receive(
    response: requests.Response, part: Path, have: int, length: int | None, zip_expected: bool, show: Show
) -> None:
    """Append the answer's body to ``part``, which has ``have`` bytes."""
    if length is not None:
        check_room(part.parent, length - have, f"the download of {response.url}")
    name = part.name.removesuffix(".part").lstrip(".")
    with (
        _opened_here(part, "ab" if have else "wb") as file,
        show(name, length, unit="B", done=have) as advance,
    ):
        for chunk in response.iter_content(CHUNK):
            if zip_expected and not have and chunk[:2] not in (b"PK", b"P"):  # "P" may come alone
                part.unlink()
                _state(part).unlink()
                raise InputError(f"{response.url} is not a ZIP: it begins with {chunk[:40]!r}")
            have += file.write(chunk)
            file.flush()  # these bytes count for a resume, however the process ends
            advance(len(chunk))


def _opened_here(path: Path, mode: str) -> IO[bytes]:
    """Open for writing, but not through a link, which could lead to somebody's file."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def _refuse(response: requests.Response, url: str, zip_expected: bool) -> None:
    status = f"{response.status_code} {response.reason}"
    if response.status_code >= 500:
        raise _PassingError(f"the server answered {status}")
    if response.status_code not in (200, 206):
        raise InputError(f"cannot download {url}: the server answered {status}")
    if zip_expected and response.headers.get("Content-Type", "").startswith("text/html"):
        raise InputError(f"cannot download {url}: the server sent a web page, not a ZIP")


def _version(response: requests.Response, url: str) -> _Version:
    headers = response.headers
    validator = headers.get("ETag") or headers.get("Last-Modified")
    length: str | None = headers.get("Content-Length")
    if response.status_code == 206:
        length = headers.get("Content-Range", "").rpartition("/")[2]
    if headers.get("Content-Encoding", "identity") != "identity":
        length = None  # it counts compressed bytes
    return _Version(url, validator, int(length) if length and length.isdecimal() else None)


def _reason(error: Exception) -> str:
    """Return the innermost cause: requests wraps it at least twice."""
    inner: Any = error
    while True:
        deeper = getattr(inner, "reason", None) or next(
            (argument for argument in getattr(inner, "args", ()) if isinstance(argument, Exception)), None
        )
        if not isinstance(deeper, Exception):
            return str(inner) or type(inner).__name__
        inner = deeper


def _state(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path, url: str) -> _Version | None:
    try:
        version = _Version(**json.loads(_state(part).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    # Without a length, nothing shows whether the rest belongs to the part we have.
    return version if version.url == url and version.length else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
