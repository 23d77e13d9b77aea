"""Stop requests: SIGTERM and SIGINT ask a run to save and stop; a second signal ends it."""

import os
import signal
import sys
from types import FrameType
from typing import Any


class Interrupted(RuntimeError):
    """A signal asked the run to stop during a task that a resume repeats."""


class StopRequest:
    """A context manager that turns the first signal into a request to stop.

    The request is `name`, which the loop reads. A second signal ends the process immediately. The files on the disk
    are consistent at any moment, so this loses only the updates since the last checkpoint.

    Args:
        alone: Whether the run has no other process. Otherwise a signal is only a vote (`number`), and `hear` sets
            `name` from the votes of all processes, so that all of them stop at the same update.
        resume: The command that resumes the run, shown when a second signal ends the process.
    """

    def __init__(self, *, alone: bool = True, resume: str = "") -> None:
        self.name = ""
        self._advice = f"; resume with:\n  {resume}" if resume else ""
        self.number = 0
        self._alone = alone
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hear(self, number: int) -> None:
        """Record that a process of the run received the signal `number` (0: no process did)."""
        if number and not self.name:
            self.name = signal.Signals(number).name

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            text = f"\nstopped immediately by a second signal{self._advice}\n"
            os.write(sys.stderr.fileno() if sys.stderr else 2, text.encode(errors="replace"))
            os._exit(128 + number)
        self.number = number
        if self._alone:
            self.hear(number)
