"""Metrics of a run: `metrics.jsonl`, one JSON object per logged update, and trackers.

When the run goes back to update u (resume, rollback), later records are removed from the file. A number that is not
finite is written as null, so that every line is valid JSON.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lmjax.config import UserError
from lmjax.config.errors import RunError
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import read_regular
from lmjax.system.append import AppendFile
from lmjax.system.files import replacing
from lmjax.system.json_files import plain
from lmjax.training.trackers import Record, Report, Sink, first_line

#: A score in context of a record: the task and the number of examples.
MEASURED = re.compile(r"val_(.+)_([0-9]{1,9})_shot")
_LONGEST = 1 << 24  # bytes of a line
_MOST = 10**15  # updates of a run


class Recorder:
    """Writer of records to a file, flushed line by line, and to the sinks.

    A sink that fails is reported and dropped: a tracker never stops a run.

    Args:
        path: The file.
        update: The run's update (0: a fresh run). Records of later updates and an incomplete line are removed first.
        sinks: The trackers.
        report: Called with messages.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        update: int = 0,
        sinks: Sequence[Sink] = (),
        report: Report = lambda text: None,
    ):
        self.path = Path(path)
        self._sinks = list(sinks)
        self._report = report
        self._file = self._open(update)

    def write(self, record: Mapping[str, Any]) -> Record:
        """Append one record, which must have `update`.

        Returns:
            The record as written: plain numbers, None if not finite.

        Raises:
            RunError: The record cannot be written, and the file is as before; or it was changed from outside.
        """
        written = plain(record)
        assert isinstance(written.get("update"), int), f"a record needs its update: {written}"
        if self._file is not None:
            try:
                self._file.append(json.dumps(written, allow_nan=False).encode() + b"\n")
            except OSError as error:
                raise RunError(
                    f"cannot write {self.path}: {error.strerror}; correct this, then resume the run"
                ) from error
        self._notify("write", written)
        return written

    def rewind(self, update: int) -> None:
        """Remove all records of updates after `update`."""
        if self._file is not None:
            self._file.check()
            self._file.close()
        self._file = self._open(update)
        self._notify("rewind", update)

    def close(self) -> None:
        """Close the file and the sinks; repeated calls are allowed."""
        if self._file is not None:
            self._file.close()
        self._notify("close")
        self._sinks.clear()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, update: int) -> AppendFile | None:
        """Cut the file to the records up to `update`, and open it; None for the null device."""
        if str(self.path) == os.devnull:
            return None
        _cut(self.path, update)
        return AppendFile(self.path, report=self._report)

    def _notify(self, method: str, *arguments: Any) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # the run continues without a tracker that raises anything
                self._sinks.remove(sink)
                self._report(f"{type(sink).__name__} failed and is off: {first_line(error)}")


def read(path: str | Path) -> list[Record]:
    """Return the records of a metrics file, in order.

    An incomplete line is ignored, so a file can be read while it is written.

    Raises:
        UserError: There is no such file.
    """
    try:
        return [record for _, record in _lines(read_regular(path))]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def scores(records: Sequence[Record]) -> dict[int, float]:
    """Return the validation losses by update."""
    result: dict[int, float] = {}
    for record in records:
        loss = record.get("val_loss")
        if isinstance(loss, int | float) and abs(loss) <= sys.float_info.max:  # an integer may be larger
            result[record["update"]] = float(loss)
    return result


def _lines(content: bytes) -> Iterator[tuple[bytes, Record]]:
    for line in content.split(b"\n"):
        try:
            record = parse_json(line, "the record", largest=_LONGEST)
        except UserError:
            continue
        if isinstance(record, dict) and type(record.get("update")) is int and 0 <= record["update"] <= _MOST:
            yield line + b"\n", record


def _cut(path: Path, update: int) -> None:
    """Remove incomplete records and those after `update`; the file is replaced atomically."""
    content = path.read_bytes() if path.exists() else b""
    valid = b"".join(line for line, record in _lines(content) if record["update"] <= update)
    if valid != content:
        with replacing(path, sync=True) as partial:
            partial.write_bytes(valid)
