"""A search for a regular expression with a limit of its time."""

import re
import signal
import threading
from types import FrameType

from lmjax.config import UserError

SECONDS = 5.0  # of one search


def search(pattern: str, text: str) -> "re.Match[str] | None":
    """Search for a regular expression; see `re.search`.

    The limit needs a timer of the system, which only the main thread has. `expressions.check_expression` bounds the
    time in other threads and on Windows.

    Raises:
        UserError: The search takes longer than `SECONDS`.
        re.error: The pattern is not a regular expression.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return re.search(pattern, text)

    def stop(number: int, frame: FrameType | None) -> None:
        raise UserError(
            f"the filter {pattern!r} took more than {SECONDS:g} s on a text of {len(text)} characters; write a simpler "
            "expression"
        )

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        return re.search(pattern, text)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
