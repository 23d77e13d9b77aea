"""What a run measures: `metrics.jsonl`, one JSON object a logged update, and optional trackers beside it.

The file follows the run: when the run goes back to update u (resume, rollback), so does the file. A number that
is not finite is written as null, so that every line stays valid JSON.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lmjax.config import UserError
from lmjax.training.trackers import Record, Report, Sink, first_line


class Recorder:
    """Appends records to `path`, flushed line by line, and passes them on to the sinks.

    update: where the run stands (0: a fresh run); records of later updates, and a line torn by a kill, are cut
    off the file first. A sink that fails is reported and dropped: a tracker never stops a run.
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
        """Appends one record (it must have `update`) and returns it as written: plain numbers, None if not finite."""
        plain = {key: _plain(value) for key, value in record.items()}
        assert isinstance(plain.get("update"), int), f"a record needs its update: {plain}"
        self._file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        self._file.flush()
        self._tell("write", plain)
        return plain

    def rewind(self, update: int) -> None:
        """Forgets every record of an update after `update`."""
        self._file.close()
        self._file = _cut(self.path, update)
        self._tell("rewind", update)

    def close(self) -> None:
        """Closes the file and the sinks; calling it again does nothing."""
        self._file.close()
        self._tell("close")
        self._sinks.clear()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, method: str, *arguments: Any) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # whatever a tracker raises, the run continues without it
                self._sinks.remove(sink)
                self._report(f"{type(sink).__name__} failed and is off: {first_line(error)}")


def read(path: str | Path) -> list[Record]:
    """The records of a metrics file, in order. A torn line is left out, so a file being written can be read.

    UserError: there is no such file.
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
    """`path` open for appending, with only the whole records up to `update`; replaced at once or not at all."""
    content = path.read_bytes() if path.exists() else b""
    kept = b"".join(line for line, record in _lines(content) if record["update"] <= update)
    if kept != content:
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    return path.open("ab")


def _plain(value: Any) -> Any:
    """A JSON value of a Python, NumPy or JAX scalar."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- Trackers ---------------------------------------------------------------------------------------------------
