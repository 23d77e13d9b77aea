import gc
import itertools
import threading
import time
import traceback

import pytest

from lmjax.data.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def settle(condition, seconds=5.0):
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert settle(lambda: not threads())


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_same_items_in_order(size):
    assert list(prefetch(range(500), size=size)) == list(range(500))
    assert list(prefetch(iter(()), size=size)) == []


def test_stays_size_ahead_and_no_further():
    made = []

    def items():
        for i in itertools.count():
            made.append(i)
            yield i

    with prefetch(items(), size=3) as ahead:
        assert settle(lambda: len(made) == 3)
        time.sleep(0.02)
        assert len(made) == 3
        assert next(ahead) == 0
        time.sleep(0.02)
        assert len(made) == 3, "it rests until half of them are read"
        assert next(ahead) == 1
        assert settle(lambda: len(made) == 5)


def test_overlaps_with_the_reader():
    """The next item is made while the reader works on this one."""
    reading, made = threading.Event(), threading.Event()

    def items():
        yield 1
        assert reading.wait(5)
        made.set()
        yield 2

    with prefetch(items(), size=1) as ahead:
        assert next(ahead) == 1
        reading.set()
        assert made.wait(5)
        assert next(ahead) == 2


def test_an_exception_comes_in_its_turn_with_its_traceback():
    def items():
        yield 1
        yield 2
        failing_function()

    def failing_function():
        raise KeyError("broken")

    ahead = prefetch(items(), size=5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="broken") as caught:
        next(ahead)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "failing_function" in names
    assert list(ahead) == []  # once, then it is over


def test_an_iterable_that_cannot_be_iterated():
    with pytest.raises(TypeError, match="not iterable"):
        next(prefetch(5, size=1))


@pytest.mark.parametrize("read", [0, 1, 5])
def test_close_when_the_queue_is_full(read):
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(threading.current_thread().name)

    ahead = prefetch(items(), size=2)
    assert list(itertools.islice(ahead, read)) == list(range(read))
    assert settle(lambda: len(ahead._shared.items) == 2)
    begun = time.monotonic()
    ahead.close()
    assert time.monotonic() - begun < 1
    assert not threads()
    assert closed == ["prefetch"]  # the generator's `finally` ran, where the generator had run
    ahead.close()
    assert list(ahead) == []


def test_the_reader_fails_in_a_with_block():
    def read():
        with prefetch(itertools.count(), size=2) as ahead:
            return [1 / (item - 3) for item in ahead]

    with pytest.raises(ZeroDivisionError):
        read()
    assert not threads()


def test_dropped_without_closing():
    ahead = prefetch(itertools.count(), size=2)
    next(ahead)
    del ahead
    gc.collect()
    assert not threads()


def test_a_generator_around_it_closes_it():
    def doubled():
        for item in prefetch(itertools.count(), size=2):
            yield 2 * item

    outer = doubled()
    assert [next(outer), next(outer)] == [0, 2]
    outer.close()
    assert settle(lambda: not threads())


def test_an_error_after_close_is_of_no_consequence():
    started, leave = threading.Event(), threading.Event()

    def items():
        started.set()
        leave.wait(5)
        raise RuntimeError("too late")
        yield

    ahead = prefetch(items(), size=1)
    assert started.wait(5)
    threading.Timer(0.02, leave.set).start()
    ahead.close()
    assert list(ahead) == []
