"""Files of text as documents and pieces of documents, in bounded memory.

A piece is a part of at most about a million characters of one document: `(text, begins_document)`. Pieces are
cut where byte-level BPE tokenizes both sides as it would the complete text.
"""

import codecs
import difflib
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lmjax.config import UserError

BLOCK = 1 << 20  # bytes read at once
PIECE = 1 << 19  # characters; a piece has up to twice as many

# GPT-2's expression leaves the last blank before a word to that word, and splits "\r\n" in two; GPT-4's and Llama 3's
# keep line breaks together and with the punctuation before them, GPT-4o's also with a slash after them. All of them
# agree that a text may be cut after one line break between a visible character and a letter or digit, and before a
# single space between letters.
_CUTS = (re.compile(r"(?<=\S)\n(?=[^\W_])"), re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])"), re.compile(r"\n"))
_SEPARATORS = {"paragraph": re.compile(r"\n(?:[^\S\n]*\n)+"), "line": re.compile(r"\n")}
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


def missing(path: Path) -> UserError:
    """Return the error for a missing path, with the most similar existing name."""
    if not path.parent.is_dir():
        return UserError(f"no file or folder '{path}': the folder '{path.parent}' does not exist")
    near = difflib.get_close_matches(path.name, sorted(item.name for item in path.parent.iterdir()), 1)
    return UserError(f"no file or folder '{path}'" + (f"; did you mean '{path.parent / near[0]}'?" if near else ""))


def read(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, plain or .gz or .zst, in blocks.

    Raises:
        UserError: The file is unreadable, damaged or truncated.
    """
    try:
        if path.suffix == ".zst":
            yield from _unpack_zst(path)
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"cannot unpack '{path}': {error}") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None


def _unpack_zst(path: Path) -> Iterator[bytes]:
    import zstandard

    frame = None
    with path.open("rb") as file:
        while block := file.read(BLOCK // 16):
            while block:  # a file may hold several frames; only the frame object tells a whole from a cut one
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(block)
                except zstandard.ZstdError as error:
                    raise UserError(f"cannot unpack '{path}': {error}") from None
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the compressed file is cut short")


def decode(blocks: Iterable[bytes], path: Path) -> Iterator[str]:
    """Decode blocks of bytes as UTF-8.

    Raises:
        UserError: A byte is not UTF-8; the message names the file and the offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    seen = 0
    for block in blocks:
        start = seen - len(decoder.getstate()[0])
        yield _decode(decoder, block, start, path)
        seen += len(block)
    yield _decode(decoder, b"", seen - len(decoder.getstate()[0]), path, final=True)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, start: int, path: Path, final: bool = False) -> str:
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise UserError(
            f"'{path}' is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {start + error.start}"
        ) from None


def lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yield complete lines without their line breaks."""
    rest: list[str] = []  # joined only at a line break, so that one long line costs no more than its length
    for block in blocks:
        first, *others = block.split("\n")
        rest.append(first)
        for line in others:
            yield "".join(rest)
            rest = [line]
    if last := "".join(rest):
        yield last


def documents(blocks: Iterable[str], document: str) -> Iterator[tuple[str, bool]]:
    """Yield plain text as pieces of documents.

    `file` does not change the text. `line` and `paragraph` normalize line breaks to a newline, and drop the blank lines
    that separate documents and the white space at the end of a document.
    """
    if document == "file":
        yield from pieces(blocks)
        return
    separator, newlines = _SEPARATORS[document], io.IncrementalNewlineDecoder(None, translate=True)
    rest, begins = "", True
    for block in blocks:
        *whole, rest = separator.split(rest + newlines.decode(block))
        for text in whole:
            yield from _document(text, begins)
            begins = True
        rest = _BLANK_LINES.sub("", rest) if begins else rest
        while len(rest) >= 2 * PIECE:
            at = _cut(rest, 0, PIECE)
            yield rest[:at], begins
            rest, begins = rest[at:], False
    yield from _document(rest + newlines.decode("", final=True), begins)


def _document(text: str, begins: bool) -> Iterator[tuple[str, bool]]:
    """Yield the last or only part of a document, without surrounding blank lines."""
    text = (_BLANK_LINES.sub("", text) if begins else text).rstrip()
    for piece, first in pieces([text]):
        yield piece, begins and first


def pieces(blocks: Iterable[str], size: int = 0) -> Iterator[tuple[str, bool]]:
    """Yield a document as pieces of at least `size` (PIECE) characters, which concatenate to the text."""
    size = size or PIECE
    rest, begins = "", True
    for block in blocks:
        rest, start = rest + block, 0
        while len(rest) - start >= 2 * size:
            end = _cut(rest, start, size)
            yield rest[start:end], begins
            start, begins = end, False
        rest = rest[start:]
    if rest:
        yield rest, begins


def _cut(text: str, start: int, size: int) -> int:
    """Where a piece that begins at `start` ends: at the first good place (see `_CUTS`) after `size` characters.

    Without one (no line break and no space between letters in half a million characters) it is cut at 2 size, which may
    cost one token. What lies beyond 2 size has no say, so that the cut does not depend on the blocks.
    """
    for place in _CUTS:
        if found := place.search(text, start + size, start + 2 * size):
            return found.end()
    return start + 2 * size
