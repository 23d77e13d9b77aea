"""Stop requests: SIGTERM and SIGINT ask a run to save and stop; a second signal ends it."""

import os
import signal
import sys
from types import FrameType
from typing import Any


class StopRequest:
    """A context manager that turns the first signal into a request to stop.

    The request is `name`, which the loop reads. A second signal ends the process immediately. The files on the disk
    are consistent at any moment, so this loses only the updates since the last checkpoint.

    Args:
        alone: Whether the run has no other process. Otherwise a signal is only a vote (`number`), and `hear` sets
            `name` from the votes of all processes, so that all of them stop at the same update.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.name = ""
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
            os.write(sys.stderr.fileno() if sys.stderr else 2, b"\nstopped immediately by a second signal\n")
            os._exit(128 + number)
        self.number = number
        if self._alone:
            self.hear(number)
