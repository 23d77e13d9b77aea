"""SIGTERM and SIGINT ask a run to save and stop; a second one stops it at once."""

import os
import signal
import sys
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, the first signal is a request to stop (`name`, for the loop to see); the second ends the process.

    alone: the run has no other process. If it has, a signal is only a vote (`number`), and `name` is set when `hear` is
    told what all have voted, so that all stop at the same update. What is on the disk is whole at any moment, so an
    immediate end loses only the updates since the last checkpoint.
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
        """A process of the run got the signal `number` (0: none did)."""
        if number and not self.name:
            self.name = signal.Signals(number).name

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os.write(sys.stderr.fileno() if sys.stderr else 2, b"\nstopped at once by a second signal\n")
            os._exit(128 + number)
        self.number = number
        if self._alone:
            self.hear(number)
