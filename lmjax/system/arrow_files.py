"""Rows of parquet and Arrow files, in bounded memory."""

import os
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmjax.config.errors import UserError, one_line

if typing.TYPE_CHECKING:
    import pyarrow

BATCH = 1000  # rows converted at once
AT_ONCE = 1 << 30  # about the largest number of bytes of these rows, unless one row has more


def rows(path: Path, columns: tuple[str, ...], *, memory: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a .parquet or .arrow file, each with its location.

    The schema of the file alone decides the types; metadata of other libraries are ignored.

    Args:
        path: The file.
        columns: Read only these columns, provided that the file has all of them (empty: all).
        memory: About the maximum number of bytes of the rows that exist at once, even if each of them has the largest
            value of a compressed dictionary (0: `AT_ONCE`, or one row if it is larger).

    Raises:
        UserError: The file is unreadable or damaged, two of the columns have the same name, or a part of the file is
            larger than `memory`.
    """
    import pyarrow

    ending = path.suffix.lower().removeprefix(".")
    number = 0
    try:
        for batch in (_parquet if ending == "parquet" else _arrow)(path, columns, memory):
            for row in batch.to_pylist():
                number += 1
                yield f"'{path}', row {number}", row
    except UserError:
        raise
    except MemoryError as error:  # also of a damaged file that claims more than there is
        raise UserError(f"cannot read '{path}' as {ending}: it needs too much memory ({one_line(error)})") from None
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError, TypeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"cannot read '{path}' as {ending}: {reason}") from None


def _parquet(path: Path, columns: tuple[str, ...], memory: int) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow.parquet

    with pyarrow.OSFile(os.fsencode(path)) as content:
        with pyarrow.parquet.ParquetFile(content) as file:
            selected = _select(path, columns, file.schema_arrow.names)
            schema = file.schema_arrow
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        # A value that many rows refer to exists once, as in the file, until its rows are converted.
        texts = [field.name for field in schema if pyarrow.types.is_string(field.type)]
        is_flat = set(selected or schema.names) <= {*texts, *_numbers(schema)}
        step = BATCH if is_flat and not memory else _rows_at_once(path, max(groups, default=0), memory)
        with pyarrow.parquet.ParquetFile(content, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=step, columns=selected or None):
                yield from _slices(path, batch.select(selected) if selected else batch)  # "a" also selects "a.b"


def _numbers(schema: "pyarrow.Schema") -> list[str]:
    """The columns whose values have a fixed, small size."""
    import pyarrow

    return [field.name for field in schema if pyarrow.types.is_primitive(field.type)]


def _slices(path: Path, batch: "pyarrow.RecordBatch", memory: int = 0) -> "Iterator[pyarrow.RecordBatch]":
    step = _rows_at_once(path, batch.get_total_buffer_size(), memory)
    yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def _arrow(path: Path, columns: tuple[str, ...], memory: int) -> "Iterator[pyarrow.RecordBatch]":
    """Yield the batches of an Arrow IPC file or stream (`datasets` writes streams)."""
    import pyarrow

    with pyarrow.memory_map(os.fsencode(path)) as source:
        of_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = (pyarrow.ipc.open_file if of_file else pyarrow.ipc.open_stream)(source)
        names = _select(path, columns, reader.schema.names)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if of_file else reader
        for batch in batches:
            selected = batch.select(names) if names else batch
            selected.validate(full=True)  # a damaged batch could refer to memory outside of it
            yield from _slices(path, selected, memory)


def _rows_at_once(path: Path, size: int, memory: int) -> int:
    """The number of rows to convert at once.

    A value of one row may have the size of a part of the file.
    """
    if 0 < memory < size:
        raise UserError(
            f"'{path}' has a part of {size} bytes, more than the limit of {memory}; write smaller row groups"
        )
    return max(1, min(BATCH, (memory or AT_ONCE) // max(1, size)))


def _select(path: Path, columns: tuple[str, ...], names: list[str]) -> list[str]:
    """The columns to read; none for all.

    Raises:
        UserError: A column to read has the name of another.
    """
    known = [*columns] if set(columns) <= set(names) else []
    counts = Counter(names)
    if twice := next((name for name in known or names if counts[name] > 1), None):
        raise UserError(f"'{path}' has the column '{twice}' twice; give every column its own name")
    return known
