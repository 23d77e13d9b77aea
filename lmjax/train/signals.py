"""SIGTERM and SIGINT ask a run to save and stop; a second one stops it at once."""

import os
import signal
import sys
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, the first signal sets `name` (for the loop to see); the second ends the process.

    What is on the disk is whole at any moment, so an immediate end loses only the updates since the last checkpoint.
    """

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            os.write(sys.stderr.fileno() if sys.stderr else 2, b"\nstopped at once by a second signal\n")
            os._exit(128 + number)
        self.name = signal.Signals(number).name
