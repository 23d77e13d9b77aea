"""Sources of records: tables, two text files with aligned lines, or a generated source.

A record is one or two texts, optionally with a label. Its side of the split depends only on its texts, so equal
records are always on the same side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from lmjax.config import RecordsConfig, UserError, extensions
from lmjax.config.errors import nearest
from lmjax.config.ranges import check_ranges
from lmjax.data.sources import generated, streams
from lmjax.data.store.ingest import Split
from lmjax.system import readers

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")


@dataclass(frozen=True)
class Record:
    """A record of one or two texts."""

    #: One or two texts. A record with an empty text is skipped.
    texts: tuple[str, ...]
    #: Label (empty: none).
    label: str
    #: Equal keys are on the same side of a split.
    key: str
    #: Location, for error messages.
    where: str


def records(config: RecordsConfig) -> Iterator[tuple[Side, Record]]:
    """Yield all records in order, each with its side, in bounded memory.

    The records of `files` (or the generated source) precede those of `validation_files`. After `limit` training
    records only validation records follow.

    Raises:
        UserError: A file is missing, unreadable or malformed, a column is missing, or a text or label is invalid.
    """
    split, taken = Split("hash", config.validation_fraction), 0
    for record in _read(config, config.files):
        if not config.validation_files and split.takes(record.key):
            yield "validation", record
        elif not config.limit or taken < config.limit:
            taken += all(record.texts)
            yield "train", record
        elif config.validation_files:
            break
    if config.validation_files:
        for record in _read(config, config.validation_files):
            yield "validation", record


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
        content = [_stamps(names, config) for names in (config.files, config.validation_files)]
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
    }


def name(config: RecordsConfig) -> str:
    """Return the name of the records, for messages."""
    return ", ".join((*config.files, *config.validation_files)) or config.source


def _stamps(names: tuple[str, ...], config: RecordsConfig) -> list[list[Any]]:
    stamps = [(path.resolve(), path.stat()) for path in _files(names, config)]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stamps]


def _files(names: tuple[str, ...], config: RecordsConfig) -> list[Path]:
    """Return tables, also of folders and globs, or two text files with aligned lines."""
    if not names:
        return []
    if len(names) == 2 == len(config.texts) and not config.label and not any(map(_is_table, map(Path, names))):
        paths = [Path(name).expanduser() for name in names]
        for path in paths:
            if not path.is_file():
                raise readers.missing(path)
        return paths
    has_text = any(path.is_file() and not _is_table(path) for path in (Path(name).expanduser() for name in names))
    tables = [] if has_text else [path for path in streams.files(names) if _is_table(path)]
    if not tables:
        raise UserError(
            f"'{names[0]}' holds no records: give files that end in {readers.endings(readers.TABLES)}, or, for two "
            f"data.texts without data.label, exactly two text files whose lines belong together"
        )
    return tables


def _is_table(path: Path) -> bool:
    return readers.kind(path) in readers.TABLES


def _read(config: RecordsConfig, names: tuple[str, ...]) -> Iterator[Record]:
    if not names:
        for number, (row, key) in enumerate(_generated(config), 1):
            yield _record(row, config, f"{config.source}: record {number}", key)
        return
    paths = _files(names, config)
    if not all(map(_is_table, paths)):
        for number, pair in enumerate(_aligned(*paths), 1):
            where = f"line {number} of '{paths[0]}' and '{paths[1]}'"
            yield _record(dict(zip(config.texts, pair, strict=True)), config, where)
        return
    for path in paths:
        columns = [*config.texts, *([config.label] if config.label else [])]
        for where, row in readers.rows(path, columns=dict.fromkeys(columns)):
            yield _record(row, config, where)


def _generated(config: RecordsConfig) -> Iterator[tuple[Any, str]]:
    """The rows of a source without files, each with the key of its side ('': its texts)."""
    if registered := extensions.find("data.source", config.source):
        read, _ = registered.value
        rows = streams.registered_rows(f"data.source={config.source}", read, config)
        return ((row, "") for row in rows)
    return generated.rows(config.source)


def _lines(path: Path) -> Iterator[str]:
    return (line.removeprefix("\ufeff").strip() for _, line in readers.lines(path))


def _aligned(first: Path, second: Path) -> Iterator[tuple[str, str]]:
    both, number = zip_longest(_lines(first), _lines(second)), 0
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
            raise UserError(f"{where} has no column '{column}' (data.{option}){nearest(column, row)}")
    texts = tuple(_text(row[column], config, f"{where}: the column '{column}'") for column in config.texts)
    label = row[config.label] if config.label else ""
    if not isinstance(label, str | int | float):
        raise UserError(f"{where}: the label '{config.label}' is neither text nor a number but {type(label).__name__}")
    return Record(texts, str(label), (key.lower() if config.lowercase else key) or "\0".join(texts), where)


def _text(value: Any, config: RecordsConfig, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} is not text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds half a character (a lone surrogate) at {error.start}") from None
    value = value.strip()
    return value.lower() if config.lowercase else value
