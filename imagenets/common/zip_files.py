"""Reading what stands in somebody else's ZIP, and never more than its directory announces."""

from __future__ import annotations

import struct
import zipfile
import zlib

# What reading a damaged ZIP raises: ValueError and struct.error come from offsets.
BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OSError),
)

_PIECE = 1 << 16  # bytes that are unpacked at a time


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read one member, its CRC held, in the memory that the archive's directory says it needs.

    ``ZipFile.read`` unpacks a member to its end first, which may be a thousand times what the directory
    says; so do the decompressors of bz2 and lzma with all they are given, which is why such members are
    refused. Raises one of BROKEN_ZIP.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError("compressed in an unusual way; store or deflate it")
    with archive.open(info) as file:
        return b"".join(iter(lambda: file.read(_PIECE), b""))
