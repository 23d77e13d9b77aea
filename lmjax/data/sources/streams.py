"""Sources of text: the embedded corpus, prompting tasks, local files, the hub.

Each source is one `datasets` stream of pieces.

Files are read by lmjax itself and handed to `datasets` as a stream: its own text loader changes line breaks, and its
JSON loader guesses types (a text that looks like a date becomes one) and cannot say which line is malformed.
"""

import glob
import json
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.config import DataConfig, SourceConfig, UserError, extensions
from lmjax.config.errors import nearest, one_line
from lmjax.data.sources import docstrings, episodes, text
from lmjax.system import readers

if typing.TYPE_CHECKING:
    import datasets

Piece = tuple[str, bool]  # text, and whether a document begins with it

_ENDINGS = readers.endings(readers.TEXT + readers.TABLES)


def sources(data: DataConfig) -> tuple[SourceConfig, ...]:
    """Return the sources of a configuration: its mixture, or its only source."""
    return data.mixture or (SourceConfig(source=data.source, files=data.files),)


def documents(source: SourceConfig, data: DataConfig) -> Iterator[Piece]:
    """Yield the source's text in order, as pieces (text, begins_document), in bounded memory.

    Raises:
        UserError: A file is missing, unreadable or malformed, or a text field is missing.
    """
    for row in dataset(source, data):
        yield row["text"], row["begins"]


def texts(data: DataConfig) -> Iterator[str]:
    """Yield the text of all sources, always from the source with the least text so far."""
    streams = [documents(source, data) for source in sources(data)]
    characters = dict.fromkeys(range(len(streams)), 0)  # read of each source that has not ended
    while characters:
        number = min(characters, key=lambda n: characters[n])
        piece = next(streams[number], None)
        if piece is None:
            del characters[number]
        else:
            characters[number] += len(piece[0])
            yield piece[0]


def dataset(source: SourceConfig, data: DataConfig) -> "datasets.IterableDataset":
    """Return the pieces as a streaming dataset with the columns "text" and "begins"."""
    from datasets import IterableDataset
    from datasets.iterable_dataset import ExamplesIterable

    pieces = _source(source, data).pieces

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        yield from ((i, {"text": piece, "begins": begins}) for i, (piece, begins) in enumerate(pieces()))

    # `IterableDataset.from_generator` would do, but it leaves a lock file a call in the user's Hugging Face cache.
    return IterableDataset(ExamplesIterable(rows, {}))  # pyright: ignore[reportArgumentType]


def fingerprint(source: SourceConfig, data: DataConfig) -> dict[str, Any]:
    """Identify the source's text without reading it, as a JSON value.

    Local files are identified by path, size and modification time. A hub dataset is identified by its name only: once
    prepared, it is not read again.
    """
    return _source(source, data).fingerprint()


def size(source: SourceConfig) -> int | None:
    """Return the bytes of text of plain text files; None for other sources."""
    paths = files(source.files)
    return sum(p.stat().st_size for p in paths) if paths and all(p.suffix in readers.TEXT for p in paths) else None


def files(names: Iterable[str]) -> list[Path]:
    """Resolve names, folders (recursively) and globs to files, in a fixed order."""
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            below = sorted(item for item in path.rglob("*") if item.is_file() and readers.kind(item))
            inside = [item for item in below if not any(p.startswith(".") for p in item.relative_to(path).parts)]
            if not inside:
                raise UserError(f"the folder '{path}' holds no file that ends in {_ENDINGS}")
            paths += inside
        elif path.exists():
            paths.append(path)
        elif glob.has_magic(name):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not matches:
                raise UserError(f"no file matches '{name}'")
            paths += [match for match in matches if match.is_file()]
        else:
            raise readers.missing(path)
    for path in paths:
        if not readers.kind(path):
            raise UserError(f"'{path}': cannot tell what this file is; its name must end in {_ENDINGS}")
    return paths


@dataclass(frozen=True)
class _Source:
    """How a source of text is identified and read."""

    #: Returns the identity of the text, a JSON value, without reading it.
    fingerprint: Callable[[], dict[str, Any]]
    #: Starts the stream of pieces.
    pieces: Callable[[], Iterator[Piece]]


def _source(source: SourceConfig, data: DataConfig) -> _Source:
    """Select how a source is read: the only place that depends on its kind.

    Raises:
        UserError: A file is missing, or the source is unknown.
    """
    if source.files:
        paths = files(source.files)
        return _Source(
            lambda: _file_identity(paths, data), lambda: (piece for path in paths for piece in _file(path, data))
        )
    if source.source == "docstrings":
        return _Source(docstrings.fingerprint, lambda: _pieces_of(docstrings.docstrings()["text"]))
    if source.source == "in_context":
        return _Source(
            lambda: episodes.fingerprint(data.in_context), lambda: _pieces_of(episodes.documents(data.in_context))
        )
    if registered := extensions.find("data.source", source.source):
        read, identity = registered.value
        where = f"data.source={source.source}"
        return _Source(
            lambda: {"registered": [source.source, registered.sha256, registered_identity(where, identity, data)]},
            lambda: _column(({"text": document} for document in registered_rows(where, read, data)), "text", where),
        )
    name = _hub_name(source.source)
    return _Source(
        lambda: {"hub": name, "text_field": data.text_field},
        lambda: _column(_hub(*name), data.text_field, source.source),
    )


def _file_identity(paths: list[Path], data: DataConfig) -> dict[str, Any]:
    stamps = [(path.resolve(), path.stat()) for path in paths]
    return {
        "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stamps],
        "document": data.document,
        "text_field": data.text_field,
    }


def _pieces_of(texts: Iterable[str]) -> Iterator[Piece]:
    return (piece for document in texts for piece in text.pieces([document]))


def _file(path: Path, data: DataConfig) -> Iterator[Piece]:
    if readers.kind(path) in readers.TEXT:
        return text.documents(readers.decode(readers.blocks(path), path), data.document)
    rows = readers.rows(path, columns=[data.text_field])
    return _column((row for _, row in rows), data.text_field, f"'{path}'")


def _column(rows: Iterable[Any], field: str, where: str) -> Iterator[Piece]:
    """Yield the pieces of the texts in one column of rows; an empty cell is no document."""
    for number, row in enumerate(rows, 1):
        record = f"{where}: record {number}"
        if not isinstance(row, dict):
            raise UserError(f"{record} is not an object with fields but {type(row).__name__}")
        if field not in row:
            names = ", ".join(map(repr, row))
            raise UserError(f"{record} has no field '{field}', only {names or 'nothing'}; set data.text_field")
        value = row[field]
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(f"{record}: the field '{field}' is not text but {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{record}: the field '{field}' holds half a character (a lone surrogate) at {error.start}"
            ) from None
        yield from text.pieces([value])


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
        names = ["docstrings", "in_context", "hub:NAME", *extensions.names("data.source")]
        raise UserError(f"data.source: '{source}' is unknown{nearest(source, names)}")
    name, _, subset = name.partition(":")
    return name, subset or None


def _hub(name: str, subset: str | None) -> Iterator[Any]:
    try:
        yield from (row for _, row in readers.hub(name, subset or ""))
    except UserError as error:
        raise UserError(f"{error}; for text of your own set data.files=[PATH]") from None
