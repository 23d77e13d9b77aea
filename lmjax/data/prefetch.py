"""Prefetching: a thread prepares the next batches while the devices compute."""

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def prefetch(iterable: Iterable[T], *, size: int = 2) -> "Prefetch[T]":
    """Iterate in a thread that prepares up to `size` items (>= 1) in advance, in order.

    The thread prepares several items consecutively and then waits until half of them are read. During an update that
    fills the caches, the first of consecutive items takes three times as long as the others.

    An exception of the iterable is raised in the reader, in order and with its traceback. The thread ends after the
    last item, at `close()`, at the end of a `with` block, or when the iterator is dropped. The iterable is then closed.
    """
    return Prefetch(iterable, size)


class Prefetch(Generic[T]):
    """The iterator that `prefetch` returns; only one thread may read it."""

    def __init__(self, iterable: Iterable[T], size: int):
        assert size >= 1
        self._shared = _Shared(size)
        # The thread must not hold `self`, or dropping the iterator would never end it.
        self._thread = threading.Thread(target=_fill, args=(iterable, self._shared), name="prefetch", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._thread, self._shared)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        shared = self._shared
        with shared.changed:
            shared.changed.wait_for(lambda: shared.items or shared.ended)
            if shared.items:
                item = shared.items.popleft()
                if len(shared.items) <= shared.size // 2:
                    shared.changed.notify_all()
                return item
            error, shared.error = shared.error, None
        self.close()
        try:
            raise error or StopIteration
        finally:
            del error  # its traceback references this frame: avoid a cycle

    def close(self) -> None:
        """End the thread after the item in preparation, and drop its items.

        Repeated calls are allowed.
        """
        self._finalizer()

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Shared:
    """State shared by the two threads; every access holds `changed`."""

    def __init__(self, size: int):
        self.changed = threading.Condition()
        self.size = size
        self.items: deque[Any] = deque()
        self.error: BaseException | None = None
        self.stopped = False  # by the reader
        self.ended = False  # by the thread


def _fill(iterable: Iterable[Any], shared: _Shared) -> None:
    error = None
    try:
        iterator = iter(iterable)
        try:
            while _room(shared):
                item = next(iterator, _Shared)
                if item is _Shared:
                    break
                with shared.changed:
                    shared.items.append(item)
                    shared.changed.notify_all()
                del item  # otherwise this thread would keep another batch alive
        finally:
            close = getattr(iterator, "close", None)  # run the `finally` of generators in the thread that ran them
            if close is not None:
                close()
    except BaseException as caught:
        error = caught
    with shared.changed:
        shared.ended = True
        shared.error = None if shared.stopped else error
        shared.changed.notify_all()


def _room(shared: _Shared) -> bool:
    """Wait until another item may be prepared; False if the reader has stopped."""
    with shared.changed:
        most = shared.size // 2 if len(shared.items) >= shared.size else shared.size - 1
        shared.changed.wait_for(lambda: shared.stopped or len(shared.items) <= most)
        return not shared.stopped


def _stop(thread: threading.Thread, shared: _Shared) -> None:
    with shared.changed:
        shared.stopped = shared.ended = True
        shared.items.clear()
        shared.changed.notify_all()
    if thread is not threading.current_thread():
        thread.join()
