"""Text as documents and pieces of documents, in bounded memory.

A piece is a part of at most about a million characters of one document: `(text, begins_document)`. Pieces are
cut where byte-level BPE tokenizes both sides as it would the complete text.
"""

import io
import re
from collections.abc import Iterable, Iterator

PIECE = 1 << 19  # characters; a piece has up to twice as many

# GPT-2's expression leaves the last blank before a word to that word, and splits "\r\n" in two; GPT-4's and Llama 3's
# keep line breaks together and with the punctuation before them, GPT-4o's also with a slash after them. All of them
# agree that a text may be cut after one line break between a visible character and a letter or digit, and before a
# single space between letters.
_CUTS = (re.compile(r"(?<=\S)\n(?=[^\W_])"), re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])"), re.compile(r"\n"))
_SEPARATORS = {"paragraph": re.compile(r"\n(?:[^\S\n]*\n)+"), "line": re.compile(r"\n")}
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


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
    """Yield a document as consecutive pieces of at least `size` (PIECE) characters."""
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
    """The end of a piece: the first good place (see `_CUTS`) after `size` characters.

    Without one (no line break and no space between letters in half a million characters) it is cut at 2 size, which may
    cost one token. What lies beyond 2 size has no say, so that the cut does not depend on the blocks.
    """
    for place in _CUTS:
        if found := place.search(text, start + size, start + 2 * size):
            return found.end()
    return start + 2 * size
