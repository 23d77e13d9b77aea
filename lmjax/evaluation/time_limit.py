"""A limit of the time of a search for a regular expression, or of another call."""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lmjax.config import UserError

SECONDS = 5.0  # of one search


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
        UserError: The search takes longer than `SECONDS`.
        re.error: The pattern is not a regular expression.
    """
    message = (
        f"the filter {pattern!r} took more than {SECONDS:g} s on a text of {len(text)} characters; write a simpler "
        "expression"
    )
    with limited(SECONDS, message):
        return re.search(pattern, text)
