"""Readers of text, tables and hub datasets, in bounded memory.

An error names the file and the line or row.

    .txt .text .md .rst                   text: blocks of characters, or lines
    .jsonl .ndjson .json .csv .tsv        tables, one object a row
    .parquet .arrow                       tables with their own compression

All but the last two may also be compressed (.gz, .zst). Everything is read as data and nothing is executed.
"""

import codecs
import csv
import difflib
import gzip
import json
import typing
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.errors import UserError

if typing.TYPE_CHECKING:
    import pyarrow

Row = tuple[str, Any]  # the location, for messages, and the row

TEXT = (".txt", ".text", ".md", ".rst")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".gz", ".zst")
_BINARY = (".parquet", ".arrow")

BLOCK = 1 << 20  # bytes read at once
BATCH = 1000  # rows of a binary table converted at once
_CELL = (1 << 31) - 1  # bytes of a cell of csv: as many as the csv module can count everywhere


def kind(path: Path) -> str:
    """Return the file ending that selects the reader, without that of a compression.

    It is empty if no reader fits.
    """
    packed = path.suffix in PACKED
    ending = Path(path.stem).suffix if packed else path.suffix
    return ending if ending in TEXT + TABLES and not (packed and ending in _BINARY) else ""


def endings(kinds: Sequence[str]) -> str:
    """Return the endings that a file of one of these kinds may have, for messages."""
    return ", ".join(kinds) + " (or these and .gz or .zst; parquet and arrow only as they are)"


def missing(path: Path) -> UserError:
    """Return the error for a missing path, with the most similar existing name."""
    if not path.parent.is_dir():
        return UserError(f"no file or folder '{path}': the folder '{path.parent}' does not exist")
    near = difflib.get_close_matches(path.name, sorted(item.name for item in path.parent.iterdir()), 1)
    return UserError(f"no file or folder '{path}'" + (f"; did you mean '{path.parent / near[0]}'?" if near else ""))


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters of it."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 300 else f"{text[:300]} ..."


# ---- Rows -----------------------------------------------------------------------------------------------------------


def rows(path: Path, *, columns: Iterable[str] = (), longest: int = 0, largest: int = 0) -> Iterator[Row]:
    """Yield the rows of a table in order, each with its location.

    A row is an object by column; JSON may hold other values too. Cells of csv and tsv are text. A .json file holds one
    row a line, one array of rows, or one row.

    Args:
        path: The file, of one of `TABLES`.
        columns: Read only these columns of a binary table, provided that it has all of them (empty: all).
        longest: Maximum number of bytes of a line (0: no limit).
        largest: Maximum number of bytes of JSON that is not one row a line, which is read at once (0: no limit).

    Raises:
        UserError: The file is unreadable, damaged or malformed, or exceeds a limit.
    """
    ending = kind(path)
    if ending in (".jsonl", ".ndjson"):
        return _json_lines(path, longest)
    if ending == ".json":
        return _json(path, longest, largest)
    if ending in (".csv", ".tsv"):
        return _delimited(path, longest, tabs=ending == ".tsv")
    if ending in _BINARY:
        return _binary(path, ending.removeprefix("."), tuple(columns))
    raise UserError(f"'{path}': cannot tell what this file is; its name must end in {endings(TABLES)}")


def _json_lines(path: Path, longest: int) -> Iterator[Row]:
    for where, line in lines(path, longest=longest):
        if text := line.removeprefix("\ufeff").strip():
            yield where, parse_json(text, where)


def _json(path: Path, longest: int, largest: int) -> Iterator[Row]:
    start, *_ = next(blocks(path), b"").split(b"\n", 1)
    first = start.decode(errors="replace").removeprefix("\ufeff").strip()
    if not first.startswith("[") and first != "{":
        yield from _json_lines(path, longest)
        return
    tree = parse_json(read_text(path, largest=largest), f"'{path}'")
    for number, row in enumerate(tree if isinstance(tree, list) else [tree], 1):
        yield f"'{path}', row {number}", row


def _delimited(path: Path, longest: int, *, tabs: bool) -> Iterator[Row]:
    """Yield rows of comma-separated cells with quotes (RFC 4180), or of tab-separated cells."""
    csv.field_size_limit(_CELL)  # of the process; the module's own limit is 128 kB
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    size, where = 0, ""

    def content() -> Iterator[str]:
        nonlocal size
        for number, (_, line) in enumerate(lines(path, longest=longest)):
            size += len(line)
            if 0 < longest < size:  # a quote that is never closed would take everything after it
                raise UserError(f"{where} has more than {longest} bytes")
            yield f"{line if number else line.removeprefix(chr(0xFEFF))}\n"

    reader = csv.reader(content(), **options)
    header: list[str] = []
    while True:
        size, where = 0, f"'{path}', line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{where} is not {'tsv' if tabs else 'csv'}: {one_line(error)}") from None
        if cells is None:
            return
        if not cells:
            continue  # a blank line
        if not header:
            header = cells
            if twice := {name for name in header if header.count(name) > 1}:
                raise UserError(f"{where}: the column '{min(twice)}' occurs twice; give every column its own name")
        elif len(cells) != len(header):
            raise UserError(f"{where} has {len(cells)} cells, the header has {len(header)} columns")
        else:
            yield where, dict(zip(header, cells, strict=True))


def _binary(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in (_parquet if name == "parquet" else _arrow)(path, columns):
            for row in batch.to_pylist():
                number += 1
                yield f"'{path}', row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # also of a date out of range
        raise UserError(f"cannot read '{path}' as {name}: {one_line(error)}") from None


def _parquet(path: Path, columns: tuple[str, ...]) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        known = set(columns) <= set(file.schema_arrow.names)
        yield from file.iter_batches(batch_size=BATCH, columns=[*columns] if columns and known else None)


def _arrow(path: Path, columns: tuple[str, ...]) -> "Iterator[pyarrow.RecordBatch]":
    """Yield the batches of an Arrow IPC file or stream (`datasets` writes streams)."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        of_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = (pyarrow.ipc.open_file if of_file else pyarrow.ipc.open_stream)(source)
        known = set(columns) <= set(reader.schema.names)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if of_file else reader
        for batch in batches:
            selected = batch.select([*columns]) if columns and known else batch
            selected.validate(full=True)  # a damaged batch could refer to memory outside of it
            yield from (selected.slice(start, BATCH) for start in range(0, selected.num_rows, BATCH))


def hub(name: str, subset: str = "", *, splits: Sequence[str] = ("train",)) -> Iterator[Row]:
    """Yield the rows of a dataset of the hub or in a folder, streamed.

    Args:
        name: The dataset.
        subset: The subset (empty: the default one).
        splits: The first of these splits that the dataset has is read.

    Raises:
        UserError: The dataset cannot be read, or has none of the splits.
    """
    import datasets

    try:
        found = typing.cast(dict[str, Iterable[Any]], datasets.load_dataset(name, subset or None, streaming=True))
        split = next((split for split in splits if split in found), None)
        if split is None:
            raise UserError(f"it has no split '{splits[0]}', only {', '.join(map(str, found))}")
        yield from ((f"hub:{name}, {split} row {number}", row) for number, row in enumerate(found[split], 1))
    except Exception as error:  # the hub's client has a dozen kinds: not found, offline, gated, connection lost
        raise UserError(f"cannot read the hub dataset '{name}': {one_line(error)}") from None


# ---- Text -----------------------------------------------------------------------------------------------------------


def parse_json(text: str, where: str) -> Any:
    """Return the value of JSON.

    Raises:
        UserError: The text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise UserError(f"{where} is not JSON: {one_line(error)}") from None


def read_text(path: Path, *, largest: int = 0) -> str:
    """Return the text of a file.

    Args:
        path: The file.
        largest: Maximum number of bytes (0: no limit).

    Raises:
        UserError: The file is unreadable, damaged, too large, or not UTF-8.
    """
    content = bytearray()
    for block in blocks(path):
        content += block
        if 0 < largest < len(content):
            raise UserError(
                f"'{path}' has more than {largest} bytes; write its rows as JSON lines, which are read one by one"
            )
    return _utf8(bytes(content), f"'{path}'").removeprefix("\ufeff")


def lines(path: Path, *, longest: int = 0) -> Iterator[tuple[str, str]]:
    r"""Yield (location, line) for each line of a file, without its "\n".

    Args:
        path: The file.
        longest: Maximum number of bytes of a line (0: no limit).

    Raises:
        UserError: The file is unreadable or damaged, or a line is too long or not UTF-8.
    """
    for number, line in enumerate(_lines(blocks(path), longest), 1):
        where = f"'{path}', line {number}"
        if 0 < longest < len(line):
            raise UserError(f"{where} has more than {longest} bytes")
        yield where, _utf8(line, where)


def _lines(content: Iterable[bytes], longest: int) -> Iterator[bytes]:
    """Yield the lines; the last one is the first part of a line that exceeds the limit."""
    rest: list[bytes] = []  # joined only at a line break, so that a long line costs no more than its length
    for block in content:
        first, *others = block.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
        if 0 < longest < sum(map(len, rest)):
            break
    if last := b"".join(rest):
        yield last


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: byte 0x{content[error.start]:02x} at {error.start}") from None


def decode(content: Iterable[bytes], path: Path) -> Iterator[str]:
    """Decode blocks of bytes of a file as UTF-8.

    Raises:
        UserError: A byte is not UTF-8; the message names the file and the offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    seen = 0
    for block in content:
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


# ---- Bytes ----------------------------------------------------------------------------------------------------------


def blocks(path: Path) -> Iterator[bytes]:
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
            while block:  # a file may hold several frames; only the frame object tells a complete from a truncated one
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(block)
                except zstandard.ZstdError as error:
                    raise UserError(f"cannot unpack '{path}': {error}") from None
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the compressed file is cut short")
