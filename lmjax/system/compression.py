"""The bytes of a plain or compressed file, in blocks of bounded size.

The ending of the name selects the compression: .gz, .bz2, .xz or .zst.
The size of a block does not depend on the ratio of the compression. The memory of a decoder is at most its window,
which is limited to `WINDOW`.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lmjax.config.errors import UserError, one_line
from lmjax.config.regular_files import open_regular

PACKED = (".gz", ".bz2", ".xz", ".zst")
BLOCK = 1 << 20  # bytes read at once
WINDOW = 1 << 31  # bytes that a decoder may look back, as in `zstd --long=31`

# A block of zstd has at least 4 bytes and at most 128 kB of content: the content of a slice has at most 32 MB.
_ZST_SLICE = 1 << 10

_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor


def packing(path: Path) -> str:
    """Return the ending of a compressed file in lower case; empty for another file."""
    return ending if (ending := path.suffix.lower()) in PACKED else ""


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in blocks.

    Raises:
        UserError: The file is unreadable, damaged or truncated, or needs a larger window.
    """
    try:
        if packing(path) and path.stat().st_size == 0:
            raise EOFError("it has no content")
        yield from _UNPACK[packing(path)](path)
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, _Damaged) as error:
        raise UserError(f"cannot unpack '{path}': {one_line(error)}; compress or copy it again") from None
    except MemoryError:
        raise UserError(f"cannot read '{path}': it needs more memory than there is") from None
    except (OSError, ValueError) as error:  # ValueError: of a name with a NUL character
        raise UserError(f"cannot read '{path}': {getattr(error, 'strerror', None) or one_line(error)}") from None


class _Damaged(Exception):
    """Compressed content that cannot be decoded."""


def _plain(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            yield block


def _gz(path: Path) -> Iterator[bytes]:
    with open_regular(path) as packed, gzip.GzipFile(fileobj=packed) as file:
        while block := file.read(BLOCK):
            yield block


def _bz2(path: Path) -> Iterator[bytes]:
    return _streams(path, bz2.BZ2Decompressor)


def _xz(path: Path) -> Iterator[bytes]:
    # Between two streams there may be zero bytes, 4 or a multiple of it.
    return _streams(path, lambda: lzma.LZMADecompressor(memlimit=WINDOW), padding=b"\0")


def _streams(path: Path, new: Callable[[], _Decompressor], padding: bytes = b"") -> Iterator[bytes]:
    """Yield the content of compressed streams, one after another."""
    decompressor: _Decompressor | None = None
    with open_regular(path) as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            data = block
            while data or (decompressor and not decompressor.needs_input):
                if decompressor is None and not (data := data.lstrip(padding) if padding else data):
                    break
                decompressor = decompressor or new()
                yield _decompress(decompressor, data)
                data = decompressor.unused_data if decompressor.eof else b""
                decompressor = None if decompressor.eof else decompressor
    if decompressor is not None:
        raise EOFError("the compressed file is cut short")


def _decompress(decompressor: _Decompressor, data: bytes) -> bytes:
    try:
        return decompressor.decompress(data, BLOCK)
    except (OSError, ValueError) as error:  # of bz2
        raise _Damaged(one_line(error)) from None


def _zst(path: Path) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    frame = None
    for data in _slices(path, _ZST_SLICE):
        while data:  # only the frame object tells a complete frame from a truncated one
            frame = frame or decompressor.decompressobj()
            try:
                content = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise _Damaged(one_line(error)) from None
            yield from (content[at : at + BLOCK] for at in range(0, len(content), BLOCK))
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the compressed file is cut short")


def _slices(path: Path, size: int) -> Iterator[bytes]:
    return (block[start : start + size] for block in _plain(path) for start in range(0, len(block), size))


_UNPACK: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "": _plain,
    ".gz": _gz,
    ".bz2": _bz2,
    ".xz": _xz,
    ".zst": _zst,
}
