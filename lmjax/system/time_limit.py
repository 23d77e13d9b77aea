"""Limits of the time of one search or another call, and of all of them together."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lmjax.config import UserError

SECONDS = 5.0  # of one search


class Allowance:
    """The processor time that all calls of a kind may take together.

    Args:
        seconds: The time that does not depend on the number of calls.
        each: Further seconds a call.
    """

    def __init__(self, seconds: float, each: float) -> None:
        self.seconds, self.each = seconds, each
        self._left = seconds

    @contextmanager
    def count(self, message: str) -> Iterator[None]:
        """Count the time of the block.

        Raises:
            UserError: All blocks together took too long; `message` says of what.
        """
        begun = time.thread_time()
        yield
        self._left += self.each - (time.thread_time() - begun)
        if self._left < 0:
            raise UserError(f"{message} took more than {self.seconds:g} s of processor time in all; write it simpler")


_SEARCHES = Allowance(20.0, 1e-4)  # a search of an honest expression takes microseconds


@contextmanager
def limited(seconds: float, message: str) -> Iterator[None]:
    """Limit the time of the block.

    The limit needs a timer of the system, which only the main thread has: in other threads and on Windows there is
    none. An earlier timer starts again after the block.

    Args:
        seconds: The limit.
        message: The error message.

    Raises:
        UserError: The block takes longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise UserError(message)

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def search(pattern: str, text: str) -> "re.Match[str] | None":
    """Search for a regular expression; see `re.search`.

    Where `limited` has no timer, `expressions.check_expression` bounds the time.

    Raises:
        UserError: The search takes longer than `SECONDS`, or all of them took too long.
        re.error: The pattern is not a regular expression.
    """
    message = (
        f"the filter {pattern!r} took more than {SECONDS:g} s on a text of {len(text)} characters; write a simpler "
        "expression"
    )
    with limited(SECONDS, message), _SEARCHES.count(f"the searches up to the filter {pattern!r}"):
        return re.search(pattern, text)
