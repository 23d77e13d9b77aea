"""A file to which one process appends, and which nothing else may change."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from lmjax.config.errors import RunError, one_line
from lmjax.system import faults
from lmjax.system.files import replacing, sync_folder


class AppendFile:
    """A file to which only this process appends.

    Writes are not buffered: after a failed write the file is cut to its size before. The descriptor stays open, and its
    inode and size are compared with those of the path before each write. A file that was deleted or emptied is written
    again; after any other change from outside a write is refused.

    Args:
        path: The file; it is created if it is missing.
        content: Returns the content that the file must have, to write it again after it was truncated. Default: only
            what the descriptor still holds can be written again.
        report: Called with one line if the file was written again.
    """

    def __init__(
        self,
        path: Path,
        *,
        content: Callable[[], bytes] | None = None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = path
        self._content = content
        self._report = report
        self._open()

    def append(self, content: bytes, *, sync: bool = False, halfway: Callable[[], None] = lambda: None) -> None:
        """Append `content`, completely or not at all.

        Args:
            content: The bytes.
            sync: Sync them to the disk.
            halfway: Called when a half of the bytes is written.

        Raises:
            OSError: The bytes cannot be written; the file is as before.
            RunError: The file was changed from outside.
        """
        self.check()
        descriptor, half = self._descriptor, len(content) // 2
        try:
            _write(descriptor, content[:half])
            halfway()
            _write(descriptor, content[half:])
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            error.filename = error.filename or str(self.path)  # an error of a write names no file
            self._repair()
            raise
        self._size += len(content)

    def check(self) -> None:
        """Compare the file at the path with the open file.

        A file that was deleted or emptied is written again.

        Raises:
            RunError: It was changed in another way, or cannot be written again.
        """
        problem = self._problem()
        if not problem:
            return
        content = self._all()
        if content is None or not self._is_part(content):
            raise RunError(
                f"{self.path} {problem} while this process used it: another program changed it; bring it back as it "
                "was, then resume"
            )
        try:
            with replacing(self.path, sync=True) as partial:
                partial.write_bytes(content)
                faults.reach("own.again")
            sync_folder(self.path.parent)
            self.close()
            self._open()
        except OSError as error:
            raise RunError(f"{self.path} {problem}, and cannot be written again: {one_line(error)}") from None
        self._report(f"{self.path} {problem} by another program: written again")

    def close(self) -> None:
        """Close the file; repeated calls are allowed."""
        self._close()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self.path, flags, 0o666)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size

    def _problem(self) -> str:
        """What happened to the file from outside; empty: nothing."""
        opened = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except OSError:
            return "was deleted"
        if (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            return "was replaced"
        if opened.st_size != self._size:
            return f"was truncated to {opened.st_size} bytes" if opened.st_size < self._size else "was written to"
        return ""

    def _all(self) -> bytes | None:
        """The content that the file must have, if it is known."""
        if self._content is not None:
            return self._content()
        if os.fstat(self._descriptor).st_size != self._size:
            return None
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._descriptor, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    def _is_part(self, content: bytes) -> bool:
        """Whether the file at the path is missing or holds only a first part of `content`."""
        try:
            with open(self.path, "rb") as file:
                return content.startswith(file.read(len(content) + 1))
        except FileNotFoundError:
            return self.path.parent.is_dir()
        except OSError:
            return False

    def _repair(self) -> None:
        """Cut a failed write off.

        Raises:
            RunError: The file cannot be cut.
        """
        try:
            os.ftruncate(self._descriptor, self._size)
            repaired = os.fstat(self._descriptor).st_size == self._size
        except OSError:
            repaired = False
        if not repaired:
            raise RunError(f"{self.path} has a torn end after byte {self._size} that cannot be removed; the disk fails")


def _write(descriptor: int, content: bytes) -> None:
    """Write all bytes; the system may write fewer at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
