"""Opening of files that other people made. Imports no JAX.

A name may lead to a pipe, which blocks the reader until somebody writes, to a device without an end, or to a file
whose content is almost only a hole. All are refused with an OSError whose `strerror` says what the file is.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

LARGEST = 1 << 30  # bytes of a file that is read at once, unless a caller has a lower limit
HOLES = 1 << 30  # bytes without content in a file; they cost nothing to send, but are read as zeros


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file to read its bytes; what a link leads to counts.

    Raises:
        OSError: It cannot be opened, is a pipe, socket or device, or has more than `HOLES` bytes without content.
    """
    return open(path, "rb", opener=_opened)


def read_regular(path: str | Path, *, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file, of the size that it has now.

    Raises:
        OSError: As for `open_regular`, or the file has more than `largest` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
        return file.read(size)


def _opened(path: str, flags: int) -> int:
    """The descriptor of a regular file; opening a pipe does not wait for its writer."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a regular file", path)
        if status.st_size > HOLES and _holes(descriptor, status.st_size) > HOLES:
            raise OSError(errno.EFBIG, f"more than {HOLES:,} bytes of it have no content (a sparse file)", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holes(descriptor: int, size: int) -> int:
    """Count the bytes without content; 0 where the system cannot tell."""
    if not hasattr(os, "SEEK_DATA"):
        return 0
    holes, end = 0, 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:  # no more content, or a file system without holes
            holes += size - end if error.errno == errno.ENXIO else 0
            break
        holes += start - end
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return holes
