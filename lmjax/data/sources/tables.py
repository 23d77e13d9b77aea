"""Tables of records and of conversations: files, identity, and sides of the split."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from lmjax.data.sources import streams
from lmjax.data.store.ingest import Split
from lmjax.system import paths, readers

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")


class Keyed(Protocol):
    """A record of a table."""

    @property
    def key(self) -> str:
        """Equal keys are on the same side of a split."""
        ...


T = TypeVar("T", bound=Keyed)


def divided(
    read: Callable[[tuple[str, ...]], Iterable[T]],
    *,
    files: tuple[str, ...],
    validation_files: tuple[str, ...],
    fraction: float,
    limit: int,
    counts: Callable[[T], bool],
) -> Iterator[tuple[Side, T]]:
    """Yield all records in order, each with its side, in bounded memory.

    The records of `files` precede those of `validation_files`. After `limit` training records only validation records
    follow.

    Args:
        read: Starts to read files; without names, the generated source.
        files: Names of the files.
        validation_files: Names of the files of the validation split (empty: a share of the keys is selected).
        fraction: This share.
        limit: Number of training records (0: all).
        counts: Whether a record counts for the limit.
    """
    split, taken = Split("hash", fraction), 0
    for record in streams.advised(read(files)):
        if not validation_files and split.takes(record.key):
            yield "validation", record
        elif not limit or taken < limit:
            taken += counts(record)
            yield "train", record
        elif validation_files:
            break
    if validation_files:
        for record in streams.advised(read(validation_files)):
            yield "validation", record


def is_table(path: Path) -> bool:
    """Whether the name of a file is that of a table."""
    return readers.kind(path) in readers.TABLES


def listing(names: Iterable[str], *, key: str) -> paths.Listing:
    """Resolve names, folders and patterns to tables; text files are left out.

    Raises:
        UserError: A name is empty or remote, stands for no file, or cannot be read.
    """
    tables = streams.listing(names, key=key)
    for file in [file for file in tables.files if not is_table(file.path)]:
        tables.files.remove(file)
        tables.skip("text files next to tables", file.path)
    return tables


def stamps(files: paths.Listing) -> list[list[Any]]:
    """Return the path, the size and the modification time of each file, which identify it."""
    return [[file.real, file.size, file.mtime_ns] for file in files.files]


def repeated(training: paths.Listing, validation: paths.Listing) -> list[str]:
    """Return a line for each validation file whose records are trained on."""
    names = {file.real for file in training.files}
    return [
        f"'{file.path}' is in data.files and in data.validation_files: the model is measured on records of its training"
        for file in validation.files
        if file.real in names
    ]
