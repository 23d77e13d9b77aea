"""Sources of records: tables, two text files with aligned lines, or a generated source.

A record is one or two texts, optionally with a label. Its side of the split depends only on its texts, so equal
records are always on the same side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lmjax.config import RecordsConfig, UserError, extensions
from lmjax.config.errors import nearest
from lmjax.config.ranges import check_ranges
from lmjax.data.sources import generated, labels, streams, tables
from lmjax.data.sources.labels import Label
from lmjax.data.sources.streams import MOST_LISTED, Dropped, listed
from lmjax.data.sources.tables import Side, is_table
from lmjax.system import paths, readers


@dataclass(frozen=True)
class Record:
    """A record of one or two texts."""

    #: One or two texts. A record with an empty text is skipped.
    texts: tuple[str, ...]
    #: Value of the label (empty text: none).
    label: Label
    #: Equal keys are on the same side of a split.
    key: str
    #: Location, for error messages.
    where: str


def records(config: RecordsConfig, *, dropped: Dropped | None = None) -> Iterator[tuple[Side, Record]]:
    """Yield all records in order, each with its side, in bounded memory.

    The records of `files` (or the generated source) precede those of `validation_files`. After `limit` training
    records only validation records follow.

    Args:
        config: The records.
        dropped: Counts the bad records that `data.on_bad_record=skip` leaves out.

    Raises:
        UserError: A file is missing, unreadable or malformed, a column is missing, or a text or label is invalid.
    """
    return tables.divided(
        lambda names: _read(config, names, dropped),
        files=config.files,
        validation_files=config.validation_files,
        fraction=config.validation_fraction,
        limit=config.limit,
        counts=lambda record: all(record.texts),
    )


def fingerprint(config: RecordsConfig) -> dict[str, Any]:
    """Identify the records without reading them, as a JSON value.

    Files are identified by path, size and modification time.

    Raises:
        UserError: The settings are invalid.
    """
    check_ranges(config, "data")
    if len(config.texts) not in (1, 2):
        raise UserError(f"data.texts names {len(config.texts)} columns: give one, or two for pairs of texts")
    if len(config.texts) == 1 and not config.label:
        raise UserError("nothing to predict: set data.label to a column, or give data.texts two columns")
    if config.validation_files and not config.files:
        raise UserError(f"data.validation_files need data.files: the source '{config.source}' has validation records")
    content: list[Any] = []
    if config.files:
        content = [tables.stamps(_files(names, config)) for names in (config.files, config.validation_files)]
    elif registered := extensions.find("data.source", config.source):
        _, identity = registered.value
        value = streams.registered_identity(f"data.source={config.source}", identity, config)
        content = [config.source, registered.sha256, value]
    else:
        content = [generated.fingerprint(config.source)]
    return {
        "records": content,
        "columns": [config.texts, config.label],
        "limit": config.limit,
        "lowercase": config.lowercase,
        "validation": None if config.validation_files else config.validation_fraction,
        **streams.file_settings(config),
    }


def name(config: RecordsConfig) -> str:
    """Return the name of the records, for messages."""
    return ", ".join((*config.files, *config.validation_files)) or config.source


def notes(config: RecordsConfig) -> list[str]:
    """Return what the names of the files leave out, a line for each reason."""
    return [note for names in (config.files, config.validation_files) for note in _files(names, config).notes()]


def repeated(config: RecordsConfig) -> list[str]:
    """Return a line for each validation file whose records are trained on."""
    return tables.repeated(_files(config.files, config), _files(config.validation_files, config))


def _files(names: tuple[str, ...], config: RecordsConfig) -> paths.Listing:
    """Return tables, also of folders and globs, or two text files with aligned lines."""
    if not names:
        return paths.Listing()
    key = "data.files" if names == config.files else "data.validation_files"
    given = [paths.local(name, key=key) for name in names]
    if len(names) == 2 == len(config.texts) and not config.label and not any(map(is_table, given)):
        for path in given:
            if not path.is_file():
                raise paths.missing(path)
        return paths.Listing([paths.file(path) for path in given])
    has_text = any(path.is_file() and not is_table(path) for path in given)
    files = paths.Listing() if has_text else tables.listing(names, key=key)
    if not files.files:
        raise UserError(
            f"'{names[0]}' holds no records: give files that end in {readers.endings(readers.TABLES)}, or, for two "
            f"data.texts without data.label, exactly two text files whose lines belong together"
        )
    return files


def _read(config: RecordsConfig, names: tuple[str, ...], dropped: Dropped | None) -> Iterator[Record]:
    skip = None if config.on_bad_record == "error" else dropped or Dropped()
    for where, row, key in _rows(config, names, skip):
        try:
            record = _record(row, config, where, key)
        except UserError as error:
            if skip is None:
                raise readers.BadRow(str(error)) from None
            skip(error)
            continue
        yield record


def _rows(config: RecordsConfig, names: tuple[str, ...], skip: Dropped | None) -> Iterator[tuple[str, Any, str]]:
    """Yield location, row and key of the side (empty: its texts) of each record."""
    if not names:
        for number, (row, key) in enumerate(_generated(config), 1):
            yield f"{config.source}: record {number}", row, key
        return
    files = [file.path for file in _files(names, config).files]
    if not all(map(is_table, files)):
        errors = "strict" if skip is None else "surrogateescape"
        for number, pair in enumerate(_aligned(files[0], files[1], encoding=config.encoding, errors=errors), 1):
            where = f"line {number} of '{files[0]}' and '{files[1]}'"
            yield where, dict(zip(config.texts, pair, strict=True)), ""
        return
    columns = {*config.texts, config.label} - {""}
    for path in files:
        for where, row in readers.rows(path, columns=columns, encoding=config.encoding, skip=skip):
            yield where, row, ""


def _generated(config: RecordsConfig) -> Iterator[tuple[Any, str]]:
    """The rows of a source without files, each with the key of its side ('': its texts)."""
    if registered := extensions.find("data.source", config.source):
        read, _ = registered.value
        rows = streams.registered_rows(f"data.source={config.source}", read, config)
        return ((row, "") for row in rows)
    return generated.rows(config.source)


def _lines(path: Path, encoding: str, errors: str) -> Iterator[str]:
    return (line.strip() for _, line in readers.lines(path, encoding=encoding, errors=errors))


def _aligned(first: Path, second: Path, *, encoding: str, errors: str) -> Iterator[tuple[str, str]]:
    both, number = zip_longest(*(_lines(path, encoding, errors) for path in (first, second))), 0
    for number, (a, b) in enumerate(both, 1):
        if a is None or b is None:
            longer = number + sum(1 for _ in both)
            counts = (number - 1, longer) if a is None else (longer, number - 1)
            raise UserError(
                f"'{first}' has {counts[0]} lines and '{second}' has {counts[1]}: line by line they must be pairs"
            )
        yield a, b


def _record(row: Any, config: RecordsConfig, where: str, key: str = "") -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{where} is not an object with columns but {type(row).__name__}")
    for option, column in (*(("texts", name) for name in config.texts), ("label", config.label)):
        if column and column not in row:
            choices = nearest(column, row) if len(row) <= MOST_LISTED else f", but {listed(row)}"
            raise UserError(f"{where} has no column '{column}' (data.{option}){choices}")
    texts = tuple(_text(row[column], config, f"{where}: the column '{column}'") for column in config.texts)
    label = labels.check(row[config.label], f"{where}: the label '{config.label}'") if config.label else ""
    return Record(texts, label, (key.lower() if config.lowercase else key) or "\0".join(texts), where)


def _text(value: Any, config: RecordsConfig, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} is not text but {type(value).__name__}")
    if wrong := readers.not_text(value):
        raise UserError(f"{where} holds {wrong}")
    return clean(value, lowercase=config.lowercase)


def clean(text: str, *, lowercase: bool) -> str:
    """Return a text without white space at its ends, and in lower case if `lowercase`."""
    text = text.strip()
    return text.lower() if lowercase else text
