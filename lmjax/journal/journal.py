"""The journal: the events of a run and their causes, one record per line.

Each record holds the hash of the previous line. It is written and synced before the action that it announces begins.
Every record also lists the updates applied since the previous record (`applied`: the number of the first, then the
cursor after each, its loss and gradient norm as `float.hex`). The complete history of a run can thus be read, checked
and replayed from this file.

A line truncated by a crash is dropped when the journal is opened; any other damage breaks the chain and is reported.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from lmjax.config.errors import RunError, UserError
from lmjax.system import faults

EVENTS = ("start", "resume", "checkpoint", "suspect", "rollback", "skip", "boundary", "signal", "fallback", "end")
PATIENCE = 5.0  # maximum number of seconds between an applied update and its record
_FIRST = "0" * 64

Record = dict[str, Any]


class Journal:
    """An append-only journal file.

    Args:
        path: The file.
        own: Whether this process writes the file; otherwise it only holds its own copy of the records.

    Raises:
        UserError: The file was edited (its hash chain is broken).
    """

    def __init__(self, path: Path, *, own: bool = True) -> None:
        self.path = path
        self._own = own
        self._records, good_bytes = _read(path)
        if own and path.exists() and path.stat().st_size > good_bytes:
            os.truncate(path, good_bytes)
        self._previous = _hash(_line(self._records[-1])) if self._records else _FIRST
        self._applied: Record | None = None
        self._written = time.monotonic()

    @property
    def records(self) -> list[Record]:
        """All records so far, oldest first."""
        return list(self._records)

    @property
    def wall_step(self) -> int:
        """The largest wall step written."""
        return max((record["wall_step"] for record in self._records), default=0)

    def note(self, *, update: int, cursor: int, loss: float, grad_norm: float) -> None:
        """Note an applied update for the next record; `update` is the number of updates after it."""
        if self._applied is None:
            self._applied = {"first": update, "cursors": [], "losses": [], "grad_norms": []}
        assert update == self._applied["first"] + len(self._applied["cursors"])
        self._applied["cursors"].append(cursor)
        self._applied["losses"].append(loss.hex())
        self._applied["grad_norms"].append(grad_norm.hex())

    def behind(self, *, patience: float = PATIENCE) -> bool:
        """Whether applied updates have waited for a record longer than `patience` seconds."""
        return self._applied is not None and time.monotonic() - self._written > patience

    def write(self, event: str, /, *, wall_step: int, update: int, cursor: int, **details: Any) -> None:
        """Append one record and sync it to the disk.

        Raises:
            RunError: The record cannot be written; the file is unchanged.
        """
        assert event in EVENTS, event
        faults.reach("journal.write")
        record = {"wall_step": wall_step, "update": update, "cursor": cursor, "event": event, **details}
        if self._applied is not None:
            record["applied"] = self._applied
        record["previous"] = self._previous
        line = _line(record)
        try:
            if self._own:
                _append(self.path, line)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}; correct this, then resume the run") from error
        self._records.append(json.loads(line))
        self._previous, self._applied, self._written = _hash(line), None, time.monotonic()
        faults.reach("journal.written")


def read(path: Path) -> list[Record]:
    """Return the records of a journal file after a check of its hash chain.

    Raises:
        UserError: The file is missing or was edited.
    """
    if not path.is_file():
        raise UserError(f"no journal at {path}")
    return _read(path)[0]


def _append(path: Path, line: bytes) -> None:
    with open(path, "ab") as file:
        before = file.tell()
        try:
            file.write(line[: len(line) // 2])
            file.flush()
            faults.reach("journal.torn")
            file.write(line[len(line) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise


def _read(path: Path) -> tuple[list[Record], int]:
    """Return the records and the number of bytes of complete lines."""
    records: list[Record] = []
    previous, good_bytes = _FIRST, 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.get("previous") != previous:
            raise UserError(f"{path}:{number}: the hash chain is broken: the journal was edited or damaged here")
        records.append(record)
        previous, good_bytes = _hash(line), good_bytes + len(line)
    return records, good_bytes


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
