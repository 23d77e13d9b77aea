"""The journal: what happened to a run and why, one record a line, each holding the hash of the line before.

A record is written and synced before the action that it announces counts as done. A line cut short by a crash is
dropped when the journal is opened; any other damage breaks the chain and is reported.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lmjax.config import UserError

EVENTS = ("start", "resume", "checkpoint", "suspect", "rollback", "skip", "boundary", "signal", "fallback", "end")
_FIRST = "0" * 64


class Journal:
    """An append-only journal file. UserError: the file was edited (its hash chain is broken)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records, good_bytes = _read(path)
        if path.exists() and path.stat().st_size > good_bytes:
            os.truncate(path, good_bytes)
        self._previous = _hash(_line(self._records[-1])) if self._records else _FIRST

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records so far, oldest first."""
        return list(self._records)

    @property
    def wall_step(self) -> int:
        """The largest wall step written."""
        return max((record["wall_step"] for record in self._records), default=0)

    def write(self, event: str, /, *, wall_step: int, update: int, cursor: int, **details: Any) -> None:
        """Appends one record and syncs it to the disk."""
        assert event in EVENTS, event
        record = {"wall_step": wall_step, "update": update, "cursor": cursor, "event": event, **details}
        record["previous"] = self._previous
        line = _line(record)
        with open(self.path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._records.append(record)
        self._previous = _hash(line)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a journal file, its chain checked. UserError: missing, or edited."""
    if not path.is_file():
        raise UserError(f"no journal at {path}")
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records, and the bytes that whole lines take."""
    records: list[dict[str, Any]] = []
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


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
