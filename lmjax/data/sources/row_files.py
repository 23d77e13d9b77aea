"""Rows of conversations and of preferences: from tables, registered or generated."""

from collections.abc import Callable, Iterator
from typing import Any

from lmjax.config import ChatConfig, PreferenceConfig, UserError, extensions
from lmjax.config.ranges import check_ranges
from lmjax.data.sources import streams, tables
from lmjax.data.sources.generated import Row
from lmjax.data.sources.streams import Dropped
from lmjax.system import paths, readers

RowConfig = ChatConfig | PreferenceConfig


def rows(
    config: RowConfig,
    names: tuple[str, ...],
    generated: Callable[[], Iterator[Row]],
    *,
    kind: str,
    skip: Dropped | None,
) -> Iterator[tuple[str, Any, str]]:
    """Yield location, row and key of the side of each row.

    The key is empty if that is the prompt of the row.

    Args:
        config: The data.
        names: Files, folders and patterns; without any, the source is read.
        generated: Returns the rows of an own source with their keys.
        kind: What a row is, for messages.
        skip: Receives the malformed rows of files that are left out (None: they are errors).
    """
    if names:
        key = "data.files" if names == config.files else "data.validation_files"
        for file in _listing(names, key=key, kind=kind).files:
            for where, row in readers.rows(file.path, encoding=config.encoding, skip=skip):
                yield where, row, ""
        return
    if registered := extensions.find("data.source", config.source):
        read, _ = registered.value
        source: Iterator[tuple[Any, str]] = (
            (row, "") for row in streams.registered_rows(f"data.source={config.source}", read, config)
        )
    else:
        source = generated()
    for number, (row, key) in enumerate(source, 1):
        yield f"{config.source}: {kind} {number}", row, key


def content(config: RowConfig, generated: Callable[[], Any], *, kind: str) -> Any:
    """Identify the rows without reading them, as a JSON value.

    Files are identified by path, size and modification time.

    Args:
        config: The data.
        generated: Identifies the rows of an own source.
        kind: What a row is, for messages.

    Raises:
        UserError: The settings are invalid.
    """
    check_ranges(config, "data")
    if config.validation_files and not config.files:
        raise UserError(f"data.validation_files need data.files: the source '{config.source}' has validation {kind}s")
    if config.files:
        return [tables.stamps(listing) for listing in listings(config, kind=kind)]
    if registered := extensions.find("data.source", config.source):
        _, identity = registered.value
        value = streams.registered_identity(f"data.source={config.source}", identity, config)
        return [config.source, registered.sha256, value]
    return [generated()]


def name(config: RowConfig) -> str:
    """Return the name of the rows, for messages."""
    return ", ".join((*config.files, *config.validation_files)) or config.source


def notes(config: RowConfig, *, kind: str) -> list[str]:
    """Return what the names of the files leave out, a line for each reason."""
    return [note for listing in listings(config, kind=kind) for note in listing.notes()]


def listings(config: RowConfig, *, kind: str) -> tuple[paths.Listing, paths.Listing]:
    """Return the files of the training split and of the validation split.

    Raises:
        UserError: A name is empty or remote, stands for no table, or cannot be read.
    """
    return (
        _listing(config.files, key="data.files", kind=kind),
        _listing(config.validation_files, key="data.validation_files", kind=kind),
    )


def _listing(names: tuple[str, ...], *, key: str, kind: str) -> paths.Listing:
    if not names:
        return paths.Listing()
    listing = tables.listing(names, key=key)
    if not listing.files:
        raise UserError(
            f"{key}: '{names[0]}' holds no {kind}s: give files that end in {readers.endings(readers.TABLES)}"
        )
    return listing
