"""Reading members of foreign ZIP files, never more than the size in the archive's directory."""

from __future__ import annotations

import struct
import zipfile
import zlib

# Errors of reading a damaged ZIP: ValueError and struct.error come from offsets.
BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OSError),
)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read one member, check its CRC, and use no more memory than the size in the archive's directory.

    ``ZipFile.read`` unpacks a member to its end, which may be a thousand times that size, and so do the
    decompressors of bz2 and lzma: such members are refused. Raises one of BROKEN_ZIP.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError("compressed in an unusual way; store or deflate it")
    with archive.open(info) as file:
        return file.read(info.file_size)
