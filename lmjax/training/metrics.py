"""Metrics of a run: `metrics.jsonl`, one JSON object per logged update, and trackers.

When the run goes back to update u (resume, rollback), later records are removed from the file. A number that is not
finite is written as null, so that every line is valid JSON.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lmjax.config import UserError
from lmjax.system.files import replacing
from lmjax.training.trackers import Record, Report, Sink, first_line


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
        self._file = _cut(self.path, update)

    def write(self, record: Mapping[str, Any]) -> Record:
        """Append one record, which must have `update`.

        Returns:
            The record as written: plain numbers, None if not finite.
        """
        plain = {key: _plain(value) for key, value in record.items()}
        assert isinstance(plain.get("update"), int), f"a record needs its update: {plain}"
        self._file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        self._file.flush()
        self._notify("write", plain)
        return plain

    def rewind(self, update: int) -> None:
        """Remove all records of updates after `update`."""
        self._file.close()
        self._file = _cut(self.path, update)
        self._notify("rewind", update)

    def close(self) -> None:
        """Close the file and the sinks; repeated calls are allowed."""
        self._file.close()
        self._notify("close")
        self._sinks.clear()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        return [record for _, record in _lines(Path(path).read_bytes())]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _lines(content: bytes) -> Iterator[tuple[bytes, Record]]:
    for line in content.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("update"), int):
            yield line + b"\n", record


def _cut(path: Path, update: int) -> Any:
    """Remove incomplete records and those after `update`, and open the file for appending.

    The file is replaced atomically.
    """
    content = path.read_bytes() if path.exists() else b""
    valid = b"".join(line for line, record in _lines(content) if record["update"] <= update)
    if valid != content:
        with replacing(path, sync=True) as partial:
            partial.write_bytes(valid)
    return path.open("ab")


def _plain(value: Any) -> Any:
    """Return the JSON value of a Python, NumPy or JAX scalar."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
