"""Sources of text: the embedded corpus, prompting tasks, local files, the hub.

Each source is one `datasets` stream of pieces.

Plain text and JSON lines are read by lmjax itself and handed to `datasets` as a stream: its own text loader changes
line breaks, and its JSON loader guesses types (a text that looks like a date becomes one) and cannot say which line
is malformed. Parquet files and hub datasets go through its loaders.
"""

import glob
import json
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lmjax.config import DataConfig, SourceConfig, UserError
from lmjax.config.errors import nearest
from lmjax.data.sources import docstrings, episodes, text

if typing.TYPE_CHECKING:
    import datasets

Piece = tuple[str, bool]  # text, and whether a document begins with it

TEXT, TABLES = (".txt", ".text", ".md", ".rst"), (".jsonl", ".ndjson", ".json", ".parquet")
PACKED = (".gz", ".zst")


def sources(data: DataConfig) -> tuple[SourceConfig, ...]:
    """Return the sources of a configuration: its mixture, or the source of `source` and `files`."""
    return data.mixture or (SourceConfig(source=data.source, files=data.files),)


def documents(source: SourceConfig, data: DataConfig) -> Iterator[Piece]:
    """Yield the source's text in order, as pieces (text, begins_document), in bounded memory.

    Raises:
        UserError: A file is missing, unreadable or malformed, or a text field is missing.
    """
    for row in dataset(source, data):
        yield row["text"], row["begins"]


def texts(data: DataConfig) -> Iterator[str]:
    """Yield the text of all sources, each time a piece of the source with the least text so far."""
    streams = [documents(source, data) for source in sources(data)]
    given = dict.fromkeys(range(len(streams)), 0)
    while given:
        number = min(given, key=lambda n: given[n])
        piece = next(streams[number], None)
        if piece is None:
            del given[number]
        else:
            given[number] += len(piece[0])
            yield piece[0]


def dataset(source: SourceConfig, data: DataConfig) -> "datasets.IterableDataset":
    """Return the pieces as a streaming dataset with the columns "text" and "begins"."""
    from datasets import IterableDataset
    from datasets.iterable_dataset import ExamplesIterable

    pieces = _pieces(source, data)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        yield from ((i, {"text": piece, "begins": begins}) for i, (piece, begins) in enumerate(pieces()))

    # `IterableDataset.from_generator` would do, but it leaves a lock file a call in the user's Hugging Face cache.
    return IterableDataset(ExamplesIterable(rows, {}))  # pyright: ignore[reportArgumentType]


def fingerprint(source: SourceConfig, data: DataConfig) -> dict[str, Any]:
    """Identify the source's text without reading it, as a JSON value.

    Local files are identified by path, size and modification time. A hub dataset is identified by its name only: once
    prepared, it is not read again.
    """
    if source.files:
        found = [(path.resolve(), path.stat()) for path in files(source.files)]
        stamps = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in found]
        return {"files": stamps, "document": data.document, "text_field": data.text_field}
    if source.source == "docstrings":
        return docstrings.fingerprint()
    if source.source == "in_context":
        return episodes.fingerprint(data.in_context)
    return {"hub": _hub_name(source.source), "text_field": data.text_field}


def size(source: SourceConfig) -> int | None:
    """Return the bytes of text of plain text files; None for other sources."""
    paths = files(source.files)
    return sum(p.stat().st_size for p in paths) if paths and all(p.suffix in TEXT for p in paths) else None


def files(names: Iterable[str]) -> list[Path]:
    """Resolve names, folders (recursively) and globs to files, in a fixed order."""
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            below = sorted(item for item in path.rglob("*") if item.is_file() and _kind(item))
            inside = [item for item in below if not any(p.startswith(".") for p in item.relative_to(path).parts)]
            if not inside:
                raise UserError(f"the folder '{path}' holds no file that ends in {_endings()}")
            found += inside
        elif path.exists():
            found.append(path)
        elif glob.has_magic(name):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not matches:
                raise UserError(f"no file matches '{name}'")
            found += [match for match in matches if match.is_file()]
        else:
            raise text.missing(path)
    for path in found:
        if not _kind(path):
            raise UserError(f"'{path}': cannot tell what this file is; its name must end in {_endings()}")
    return found


def _kind(path: Path) -> str:
    """The ending that says how a file is read, without that of its compression; empty if none does."""
    packed = path.suffix in PACKED
    ending = Path(path.stem).suffix if packed else path.suffix
    return ending if ending in TEXT + TABLES and not (packed and ending == ".parquet") else ""


def _endings() -> str:
    return ", ".join(TEXT + TABLES) + " (or these and .gz or .zst; parquet only as it is)"


def _pieces(source: SourceConfig, data: DataConfig) -> Callable[[], Iterator[Piece]]:
    """A function that starts the stream; what can be checked at once is checked before it."""
    field = data.text_field
    if source.files:
        paths = files(source.files)
        return lambda: (piece for path in paths for piece in _file(path, data))
    if source.source == "docstrings":
        return lambda: _tables(({"text": row} for row in docstrings.docstrings()["text"]), "text", "docstrings")
    if source.source == "in_context":
        return lambda: (piece for item in episodes.documents(data.in_context) for piece in text.pieces([item]))
    name = _hub_name(source.source)
    return lambda: _tables(_hub(*name), field, source.source)


def _file(path: Path, data: DataConfig) -> Iterator[Piece]:
    kind = _kind(path)
    if kind == ".parquet":
        return _tables(_parquet(path, data.text_field), data.text_field, f"'{path}'")
    blocks = text.decode(text.read(path), path)
    if kind in TEXT:
        return text.documents(blocks, data.document)
    return _tables(_json(blocks, path, whole_file=kind == ".json"), data.text_field, f"'{path}'")


def _tables(rows: Iterable[Any], field: str, where: str) -> Iterator[Piece]:
    """The pieces of the texts in one column of rows; an empty cell is no document."""
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


def _json(blocks: Iterable[str], path: Path, *, whole_file: bool) -> Iterator[Any]:
    """The records of JSON lines; a .json file may also be one array or one object, and is then read whole."""
    lines = text.lines(blocks)
    for number, line in enumerate(lines, 1):
        line = line.removeprefix("\ufeff").strip()
        if number == 1 and whole_file and (line[:1] == "[" or line == "{"):
            try:
                value = json.loads("\n".join([line, *lines]))
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"'{path}' is not JSON: {error}") from None
            yield from value if isinstance(value, list) else [value]
        elif line:
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"'{path}', line {number} is not JSON: {error}") from None


def _parquet(path: Path, field: str) -> Iterator[dict[str, Any]]:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        if field not in names:
            yield dict.fromkeys(names)  # `_tables` says what is missing
            return
        with tempfile.TemporaryDirectory() as folder:  # `datasets` wants a cache, if only for its lock file
            yield from datasets.IterableDataset.from_parquet(
                str(path), columns=[field], batch_size=1000, cache_dir=folder
            )
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read '{path}' as parquet: {str(error).splitlines()[0]}") from None


def _hub_name(source: str) -> tuple[str, str | None]:
    prefix, _, name = source.partition(":")
    if prefix != "hub" or not name:
        raise UserError(
            f"data.source: '{source}' is unknown{nearest(source, ['docstrings', 'in_context', 'hub:NAME'])}"
        )
    name, _, subset = name.partition(":")
    return name, subset or None


def _hub(name: str, subset: str | None) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        splits = datasets.load_dataset(name, subset, streaming=True)
        if "train" not in splits:
            raise UserError(f"it has no split 'train', only {', '.join(map(str, splits))}")
        yield from typing.cast(Iterable[dict[str, Any]], splits["train"])
    except Exception as error:  # the hub's client has a dozen kinds: not found, offline, gated, connection lost
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot read the hub dataset '{name}': {reason}; for text of your own set data.files=[PATH]"
        ) from None
