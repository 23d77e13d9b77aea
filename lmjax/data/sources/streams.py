"""Sources of text: the embedded corpus, prompting tasks, local files, the hub.

Each source is one `datasets` stream of pieces.

Files are read by lmjax itself and handed to `datasets` as a stream: its own text loader changes line breaks, and its
JSON loader guesses types (a text that looks like a date becomes one) and cannot say which line is malformed.
"""

import json
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lmjax.config import AnyDataConfig, DataConfig, SourceConfig, UserError, extensions
from lmjax.config.encodings import UTF_8, codec
from lmjax.config.errors import nearest, one_line
from lmjax.data.sources import docstrings, duplicates, episodes, facts, text
from lmjax.system import hub, paths, readers
from lmjax.system.compression import blocks

if typing.TYPE_CHECKING:
    import datasets

T = typing.TypeVar("T")
Piece = tuple[str, bool]  # text, and whether a document begins with it

MOST_LISTED, LONGEST_LISTED = 10, 40  # names of columns in a message, and characters of each

_NAMED = 5  # files of an error
_ENDINGS = readers.endings(readers.TEXT + readers.TABLES)


def sources(data: DataConfig) -> tuple[SourceConfig, ...]:
    """Return the sources of a configuration: its mixture, or its only source."""
    return data.mixture or (SourceConfig(source=data.source, files=data.files),)


@dataclass
class Dropped:
    """Records left out: bad records, see `data.on_bad_record`, and rows without text."""

    #: Number of bad records.
    count: int = 0
    #: The error of the first one.
    first: str = ""
    #: Number of rows of a table whose text is empty or null.
    empty: int = 0
    #: Number of documents that occurred before, with `data.deduplicate`.
    duplicates: int = 0

    def __call__(self, error: UserError) -> None:
        """Count the record of an error."""
        self.first = self.first or str(error)
        self.count += 1

    def reset(self) -> None:
        """Begin a new pass over the records."""
        self.count, self.first, self.empty, self.duplicates = 0, "", 0, 0

    def note(self) -> str:
        """Return a line about what was left out; empty if nothing was."""
        return f"left out {self.count:,} bad records, first {self.first}" if self.count else ""

    def entry(self) -> dict[str, Any]:
        """Return the entry of a manifest: nothing if no record was left out."""
        bad = {"dropped": self.count, "first_dropped": self.first} if self.count else {}
        others = {"empty": self.empty, "duplicates": self.duplicates}
        return bad | {name: count for name, count in others.items() if count}


def documents(source: SourceConfig, data: DataConfig, *, dropped: Dropped | None = None) -> Iterator[Piece]:
    """Yield the source's text in order, as pieces (text, begins_document), in bounded memory.

    Args:
        source: The source.
        data: The data that it is a part of.
        dropped: Counts the bad records that `data.on_bad_record=skip` leaves out.

    Raises:
        UserError: A file is missing, unreadable or malformed, or a text field is missing.
    """
    for row in dataset(source, data, dropped=dropped):
        yield row["text"], row["begins"]


def texts(data: DataConfig, *, dropped: Dropped | None = None) -> Iterator[str]:
    """Yield the text of all sources, always from the source with the least text so far.

    `dropped` counts the bad records that are left out.
    """
    streams = [documents(source, data, dropped=dropped) for source in sources(data)]
    characters = dict.fromkeys(range(len(streams)), 0)  # read of each source that has not ended
    while characters:
        number = min(characters, key=lambda n: characters[n])
        piece = next(streams[number], None)
        if piece is None:
            del characters[number]
        else:
            characters[number] += len(piece[0])
            yield piece[0]


def dataset(source: SourceConfig, data: DataConfig, *, dropped: Dropped | None = None) -> "datasets.IterableDataset":
    """Return the pieces as a streaming dataset with the columns "text" and "begins"."""
    from datasets import IterableDataset
    from datasets.iterable_dataset import ExamplesIterable

    dropped = dropped or Dropped()
    pieces = _source(source, data, dropped).pieces

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        found = pieces()
        if data.deduplicate != "none":
            found = duplicates.without(found, data.deduplicate, dropped)
        yield from ((i, {"text": piece, "begins": begins}) for i, (piece, begins) in enumerate(found))

    # `IterableDataset.from_generator` would do, but it leaves a lock file a call in the user's Hugging Face cache.
    return IterableDataset(ExamplesIterable(rows, {}))  # pyright: ignore[reportArgumentType]


def fingerprint(source: SourceConfig, data: DataConfig) -> dict[str, Any]:
    """Identify the source's text without reading it, as a JSON value.

    Local files are identified by path, size and modification time. A hub dataset is identified by its name only: once
    prepared, it is not read again.
    """
    chosen = {} if data.deduplicate == "none" else {"deduplicate": duplicates.identity(data.deduplicate)}
    return _source(source, data).fingerprint() | chosen


def size(source: SourceConfig, data: DataConfig) -> int | None:
    """Return the bytes of text of plain text files in UTF-8; None for other sources."""
    files = listing(source.files).files
    is_plain = files and all(file.path.suffix.lower() in readers.TEXT for file in files)
    is_plain = is_plain and codec(data.encoding).name == UTF_8
    return sum(file.size for file in files) if is_plain else None


def listing(names: Iterable[str], *, key: str = "data.files") -> paths.Listing:
    """Resolve names, folders and patterns to files in a fixed order; see `paths.expand`.

    Raises:
        UserError: A name is empty or remote, stands for no file, or cannot be read.
    """
    return paths.expand(names, readers.kind, key=key, endings=_ENDINGS)


def files(names: Iterable[str]) -> list[Path]:
    """Return the paths of `listing`."""
    return [file.path for file in listing(names).files]


def notes(source: SourceConfig) -> list[str]:
    """Return what the names of the source's files leave out, a line for each reason."""
    return listing(source.files).notes()


def repeated(data: DataConfig) -> list[str]:
    """Return a line for each file that is in more than one source of the mixture."""
    seen, lines = set[str](), []
    for source in data.mixture:
        real = {file.real: file.path for file in listing(source.files, key="data.mixture").files}
        lines += [f"'{real[name]}' is in more than one source of data.mixture" for name in real if name in seen]
        seen |= real.keys()
    advice = ": text at the end of one source may be validation data in one and training data in the other"
    return [line + advice * (data.validation == "tail") for line in lines]


@dataclass(frozen=True)
class _Source:
    """How a source of text is identified and read."""

    #: Returns the identity of the text, a JSON value, without reading it.
    fingerprint: Callable[[], dict[str, Any]]
    #: Starts the stream of pieces.
    pieces: Callable[[], Iterator[Piece]]


def _source(source: SourceConfig, data: DataConfig, dropped: Dropped | None = None) -> _Source:
    """Select how a source is read: the only place that depends on its kind.

    Raises:
        UserError: A file is missing, or the source is unknown.
    """
    dropped = dropped or Dropped()
    skip = None if data.on_bad_record == "error" else dropped
    field = source.text_field or data.text_field
    if source.files:
        entries = listing(source.files, key="data.mixture" if data.mixture else "data.files").files
        codec(data.encoding)
        return _Source(
            lambda: {
                "files": [[entry.real, entry.size, entry.mtime_ns] for entry in entries],
                "document": data.document,
                "text_field": field,
                **file_settings(data),
            },
            lambda: advised(_files([entry.path for entry in entries], data, field, dropped)),
        )
    if source.source == "docstrings":
        return _Source(docstrings.fingerprint, lambda: _pieces_of(docstrings.docstrings()["text"]))
    if source.source == "numbers_and_dates":
        return _Source(facts.fingerprint, lambda: _pieces_of(facts.documents()))
    if source.source == "in_context":
        return _Source(
            lambda: episodes.fingerprint(data.in_context), lambda: _pieces_of(episodes.documents(data.in_context))
        )
    if registered := extensions.find("data.source", source.source):
        read, identity = registered.value
        where = f"data.source={source.source}"
        return _Source(
            lambda: {"registered": [source.source, registered.sha256, registered_identity(where, identity, data)]},
            lambda: _column(_registered(where, read, data), "text", dropped),
        )
    name = _hub_name(source.source)
    return _Source(
        lambda: {"hub": name, "text_field": field, **bad_record_setting(data)},
        lambda: advised(_column(_hub(*name), field, dropped, skip)),
    )


def advised(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items; the error of a bad record also says how to leave such records out."""
    try:
        yield from items
    except readers.BadRow as error:
        raise UserError(f"{error}; data.on_bad_record=skip leaves such records out") from None


def file_settings(data: AnyDataConfig) -> dict[str, Any]:
    """Return the settings of how files are read that differ from the default, for an identity."""
    encoding = codec(data.encoding).name
    return ({} if encoding == UTF_8 else {"encoding": encoding}) | bad_record_setting(data)


def bad_record_setting(data: AnyDataConfig) -> dict[str, Any]:
    """Return `data.on_bad_record`, for an identity, where it differs from the default."""
    return {} if data.on_bad_record == "error" else {"on_bad_record": data.on_bad_record}


def _pieces_of(texts: Iterable[str]) -> Iterator[Piece]:
    return (piece for document in texts for piece in text.pieces([document]))


def _files(paths: Sequence[Path], data: DataConfig, field: str, dropped: Dropped) -> Iterator[Piece]:
    for number, path in enumerate(paths):
        try:
            yield from _file(path, data, field, dropped)
        except readers.BadRow as error:
            others = [other.name for other in paths[number + 1 :] if _lacks(other, field, data)]
            more = f", and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            also = (
                f"; the first row of these files has no text either: {', '.join(others[:_NAMED])}{more}"
                if others
                else ""
            )
            raise readers.BadRow(f"{error}{also}") from None


def _lacks(path: Path, field: str, data: DataConfig) -> bool:
    """Return whether the first row of a file has no text, or cannot be read."""
    if readers.kind(path) in readers.TEXT:
        return False
    try:
        for where, row in readers.rows(path, columns=[field], encoding=data.encoding):
            _cell(row, field, where)
            return False
    except UserError:
        return True
    return False


def _file(path: Path, data: DataConfig, field: str, dropped: Dropped) -> Iterator[Piece]:
    if readers.kind(path) in readers.TEXT:
        return text.documents(readers.decode(blocks(path), path, encoding=data.encoding), data.document)
    skip = None if data.on_bad_record == "error" else dropped
    return _column(readers.rows(path, columns=[field], encoding=data.encoding, skip=skip), field, dropped, skip)


def _column(rows: Iterable[readers.Row], field: str, dropped: Dropped, skip: Dropped | None = None) -> Iterator[Piece]:
    """Yield the pieces of the texts in a column of rows; empty cells are only counted."""
    for where, row in rows:
        try:
            value = _cell(row, field, where)
        except readers.BadRow as error:
            if skip is None:
                raise
            skip(error)
            continue
        dropped.empty += not value
        if value:
            yield from text.pieces([value])


def _cell(row: Any, field: str, where: str) -> str | None:
    if not isinstance(row, dict):
        raise readers.BadRow(f"{where} is not an object with fields but {type(row).__name__}")
    if field not in row:
        advice = "set data.text_field, or text_field of the source in data.mixture"
        if "messages" in row or "conversations" in row:
            advice = "conversations are data of `train.py sft`; leave the file out, or fine-tune on it"
        raise readers.BadRow(f"{where} has no field '{field}', only {listed(row)}; {advice}")
    value = row[field]
    if value is not None and not isinstance(value, str):
        raise readers.BadRow(f"{where}: the field '{field}' is not text but {type(value).__name__}")
    if value and (wrong := readers.not_text(value)):
        raise readers.BadRow(f"{where}: the field '{field}' holds {wrong}")
    return value


def listed(columns: Iterable[str]) -> str:
    """Return the first of the names of columns, for messages."""
    names = [*islice((repr(name) for name in columns), MOST_LISTED + 1)]
    shown = [name if len(name) <= LONGEST_LISTED else f"{name[:LONGEST_LISTED]} ..." for name in names[:MOST_LISTED]]
    return ", ".join([*shown, *["..."] * (len(names) > MOST_LISTED)]) or "nothing"


def _registered(where: str, read: Callable[[Any], Iterable[Any]], data: Any) -> Iterator[readers.Row]:
    for number, document in enumerate(registered_rows(where, read, data), 1):
        yield f"{where}: record {number}", {"text": document}


def registered_rows(where: str, read: Callable[[Any], Iterable[Any]], data: Any) -> Iterator[Any]:
    """Yield what a user's source yields.

    Raises:
        UserError: The source raises an error.
    """
    try:
        yield from read(data)
    except Exception as error:
        raise UserError(f"{where}: {type(error).__name__}: {one_line(error)}") from error


def registered_identity(where: str, identity: Callable[[Any], Any], data: Any) -> Any:
    """Return the fingerprint that a user's source gives.

    Raises:
        UserError: It is not a JSON value, or computing it raises an error.
    """
    try:
        return json.loads(json.dumps(identity(data), allow_nan=False))
    except Exception as error:
        raise UserError(f"{where}, its fingerprint: {type(error).__name__}: {one_line(error)}") from error


def _hub_name(source: str) -> tuple[str, str | None]:
    prefix, _, name = source.partition(":")
    if prefix != "hub" or not name:
        names = [*extensions.OWN_TEXT_SOURCES, *extensions.names("data.source")]
        raise UserError(f"data.source: '{source}' is unknown{nearest(source, names)}")
    name, _, subset = name.partition(":")
    return name, subset or None


def _hub(name: str, subset: str | None) -> Iterator[readers.Row]:
    try:
        yield from hub.rows(name, subset or "")
    except UserError as error:
        raise UserError(f"{error}; for text of your own set data.files=[PATH]") from None
