"""A search has a limit of its time, in the main thread."""

import signal
import time

import pytest

from lmjax.config import UserError
from lmjax.evaluation import time_limit


def test_a_search_is_that_of_re() -> None:
    match = time_limit.search(r"b(.)", "abc")
    assert match is not None
    assert match[1] == "c"
    assert time_limit.search("x", "abc") is None


def test_a_search_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
    before, started = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(UserError, match=r"took more than 0\.2 s on a text of 41 characters"):
        time_limit.search("(a+)+$", "a" * 40 + "b")
    assert time.monotonic() - started < 2
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
