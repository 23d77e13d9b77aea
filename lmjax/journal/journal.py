"""The journal: the events of a run and their causes, one record per line.

Each record holds the hash of the previous line. It is written and synced before the action that it announces begins.
Every record also lists the updates applied since the previous record (`applied`: the number of the first, then the
cursor after each, its loss and gradient norm as `float.hex`; of updates that sample answers also their mean reward and
KL divergence, and the hash of their tokens). The complete history of a run can thus be read, checked and replayed from
this file.

A line truncated by a crash is dropped when the journal is opened; any other damage breaks the chain and is reported.
The chain detects accidents. A journal that was edited with a new chain is checked record by record (`records`).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmjax.config.errors import RunError, UserError
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import read_regular
from lmjax.journal.history import History, Record, Sampled, advance
from lmjax.journal.records import EVENTS, check_fields, check_order
from lmjax.system import faults
from lmjax.system.append import AppendFile

PATIENCE = 5.0  # maximum number of seconds between an applied update and its record
_FIRST = "0" * 64
_LONGEST = 1 << 26  # bytes of a line


class Journal:
    """An append-only journal file.

    Args:
        path: The file.
        own: Whether this process writes the file; otherwise it only holds its own copy of the records.
        report: Called with one line if the file was deleted or truncated from outside and is written again.

    Raises:
        UserError: The file was edited or damaged, or cannot be read.
    """

    def __init__(self, path: Path, *, own: bool = True, report: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        content = scan(path)
        if content.problem:
            raise UserError(content.problem)
        self._records, self._lines, self._history = content.records, content.lines, content.history
        self._file: AppendFile | None = None
        if own:
            if content.torn:
                os.truncate(path, sum(map(len, self._lines)))
            self._file = AppendFile(path, content=lambda: b"".join(self._lines), report=report)
        self._previous = _hash(self._lines[-1]) if self._lines else _FIRST
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

    def note(self, *, update: int, cursor: int, loss: float, grad_norm: float, sampled: Sampled | None = None) -> None:
        """Note an applied update for the next record; `update` is the number of updates after it."""
        if self._applied is None:
            self._applied = {"first": update, "cursors": [], "losses": [], "grad_norms": []}
        assert update == self._applied["first"] + len(self._applied["cursors"])
        self._applied["cursors"].append(cursor)
        self._applied["losses"].append(loss.hex())
        self._applied["grad_norms"].append(grad_norm.hex())
        if sampled is not None:
            for name, value in zip(("rewards", "kls", "tokens"), sampled, strict=True):
                self._applied.setdefault(name, []).append(value)

    def behind(self, *, patience: float = PATIENCE) -> bool:
        """Whether applied updates have waited for a record longer than `patience` seconds."""
        return self._applied is not None and time.monotonic() - self._written > patience

    def write(self, event: str, /, *, wall_step: int, update: int, cursor: int, **details: Any) -> None:
        """Append one record and sync it to the disk.

        Raises:
            RunError: The record cannot be written, and the file is unchanged; or it was changed from outside; or the
                record cannot follow the records before it.
        """
        assert event in EVENTS, event
        faults.reach("journal.write")
        record = {"wall_step": wall_step, "update": update, "cursor": cursor, "event": event, **details}
        if self._applied is not None:
            record["applied"] = self._applied
        record["previous"] = self._previous
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        record = json.loads(line)
        if problem := check_fields(record) or check_order(self._history, record):
            raise RunError(f"{self.path}: the next record would contradict the journal ({problem})")
        try:
            if self._file is not None:
                self._file.append(line, sync=True, halfway=lambda: faults.reach("journal.torn"))
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}; correct this, then resume the run") from error
        advance(self._history, record)
        self._records.append(record)
        self._lines.append(line)
        self._previous, self._applied, self._written = _hash(line), None, time.monotonic()
        faults.reach("journal.written")


@dataclass
class Content:
    """The readable part of a journal file."""

    #: The records, up to the first that is wrong.
    records: list[Record] = field(default_factory=list)
    #: Their lines.
    lines: list[bytes] = field(default_factory=list)
    #: Their history; empty if the order was not checked.
    history: History = field(default_factory=History)
    #: What is wrong with the next record, with its place; empty if nothing is.
    problem: str = ""
    #: The last line is incomplete: a crash during the write.
    torn: bool = False


def scan(path: Path, *, ordered: bool = True) -> Content:
    """Read a journal file up to the first record that is wrong; a missing file is empty.

    Args:
        path: The file.
        ordered: Check that each record can follow the records before it.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        lines = read_regular(path).split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    content, previous = Content(torn=lines[-1] != b""), _FIRST
    for number, line in enumerate(lines[:-1], 1):
        record = _parse(line)
        if record is None or record.get("previous") != previous:
            problem = "the hash chain is broken: the journal was edited or damaged here"
        else:
            problem = check_fields(record) or (check_order(content.history, record) if ordered else "")
            problem = problem and f"{problem}: the journal was edited"
        if record is None or problem:
            content.problem = f"{path}:{number}: {problem}"
            return content
        if ordered:
            advance(content.history, record)
        content.records.append(record)
        content.lines.append(line + b"\n")
        previous = _hash(content.lines[-1])
    return content


def read(path: Path) -> list[Record]:
    """Return the records of a journal file after a check of its hash chain and of each record.

    Raises:
        UserError: The file is missing or was edited.
    """
    if not path.is_file():
        raise UserError(f"no journal at {path}")
    content = scan(path)
    if content.problem:
        raise UserError(content.problem)
    return content.records


def _parse(line: bytes) -> Record | None:
    try:
        record = parse_json(line, "the record", largest=_LONGEST, allow_nan=False)
    except UserError:
        return None
    return record if isinstance(record, dict) else None


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
