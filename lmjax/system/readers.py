"""Readers of text and tables, in bounded memory.

An error names the file and the line or row.

    .txt .text .md .rst                   text: blocks of characters, or lines
    .jsonl .ndjson .json .csv .tsv        tables, one object a row
    .parquet .arrow                       tables with their own compression

All but the last two may also be compressed (.gz, .bz2, .xz, .zst). Upper case does not matter. Everything is read as
data and nothing is executed.
"""

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, AnyStr, TypeVar, cast

from lmjax.config.encodings import UTF_8, codec
from lmjax.config.errors import UserError, one_line
from lmjax.config.json_text import LARGEST, UTF_16_AND_32, decode_utf8, parse_json
from lmjax.system import arrow_files
from lmjax.system.compression import PACKED, blocks, packing

T = TypeVar("T")
Row = tuple[str, Any]  # the location, for messages, and the row
Skip = Callable[[UserError], None]  # is given the error of a row that is left out

TEXT = (".txt", ".text", ".md", ".rst")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_BINARY = (".parquet", ".arrow")

LONGEST = 1 << 30  # bytes of a line, unless a caller has a lower limit
LARGEST_TABLE = 1 << 32  # bytes of a table of JSON that is read at once, unless a caller has a lower limit
BLANK_LINES = 1_000_000  # blank lines that a table may have more than rows: compressed, they cost nothing to send
_CELL = (1 << 31) - 1  # bytes of a cell of csv: as many as the csv module can count everywhere
_ENCODINGS = ", or, for data, name its encoding with data.encoding"


class BadRow(UserError):
    """A malformed row, without which the other rows can be read."""


def kind(path: Path) -> str:
    """Return the file ending that selects the reader, in lower case.

    It precedes the ending of a compression. It is empty if no reader fits.
    """
    packed = packing(path)
    ending = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return ending if ending in TEXT + TABLES and not (packed and ending in _BINARY) else ""


def endings(kinds: Sequence[str]) -> str:
    """Return the endings that a file of one of these kinds may have, for messages."""
    return f"{', '.join(kinds)} (or these and {', '.join(PACKED)}; parquet and arrow only as they are)"


# ---- Rows -----------------------------------------------------------------------------------------------------------


def rows(
    path: Path,
    *,
    columns: Iterable[str] = (),
    longest: int = LONGEST,
    largest: int = LARGEST_TABLE,
    encoding: str = UTF_8,
    skip: Skip | None = None,
) -> Iterator[Row]:
    """Yield the rows of a table in order, each with its location.

    A row is an object by column; JSON may hold other values too. Cells of csv and tsv are text. A .json file holds one
    row a line, one array of rows, or one row. An integer of JSON with thousands of digits is a `LongInteger`.

    Args:
        path: The file, of one of `TABLES`.
        columns: Read only these columns of a binary table, provided that it has all of them (empty: all).
        longest: Maximum number of bytes of a line (0: no limit).
        largest: Maximum number of bytes of JSON that is not one row a line, which is read at once (0: no limit). If it
            is lower than the default, also about the memory for the rows of a binary table.
        encoding: The encoding of the text.
        skip: Called with the error of a malformed row, which is left out (None: the error is raised).

    Raises:
        BadRow: A row is malformed.
        UserError: The file is unreadable, damaged or malformed, or exceeds a limit.
    """
    ending = kind(path)
    if ending in (".jsonl", ".ndjson"):
        return _within_memory(path, _json_lines(path, longest, encoding, skip))
    if ending == ".json":
        return _json(path, longest, largest, encoding, skip)
    if ending in (".csv", ".tsv"):
        return _within_memory(path, _delimited(path, longest, encoding, skip, tabs=ending == ".tsv"))
    if ending in _BINARY:
        return arrow_files.rows(path, tuple(columns), memory=largest if largest < LARGEST_TABLE else 0)
    raise UserError(f"'{path}': cannot tell what this file is; its name must end in {endings(TABLES)}")


def _json_lines(path: Path, longest: int, encoding: str, skip: Skip | None) -> Iterator[Row]:
    blank = 0  # blank lines less the others
    for where, line in lines(path, longest=longest, encoding=encoding, errors=_errors(skip)):
        if not line.removeprefix("\ufeff").strip():
            blank += 1
            _check_blank(blank, where)
            continue
        blank -= 1
        try:
            value = parse_json(line, where, largest=0, long_integers=True)
        except UserError as error:
            _leave_out(BadRow(str(error)), skip)
            continue
        line = ""  # a long line is not kept next to its value
        yield where, value


def _json(path: Path, longest: int, largest: int, encoding: str, skip: Skip | None) -> Iterator[Row]:
    start = ""
    for block in decode(blocks(path), path, encoding=encoding, errors=_errors(skip)):
        if start := block.lstrip()[: 1 << 10]:
            break
    if not start.startswith("[") and start.split("\n", 1)[0].strip() != "{":
        yield from _json_lines(path, longest, encoding, skip)
        return
    text = read_text(path, largest=largest, encoding=encoding, errors=_errors(skip))
    tree = parse_json(text, f"'{path}'", largest=0, long_integers=True)
    for number, row in enumerate(tree if isinstance(tree, list) else [tree], 1):
        yield f"'{path}', row {number}", row


def _delimited(path: Path, longest: int, encoding: str, skip: Skip | None, *, tabs: bool) -> Iterator[Row]:
    """Yield rows of comma-separated cells with quotes (RFC 4180), or of tab-separated cells."""
    csv.field_size_limit(_CELL)  # of the process; the module's own limit is 128 kB
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    size, where = 0, ""

    def content() -> Iterator[str]:
        nonlocal size
        for _, line in lines(path, longest=longest, encoding=encoding, errors=_errors(skip)):
            size += len(line)
            if 0 < longest < size:  # a quote that is never closed would take everything after it
                raise UserError(f"{where} has more than {longest} bytes; close the quotes of its cells")
            yield f"{line}\n"

    reader = csv.reader(content(), **options)
    header: list[str] = []
    blank = 0
    while True:
        size, where = 0, f"'{path}', line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = f"{where} is not {'tsv' if tabs else 'csv'}: {one_line(error)}"
            if not header or "unexpected end" in reason:  # of a quote that takes all other rows
                raise UserError(f"{reason}; close the quotes of its cells") from None
            _leave_out(BadRow(reason), skip)
            continue
        if cells is None:
            return
        blank += -1 if cells else 1
        if not cells:
            _check_blank(blank, where)
            continue
        if header and len(cells) != len(header):
            advice = "" if tabs else "; write a cell that has a comma in double quotes"
            reason = f"{where} has {len(cells)} cells, the header has {len(header)} columns{advice}"
            _leave_out(BadRow(reason), skip)
        elif header:
            yield where, dict(zip(header, cells, strict=True))
        else:
            header = cells
            if twice := {name for name in header if header.count(name) > 1}:
                raise UserError(f"{where}: the column '{min(twice)}' occurs twice; give every column its own name")


def _check_blank(blank: int, where: str) -> None:
    if blank > BLANK_LINES:
        raise UserError(f"{where}: {BLANK_LINES:,} more lines are blank than are not; remove the blank lines")


def _errors(skip: Skip | None) -> str:
    """How bytes are decoded that are not text."""
    # Where rows may be left out, as lone surrogates: the row that has them in a column to read is a bad record.
    return "strict" if skip is None else "surrogateescape"


def _leave_out(error: BadRow, skip: Skip | None) -> None:
    if skip is None:
        raise error from None
    skip(error)


# ---- Text -----------------------------------------------------------------------------------------------------------


def read_json(path: Path, *, largest: int = LARGEST, **bounds: Any) -> Any:
    """Return the value of a file of JSON, plain or compressed.

    Args:
        path: The file.
        largest: Maximum number of bytes (0: no limit).
        **bounds: Other bounds of `parse_json`.

    Raises:
        UserError: The file is unreadable, damaged, too large, or not JSON.
    """
    return parse_json(read_text(path, largest=largest), f"'{path}'", largest=0, **bounds)


def read_text(path: Path, *, largest: int = LARGEST, encoding: str = UTF_8, errors: str = "strict") -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        path: The file.
        largest: Maximum number of bytes (0: no limit).
        encoding: The encoding.
        errors: How bytes are decoded that are not text, as for `bytes.decode`.

    Raises:
        UserError: The file is unreadable, damaged, too large, or not text.
    """
    size = 0

    def bounded() -> Iterator[bytes]:
        nonlocal size
        for block in blocks(path):
            size += len(block)
            if 0 < largest < size:
                raise UserError(
                    f"'{path}' has more than {largest} bytes; write its rows as JSON lines, which are read one by one"
                )
            yield block

    try:
        return "".join(decode(bounded(), path, encoding=encoding, errors=errors))
    except MemoryError:
        raise _too_large(path) from None


def lines(
    path: Path, *, longest: int = LONGEST, encoding: str = UTF_8, errors: str = "strict"
) -> Iterator[tuple[str, str]]:
    r"""Yield (location, line) for each line of a file.

    A line has no "\n" and no byte order mark. At most two copies of it exist at once.

    Args:
        path: The file.
        longest: Maximum number of bytes of a line (0: no limit).
        encoding: The encoding.
        errors: How bytes are decoded that are not text, as for `bytes.decode`.

    Raises:
        UserError: The file is unreadable or damaged, or a line is too long or not text.
    """
    numbers = itertools.count(1)

    def line_of(content: bytes | str) -> tuple[str, str]:
        number = next(numbers)
        where = f"'{path}', line {number}"
        if 0 < longest < len(content):
            raise UserError(f"{where} has more than {longest} bytes; write shorter lines")
        text = content if isinstance(content, str) else _utf8(content, where, errors)
        return where, text.removeprefix("\ufeff") if number == 1 else text

    if codec(encoding).name == UTF_8:
        numbered = map(line_of, _lines(_without_utf_16(blocks(path), path), b"\n", longest))
    else:
        numbered = map(line_of, _lines(decode(blocks(path), path, encoding=encoding, errors=errors), "\n", longest))
    return _within_memory(path, numbered)


def _utf8(content: bytes, where: str, errors: str) -> str:
    try:
        return decode_utf8(content, where, errors=errors)
    except UserError as error:
        raise BadRow(f"{error}{_ENCODINGS}") from None


def _within_memory(path: Path, items: Iterable[T]) -> Iterator[T]:
    """Yield the items; say which file has one that does not fit in memory."""
    try:
        yield from items
    except MemoryError:
        raise _too_large(path) from None


def _too_large(path: Path) -> UserError:
    return UserError(f"cannot read '{path}': it needs more memory than there is; divide it, or write shorter lines")


def _lines(content: Iterable[AnyStr], newline: AnyStr, longest: int) -> Iterator[AnyStr]:
    """Yield the lines; the last one is the first part of a line that exceeds the limit."""
    join: Callable[[list[AnyStr]], AnyStr] = cast(Any, newline[:0]).join
    rest: list[AnyStr] = []  # joined only at a line break, so that a long line costs no more than its length
    size = 0
    for block in content:
        first, *others = block.split(newline)
        rest.append(first)
        size += len(first)
        for line in others:
            complete, rest = [join(rest)], [line]  # the parts are freed before the line is used
            yield complete.pop()
            size = len(line)
        if 0 < longest < size:
            break
    if size:
        complete, rest = [join(rest)], []
        yield complete.pop()


def decode(content: Iterable[bytes], path: Path, *, encoding: str = UTF_8, errors: str = "strict") -> Iterator[str]:
    """Decode blocks of bytes of a file, without a byte order mark.

    Raises:
        UserError: A byte is not text in this encoding; the message names the file and the offset.
    """
    info = codec(encoding)
    decoder = info.incrementaldecoder(errors)
    content = _without_utf_16(content, path) if info.name == UTF_8 else content
    seen, begins = 0, True
    for block in itertools.chain(content, [b""]):
        start = seen - len(decoder.getstate()[0])
        seen += len(block)
        try:
            text = decoder.decode(block, not block)
        except UnicodeDecodeError as error:
            byte, offset = error.object[error.start], start + error.start
            label = "UTF-8" if info.name == UTF_8 else info.name
            reason = f"'{path}' is not {label} text: byte 0x{byte:02x} at offset {offset}"
            raise UserError(f"{reason}; save it as UTF-8{_ENCODINGS}") from None
        except UnicodeError as error:
            reason = f"'{path}' is not {info.name} text: {one_line(error)}"
            raise UserError(f"{reason}; save it as UTF-8{_ENCODINGS}") from None
        yield text.removeprefix("\ufeff") if begins else text
        begins = begins and not text


def not_text(text: str) -> str:
    """Return what in a text is no character, and where; empty if there is nothing.

    It is a lone surrogate: half of a character, or a byte that could not be decoded.
    """
    if text.isascii():  # needs no copy
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character (a lone surrogate) or a byte that is not text at {error.start}"
    return ""


def _without_utf_16(content: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """Yield the same blocks; refuse UTF-16, which without a mark could be valid UTF-8."""
    first = True
    for block in content:
        if first and (block.startswith(UTF_16_AND_32) or _every_other_is_nul(block[:4096])):
            raise UserError(f"'{path}' is UTF-16 text: save it as UTF-8, or, for data, set data.encoding=utf-16")
        first = False
        yield block


def _every_other_is_nul(block: bytes) -> bool:
    fewer, more = sorted((block[::2].count(0), block[1::2].count(0)))
    return len(block) >= 4 and not fewer and 4 * more > len(block)
