"""A search has a limit of its time, in the main thread."""

import signal
import time

import pytest

from lmjax.config import UserError
from lmjax.system import time_limit


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


def test_many_slow_searches_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "_SEARCHES", time_limit.Allowance(0.2, 1e-4))
    slow = "a" * 300  # cubic: some 10 ms
    with pytest.raises(UserError, match=r"the filter 'a\*a\*b' took more than 0\.2 s of processor time in all"):
        list(map(time_limit.search, ["a*a*b"] * 1000, [slow] * 1000))


def test_fast_searches_have_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "_SEARCHES", time_limit.Allowance(0.02, 1e-4))
    for _ in range(3000):
        time_limit.search("b", "abc")
